"""Make a slide on a local disk (``outputs.scratch``), then copy it to OUT.

A slide that is started afresh is made completely on the scratch disk, by the same protocol as in OUT, and copied to OUT
when it is finished. Lock and manifest exist only in OUT. So losing the scratch disk costs computing time and nothing
else, and a copy that was killed is repeated.

    SCRATCH/overtile-<digest of OUT's slide folder>/    the later OUT/<key>/ without lock and manifest
    OUT/<key>/                                          lock; then files, each whole; then stamps; then the manifest

A killed copy leaves in OUT what a run in OUT would leave: shards of a plan, without a stamp. A later run without
scratch resumes from them.
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
"""Files of ``.work`` that exist in OUT only."""


def staged_store(scratch: Path, final: SlideStore) -> SlideStore:
    """The folder on the scratch disk in which the slide of ``final`` is made."""
    return SlideStore(scratch / f"overtile-{digest(str(final.root.resolve()))[:24]}")


def working_store(final: SlideStore, scratch: str | None) -> SlideStore:
    """The folder in which an incomplete slide is made: where it was started, else on the scratch disk."""
    if scratch is None:
        return final
    staged = staged_store(Path(scratch), final)
    return staged if staged.work.exists() or not final.zarr.exists() else final


def leftover(final: SlideStore, scratch: str | None) -> SlideStore | None:
    """Folder on the scratch disk of a slide that is complete in OUT: its run was killed before removing it."""
    staged = None if scratch is None else staged_store(Path(scratch), final)
    return staged if staged is not None and staged.root.exists() else None


def publish(staged: SlideStore, final: SlideStore) -> None:
    """Copy a finished slide to OUT: files first, made durable, then the stamps."""
    _clear(final)
    files = [path for path in sorted(staged.root.rglob("*")) if path.is_file() and not path.name.endswith(PARTIAL)]
    files = [path for path in files if path.parent != staged.work or path.name not in OWN]
    _copy((path for path in files if path.suffix != STAMP), staged, final)
    fsync_tree(final.root)
    _copy((path for path in files if path.suffix == STAMP), staged, final)
    fsync_dir(final.work)


def _clear(final: SlideStore) -> None:
    """Remove what an earlier copy left, stamps first: no stamp may stand for a file that is replaced."""
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
