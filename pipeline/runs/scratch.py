"""A slide's folder on a local disk while it is worked on (``outputs.scratch``), and its way into OUT.

The one decision made here: a slide that is begun afresh is made on the scratch disk, whole, by the same protocol as
anywhere, and copied into OUT once it is finished; its lock and its manifest are never anywhere but in OUT. So a scratch
disk that is lost costs work and nothing else, and a copy that was killed is copied again.

    SCRATCH/overtile-<digest of OUT's slide folder>/    what OUT/<key>/ will be, but for lock and manifest
    OUT/<key>/                                          lock; then files, each whole; then stamps; then the manifest

Files that a killed copy left in OUT are what a run in OUT would have left there: shards of a plan, without a stamp. A
run that finds them and no scratch goes on from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pipeline.storage.atomic_files import PARTIAL, digest, fsync_dir, fsync_tree, remove, sweep_partials, write_atomic
from pipeline.storage.layout import RESULTS
from pipeline.storage.slide_store import SlideStore

STAMP = ".stamp"
OWN = ("lock", "failure.json")
"""Files of ``.work`` that belong to OUT alone."""


def staged_store(scratch: Path, final: SlideStore) -> SlideStore:
    """Where the slide of ``final`` is made on this scratch disk."""
    return SlideStore(scratch / f"overtile-{digest(str(final.root.resolve()))[:24]}")


def place_of_work(final: SlideStore, scratch: str | None) -> SlideStore:
    """Where a slide that is not complete is worked on: where it was begun, else on the scratch disk."""
    if scratch is None:
        return final
    staged = staged_store(Path(scratch), final)
    return staged if staged.work.exists() or not final.zarr.exists() else final


def leftover(final: SlideStore, scratch: str | None) -> SlideStore | None:
    """What lies on the scratch disk of a slide that is complete in OUT: it was killed before it was removed."""
    staged = None if scratch is None else staged_store(Path(scratch), final)
    return staged if staged is not None and staged.root.exists() else None


def publish(staged: SlideStore, final: SlideStore) -> None:
    """Copy a finished slide into OUT: files first, made durable, then the stamps that vouch for them."""
    _clear(final)
    files = [path for path in sorted(staged.root.rglob("*")) if path.is_file() and not path.name.endswith(PARTIAL)]
    files = [path for path in files if path.parent != staged.work or path.name not in OWN]
    _copy((path for path in files if path.suffix != STAMP), staged, final)
    fsync_tree(final.root)
    _copy((path for path in files if path.suffix == STAMP), staged, final)
    fsync_dir(final.work)


def _clear(final: SlideStore) -> None:
    """Remove what an earlier copy left, stamps first: nothing may vouch for what is replaced."""
    for stamp in sorted(final.work.glob(f"*{STAMP}")):
        remove(stamp)
    for entry in sorted(final.work.iterdir()):
        if entry.name not in OWN:
            remove(entry)
    for path in (final.zarr, *(final.root / name for name in RESULTS)):
        if path.exists():
            remove(path)
    sweep_partials(final.root, age_s=0)


def _copy(files: Iterable[Path], staged: SlideStore, final: SlideStore) -> None:
    for path in files:
        with path.open("rb") as source:
            write_atomic(final.root / path.relative_to(staged.root), partial(shutil.copyfileobj, source))
