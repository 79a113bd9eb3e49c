"""Making room in OUT: which slides are pruned, of what, and which are taken away.

The one decision made here: what is going to happen is noted in the history before it does, so that a command that was
killed is there too. What is deleted is forgotten, not forbidden: a slide that is still in the input is computed again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from flows.batch.history import doer, note
from flows.batch.result_records import slides_of
from pipeline.errors import ConfigError, DamagedError, LockedError, StoreError
from pipeline.exports.formats import FOLDER, FORMATS
from pipeline.runs.prune import delete_slide, going, is_unfinished, own_places, prune_slide, pruned_parts
from pipeline.runs.scratch import leftover
from pipeline.storage.atomic_files import fsync_dir
from pipeline.storage.lock import slide_lock
from pipeline.storage.manifest import previous_plan, read_manifest
from pipeline.storage.slide_store import SlideStore

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class CleanupResult:
    """What becomes of one slide: parts and bytes that go, and why nothing does, or what follows."""

    key: str
    state: Literal["pruned", "deleted", "left alone"]
    cause: str = ""
    parts: tuple[str, ...] = ()
    bytes: int = 0


def read_age(text: str) -> timedelta:
    """An age such as 30d, 12h or 2w. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if found is None:
        raise ConfigError(f"--older-than {text}: expected a number and h, d or w, such as 30d")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


# ---- prune -----------------------------------------------------------------------------------------------------------


def prune(out: Path, older_than: timedelta, keep: Collection[str], *, dry: bool) -> Iterator[CleanupResult]:
    """Give up all but ``keep`` of what was complete for so long; yields what became of each slide that is so old.

    Raises ConfigError before anything is done.
    """
    stores, before = slides_of(out), datetime.now(UTC) - older_than
    told = {key: one for key, store in stores.items() if (one := _look(key, store, before, keep))}
    chosen = [key for key, one in told.items() if one.state == "pruned"]
    if chosen and not dry:
        note(out, "prune", {"keys": chosen, "keep": sorted(keep), "finished_before": before.isoformat(), **doer()})
    for key, one in told.items():
        yield one if dry or key not in chosen else _prune(one, stores[key], keep)


def _look(key: str, store: SlideStore, before: datetime, keep: Collection[str]) -> CleanupResult | None:
    """What is to go of a slide; None where there is nothing to do, or too early."""
    try:
        manifest = read_manifest(store)
    except DamagedError as error:
        return CleanupResult(key, "left alone", str(error))
    if manifest is None:
        return CleanupResult(key, "left alone", "it is not complete")
    if datetime.fromisoformat(manifest["finished"]) > before:
        return None
    meant = going(manifest, keep)
    if not meant.entries and not is_unfinished(store, manifest):
        return None
    return CleanupResult(key, "pruned", "", meant.parts or tuple(pruned_parts(manifest)), meant.bytes)


def _prune(meant: CleanupResult, store: SlideStore, keep: Collection[str]) -> CleanupResult:
    return _locked(meant, store, lambda: prune_slide(store, keep))


def _locked(meant: CleanupResult, store: SlideStore, act: Callable[[], object]) -> CleanupResult:
    """Act under the slide's lock; a slide that somebody works on, or that is damaged, is left alone."""
    try:
        with slide_lock(store.work):
            act()
    except (LockedError, StoreError) as error:
        return CleanupResult(meant.key, "left alone", str(error))
    return meant


# ---- delete ----------------------------------------------------------------------------------------------------------


def delete(out: Path, keys: Sequence[str], *, dry: bool) -> Iterator[CleanupResult]:
    """Take slides' folders away; yields what became of each. Raises ConfigError before anything is done."""
    stores = slides_of(out)
    for key in keys:
        if key not in stores:
            near = difflib.get_close_matches(key, list(stores), n=1, cutoff=0.6) or list(stores)
            raise ConfigError(f"{key}: expected the key of a slide in {out}, such as {near[0]}")
    if not dry:
        note(out, "delete", {"keys": list(keys), **doer()})
    for key in dict.fromkeys(keys):
        meant = _meant(key, stores[key])
        yield meant if dry else _locked(meant, stores[key], partial(_delete, stores[key], out))


def _meant(key: str, store: SlideStore) -> CleanupResult:
    places = (*own_places(store), *_others(store))
    size = sum(path.stat().st_size for place in places for path in (place, *place.rglob("*")) if path.is_file())
    return CleanupResult(key, "deleted", _what_follows(store), (), size)


def _what_follows(store: SlideStore) -> str:
    """What the next run does, as far as it can be told."""
    plan = previous_plan(store)
    if plan is not None and Path(plan["slide"]).exists():
        return f"{plan['slide']} is still there: the next run over it computes it again"
    return "the next run computes it again if its slide is in the input"


def _others(store: SlideStore) -> list[Path]:
    """What was made of a slide elsewhere: copies beside the result, and what lies on a scratch disk."""
    plan = previous_plan(store)
    staged = leftover(store, None if plan is None else plan["config"]["outputs"].get("scratch"))
    copies = (store.root / FOLDER / name for files in FORMATS.values() for name in files)
    return [path for path in (*copies, *([staged.root] if staged else [])) if path.exists()]


def _delete(store: SlideStore, out: Path) -> None:
    delete_slide(store, _others(store))
    for folder in (store.root / FOLDER, store.root, *store.root.parents):
        if folder == out or (folder.exists() and any(folder.iterdir())):
            return
        if folder.exists():
            folder.rmdir()
            fsync_dir(folder.parent)
