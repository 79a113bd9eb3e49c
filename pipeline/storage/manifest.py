"""The manifest of a complete slide: the plan, the software, and every file with its size and SHA-256.

The manifest is written last and removed first, so it exists only when every file that it lists exists. A slide without
a manifest is not complete.
"""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError
from pipeline.storage.atomic_files import PARTIAL, digest, fsync_dir, read_json, sha256_file, write_json
from pipeline.storage.layout import RESULTS
from pipeline.storage.slide_store import SlideStore

PACKAGES = (
    "overtile",
    "torch",
    "numpy",
    "zarr",
    "tifffile",
    "imagecodecs",
    "dask",
    "prefect",
    "scikit-image",
    "pyarrow",
)

HASHING_THREADS = 2


def write_manifest(store: SlideStore, plan: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    """Digest every file of a finished slide and write the manifest durably, as the last step.

    The key ``metadata`` holds the text of every zarr.json: a lost one would otherwise make its array's shards useless.

    Args:
        store: The slide's folder.
        plan: Summary of the plan.
        stages: Facts and runs of each stage.
    """
    files = result_files(store)
    content = {
        "format": 1,
        "plan": dict(plan),
        "stages": dict(stages),
        "software": {package: package_version(package) for package in PACKAGES},
        "host": {
            "name": socket.gethostname(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "folders_are_synced": fsync_dir(store.root),
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": file_digests(store.root, files),
        "metadata": {
            path.relative_to(store.root).as_posix(): path.read_text("utf-8")
            for path in files
            if path.name == "zarr.json"
        },
    }
    plain = json.loads(json.dumps(content))  # as it will be read: tuples become lists, keys become text
    write_json(store.manifest, plain | {"sha256": digest(plain)})
    fsync_dir(store.root)


def rewrite_case(store: SlideStore, manifest: Mapping[str, Any], case: Mapping[str, str]) -> None:
    """Replace the cases table's row in the manifest of a complete slide. No pixel and no hash depends on it."""
    rewrite(store, {**manifest, "plan": {**manifest["plan"], "case": dict(case)}})


def rewrite(store: SlideStore, content: Mapping[str, Any]) -> None:
    """Replace the manifest of a complete slide, durably."""
    write_json(store.manifest, {**content, "sha256": digest(content)})
    fsync_dir(store.root)


def is_pruned(manifest: Mapping[str, Any], name: str) -> bool:
    """Whether the file at a path below the slide's folder was pruned."""
    entries = manifest.get("pruned", {}).get("entries", ())
    return any(name == entry or name.startswith(f"{entry}/") for entry in entries)


def read_manifest(store: SlideStore) -> dict[str, Any] | None:
    """Read the manifest; None when the slide is not complete.

    Raises:
        DamagedError: The content is not what was written.
    """
    if not store.manifest.exists():
        return None
    content = read_json(store.manifest)
    if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
        raise DamagedError(f"{store.manifest} is not the manifest that was written: it is damaged. Run segment again")
    return content


def previous_plan(store: SlideStore) -> dict[str, Any] | None:
    """Summary of the plan of the slide's last run; None when none can be read."""
    path = store.work / "plan.json"
    try:
        manifest = read_manifest(store)
        previous = manifest["plan"] if manifest else read_json(path) if path.exists() else None
    except DamagedError:
        return None
    return previous if isinstance(previous, dict) else None


def result_files(store: SlideStore) -> list[Path]:
    """Every file of the result; other files in the folder are left out."""
    arrays = [path for path in store.zarr.rglob("*") if path.is_file() and not path.name.endswith(PARTIAL)]
    return sorted([*arrays, *(path for name in RESULTS if (path := store.root / name).is_file())])


def file_digests(root: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, by its path below ``root``."""

    def one(path: Path) -> tuple[str, dict[str, Any]]:
        return path.relative_to(root).as_posix(), {"size": path.stat().st_size, "sha256": sha256_file(path)}

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(pool.map(one, files))


def package_version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
