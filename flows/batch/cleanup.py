"""Prune and delete results in OUT.

The history records the operation before it starts, so that a killed command is listed too. A deleted slide that is
still in the input is computed again by the next run.
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

from flows.batch.history import note, process_facts
from flows.batch.result_records import slides_of
from pipeline.errors import ConfigError, DamagedError, LockedError, StoreError
from pipeline.exports.formats import FOLDER, FORMATS
from pipeline.runs.prune import delete_slide, is_unfinished, own_paths, prune_plan, prune_slide, pruned_parts
from pipeline.runs.scratch import leftover
from pipeline.storage.atomic_files import fsync_dir
from pipeline.storage.lock import slide_lock
from pipeline.storage.manifest import previous_plan, read_manifest
from pipeline.storage.slide_store import SlideStore

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class CleanupResult:
    """The result for one slide: removed parts and bytes, and the cause or the consequence."""

    key: str
    state: Literal["pruned", "deleted", "left alone"]
    cause: str = ""
    parts: tuple[str, ...] = ()
    bytes: int = 0


def read_age(text: str) -> timedelta:
    """Parse an age such as 30d, 12h or 2w.

    Raises:
        ConfigError: The text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if found is None:
        raise ConfigError(f"--older-than {text}: expected a number and h, d or w, such as 30d")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


# ---- prune -----------------------------------------------------------------------------------------------------------


def prune(out: Path, older_than: timedelta, keep: Collection[str], *, dry: bool) -> Iterator[CleanupResult]:
    """Remove all parts except ``keep`` from slides that have been complete for longer than ``older_than``.

    Args:
        out: Results folder.
        older_than: Least age of the results.
        keep: Parts to keep.
        dry: Whether to remove nothing.

    Yields:
        The result for each slide of that age.

    Raises:
        ConfigError: ``out`` holds no results; nothing has been removed.
    """
    stores, before = slides_of(out), datetime.now(UTC) - older_than
    plans = {key: plan for key, store in stores.items() if (plan := _plan(key, store, before, keep))}
    selected = [key for key, plan in plans.items() if plan.state == "pruned"]
    if selected and not dry:
        note(
            out,
            "prune",
            {"keys": selected, "keep": sorted(keep), "finished_before": before.isoformat(), **process_facts()},
        )
    for key, plan in plans.items():
        yield plan if dry or key not in selected else _prune(plan, stores[key], keep)


def _plan(key: str, store: SlideStore, before: datetime, keep: Collection[str]) -> CleanupResult | None:
    """What to remove from a slide; None where there is nothing to remove or the result is too new."""
    try:
        manifest = read_manifest(store)
    except DamagedError as error:
        return CleanupResult(key, "left alone", str(error))
    if manifest is None:
        return CleanupResult(key, "left alone", "it is not complete")
    if datetime.fromisoformat(manifest["finished"]) > before:
        return None
    planned = prune_plan(manifest, keep)
    if not planned.entries and not is_unfinished(store, manifest):
        return None
    return CleanupResult(key, "pruned", "", planned.parts or tuple(pruned_parts(manifest)), planned.bytes)


def _prune(plan: CleanupResult, store: SlideStore, keep: Collection[str]) -> CleanupResult:
    return _locked(plan, store, lambda: prune_slide(store, keep))


def _locked(plan: CleanupResult, store: SlideStore, act: Callable[[], object]) -> CleanupResult:
    """Act under the slide's lock; a slide that is locked by another process or damaged is left alone."""
    try:
        with slide_lock(store.work):
            act()
    except (LockedError, StoreError) as error:
        return CleanupResult(plan.key, "left alone", str(error))
    return plan


# ---- delete ----------------------------------------------------------------------------------------------------------


def delete(out: Path, keys: Sequence[str], *, dry: bool) -> Iterator[CleanupResult]:
    """Delete the folders of slides.

    Args:
        out: Results folder.
        keys: Keys of the slides.
        dry: Whether to delete nothing.

    Yields:
        The result for each slide.

    Raises:
        ConfigError: A key is unknown; nothing has been deleted.
    """
    stores = slides_of(out)
    for key in keys:
        if key not in stores:
            near = difflib.get_close_matches(key, list(stores), n=1, cutoff=0.6) or list(stores)
            raise ConfigError(f"{key}: expected the key of a slide in {out}, such as {near[0]}")
    if not dry:
        note(out, "delete", {"keys": list(keys), **process_facts()})
    for key in dict.fromkeys(keys):
        plan = _deletion(key, stores[key])
        yield plan if dry else _locked(plan, stores[key], partial(_delete, stores[key], out))


def _deletion(key: str, store: SlideStore) -> CleanupResult:
    roots = (*own_paths(store), *_others(store))
    size = sum(path.stat().st_size for root in roots for path in (root, *root.rglob("*")) if path.is_file())
    return CleanupResult(key, "deleted", _consequence(store), (), size)


def _consequence(store: SlideStore) -> str:
    """What the next run does, as far as it is known."""
    plan = previous_plan(store)
    if plan is not None and Path(plan["slide"]).exists():
        return f"{plan['slide']} is still there: the next run over it computes it again"
    return "the next run computes it again if its slide is in the input"


def _others(store: SlideStore) -> list[Path]:
    """Files of a slide in other places: exports beside the result, and its scratch folder."""
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
