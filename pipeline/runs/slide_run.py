"""The run of one slide from lock to manifest: compare the disk with the plan, run stages, complete the result.

The network's part of a complete result is never discarded without ``--force``. A complete result is used as it is when
nothing changed, and kept, with a notice, when the network's part would change. In all other cases its manifest is
removed before anything else, so that a killed run leaves a result that is either whole or marked incomplete.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import DamagedError
from pipeline.execution.blocks import MapBlocks, StageReport, retry_io
from pipeline.runs.dropped_arrays import StagesToRerun, drop, mark_for_rerun, stages_to_rerun, unwanted, unwanted_before
from pipeline.runs.plan import SlidePlan
from pipeline.runs.scratch import leftover, publish, working_store
from pipeline.runs.verify import (
    damaged_files,
    end_repair,
    pending_repair,
    prepare_repair,
    remove_damaged,
    repaired_differs,
    require_whole,
)
from pipeline.stage_table import NETWORK_STAGES, STAGE, STAGE_TABLE, WRITER
from pipeline.storage.atomic_files import append_json, fsync_dir, read_json_lines, remove, sweep_partials, write_json
from pipeline.storage.layout import ARRAYS, entry_of, path_of
from pipeline.storage.manifest import previous_plan, read_manifest, rewrite_case, write_manifest
from pipeline.storage.slide_store import SlideStore

RunState = Literal["complete", "kept", "todo"]
"""``kept``: complete under another plan, and not to be changed without ``--force``."""


@dataclass(slots=True)
class SlideRun:
    """The run of a slide. The caller holds the slide's lock.

    Attributes:
        plan: The slide's plan.
        store: The slide's folder in OUT.
        notices: Messages for the user.
        reports: What this run did, by stage.
        damaged: Files to repair, and their required digests.
        working: Where stages write: ``store``, or a folder on the scratch disk.
    """

    plan: SlidePlan
    store: SlideStore
    notices: list[str] = field(default_factory=list)
    reports: dict[str, StageReport] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    working: SlideStore = field(init=False)

    def __post_init__(self) -> None:
        self.working = self.store

    def prepare(self, *, forced: bool = False) -> RunState:
        """Compare the disk with the plan, and prepare what has to be done again.

        Args:
            forced: Whether a complete result may be replaced though the network would run again.

        Returns:
            ``todo`` when stages have to run.
        """
        manifest = self._manifest()
        if manifest is None:
            self.working = working_store(self.store, self._scratch)
            self.damaged = pending_repair(self.working)
            self._notice_changes(previous_plan(self.working))
        else:
            self._clear_scratch()
            state = self._compare(manifest, forced=forced)
            if state != "todo":
                if self.plan.case is not None and self._case_changed(manifest):
                    rewrite_case(self.store, manifest, self.plan.case)
                return state
            self.store.manifest.unlink(missing_ok=True)
            fsync_dir(self.store.root)
        self._mark_for_rerun()
        for store in dict.fromkeys((self.store, self.working)):
            sweep_partials(store.root)
            write_json(store.work / "plan.json", self.plan.summary())
        return "todo"

    def is_complete(self) -> bool:
        """Whether the slide is complete under this plan and case, and no file is missing. Read-only."""
        try:
            manifest = read_manifest(self.store)
        except DamagedError:
            return False
        if manifest is None or not self._is_up_to_date(manifest) or self._case_changed(manifest):
            return False
        return leftover(self.store, self._scratch) is None and not damaged_files(self.store, manifest)

    @property
    def _scratch(self) -> str | None:
        return self.plan.config.outputs.scratch

    def _clear_scratch(self) -> None:
        """Remove what a run that was killed after writing its manifest left on the scratch disk."""
        staged = leftover(self.store, self._scratch)
        if staged is not None:
            remove(staged.root)

    def step(self, stage: str, map_blocks: MapBlocks) -> StageReport:
        """Run one stage and record what it did.

        I/O errors outside blocks are retried here; those of blocks are retried by ``map_blocks``.

        Raises:
            DamagedError: A file that the stage reads is damaged. Damaged files were removed: the next run makes them.
            OvertileError: What the stage raises.
        """
        from pipeline.runs.stage_runner import run_stage  # imports torch, which takes a second

        began = time.monotonic()
        try:
            report = retry_io(lambda: run_stage(stage, self.plan, self.working.root, map_blocks))
        except DamagedError:
            remove_damaged(self.working, self.plan.hashes)
            raise
        self.reports[stage] = report
        self._record(report, time.monotonic() - began)
        if repaired_differs(self.working, stage, self.damaged):
            self._redo_after(stage)
        return report

    def finish(self) -> None:
        """Remove what the plan no longer makes, then write the manifest, which completes the slide."""
        for stage in (stage for stage in STAGE_TABLE if stage.name not in self.plan.hashes):
            for artifact in stage.writes:
                remove(self.working.root / entry_of(path_of(artifact)))
            self.working.unstamp([stage.name])
        self._require_whole()
        retry_io(lambda: drop(self.working, self.plan.config.outputs))
        remove(self.store.work / "failure.json")
        remove(self.working.work / WRITER["geojson"])  # left by a kill between its stamp and their removal
        end_repair(self.working)
        sweep_partials(self.working.root, age_s=0)
        if self.working != self.store:
            publish(self.working, self.store)
        retry_io(lambda: write_manifest(self.store, self.plan.summary(), self._stage_records()))
        self._clear_scratch()

    def _require_whole(self) -> None:
        try:
            require_whole(self.working)
        except DamagedError:
            remove_damaged(self.working, self.plan.hashes)
            raise

    def fail(self, stage: str, error: BaseException) -> None:
        """Write the cause into the unfinished result, where the file system still allows it."""
        try:
            write_json(
                self.store.work / "failure.json", {"stage": stage, "cause": str(error), "slide": self.plan.display_name}
            )
        except OSError:
            return

    # ---- the state on disk ---------------------------------------------------------------------------------------

    def _manifest(self) -> dict[str, Any] | None:
        try:
            return read_manifest(self.store)
        except DamagedError as error:
            self.notices.append(str(error))
            remove(self.store.manifest)
            return None

    def _compare(self, manifest: Mapping[str, Any], *, forced: bool) -> RunState:
        before, now = manifest["plan"]["hashes"], self.plan.hashes
        changed = [stage for stage in NETWORK_STAGES if before.get(stage) != now[stage]]
        if changed and not forced:
            self.notices.append(
                f"{self.plan.key}: kept: {changed[0]} would change ({_difference(manifest['plan'], self.plan)}). "
                f"Add --force {self.plan.key} to compute it again"
            )
            return "kept"
        self.damaged = damaged_files(self.store, manifest)
        if "pruned" in manifest:
            return self._compare_pruned(manifest, forced=forced)
        if self.damaged:
            self.notices.append(
                f"{self.plan.key}: repairing {len(self.damaged)} damaged files, first {next(iter(self.damaged))}"
            )
            prepare_repair(self.store, self.damaged, manifest["metadata"])
            return "todo"
        if self._is_up_to_date(manifest):
            return "complete"
        again = self._stages_to_rerun()
        if again.network and not forced:
            self.notices.append(
                f"{self.plan.key}: kept: the requested outputs need an array that was dropped when the slide was "
                f"complete: {self._cost(again)}. Add --force {self.plan.key} to do it"
            )
            return "kept"
        return "todo"

    def _compare_pruned(self, manifest: Mapping[str, Any], *, forced: bool) -> RunState:
        """A pruned result is used as it is or, with ``forced``, made again from its slide."""
        if not self.damaged and self._is_up_to_date(manifest):
            return "complete"
        if not forced:
            why = f"{next(iter(self.damaged))} is damaged" if self.damaged else "it was made with other settings"
            self.notices.append(
                f"{self.plan.key}: kept: {why}, and parts that it takes to make it again were pruned. Add --force "
                f"{self.plan.key} to compute it from its slide"
            )
            return "kept"
        for name in (*self.damaged, ".work/damage.json"):
            remove(self.store.root / name)
        self.damaged = {}
        return "todo"

    def _is_up_to_date(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a complete result has this plan, and lacks exactly the arrays that the configuration drops.

        A pruned result may lack any part.
        """
        same = manifest["plan"]["hashes"] == dict(self.plan.hashes)
        return same and ("pruned" in manifest or unwanted_before(manifest) == unwanted(self.plan.config.outputs))

    def _stages_to_rerun(self) -> StagesToRerun:
        plan = self.plan
        return stages_to_rerun(self.working, plan.hashes, plan.config.outputs, plan.artifacts_left_out)

    def _cost(self, again: StagesToRerun) -> str:
        return again.cost(self.plan.blocks)

    def _mark_for_rerun(self) -> None:
        """Let stages run again whose dropped arrays are needed."""
        again = self._stages_to_rerun()
        if again.stages:
            self.notices.append(f"{self.plan.key}: an array that was dropped is needed again: {self._cost(again)}")
            mark_for_rerun(self.working, again)

    def _case_changed(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the slide's row of the cases table changed."""
        return self.plan.case is not None and manifest["plan"].get("case") != dict(self.plan.case)

    def _notice_changes(self, previous: Mapping[str, Any] | None) -> None:
        if previous is None:
            return
        changed = [stage for stage in NETWORK_STAGES if previous["hashes"].get(stage) != self.plan.hashes[stage]]
        if changed:
            self.notices.append(
                f"{self.plan.key}: changed since it was begun: {_difference(previous, self.plan)}; "
                f"{changed[0]} starts anew"
            )

    def _redo_after(self, stage: str) -> None:
        stages = list(self.plan.hashes)
        later = stages[stages.index(stage) + 1 :]
        self.notices.append(f"{self.plan.key}: {stage} was repaired to other bytes than before; redoing what follows")
        self.working.unstamp(later)
        for artifact in (artifact for name in later for artifact in STAGE[name].writes if artifact in ARRAYS):
            remove(self.working.root / entry_of(path_of(artifact)))
        for name in later:
            remove(self.working.work / name)

    # ---- what this run did --------------------------------------------------------------------------------------

    def _record(self, report: StageReport, seconds: float) -> None:
        line = {
            "stage": report.stage,
            "plan": self.plan.hashes[report.stage],
            "blocks": report.blocks,
            "computed": report.computed,
            "counts": report.counts,
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append_json(self.working.work / "history.jsonl", line)

    def _stage_records(self) -> dict[str, Any]:
        lines = read_json_lines(self.working.work / "history.jsonl")
        return {
            stage: {
                "facts": self.working.facts(stage),
                "runs": [line for line in lines if line["stage"] == stage and line["plan"] == plan],
            }
            for stage, plan in self.plan.hashes.items()
        }


def _difference(before: Mapping[str, Any], plan: SlidePlan) -> str:
    """What changed, in words: the slide, the model, the device or the configuration."""
    now = plan.summary()
    parts = []
    if before["facts"] != now["facts"] or before["hashes"].get("ingest") != now["hashes"].get("ingest"):
        parts.append("the slide, its resolution or the block")
    if before["model"]["sha256"] != now["model"]["sha256"]:
        old, new = (f"{model['name']} {model['sha256'][:8]}" for model in (before["model"], now["model"]))
        parts.append(f"the weights, {old} -> {new}")
    tta_before, tta = (model.get("tta", "none") for model in (before["model"], now["model"]))
    if tta_before != tta:
        parts.append(f"test-time augmentation, {tta_before} -> {tta}")
    for name in ("device", "precision"):
        if before["compute"][name] != now["compute"][name]:
            parts.append(f"{name}, {before['compute'][name]} -> {now['compute'][name]}")
    if before["config"].get("tissue") != now["config"].get("tissue"):
        parts.append("the tissue settings")
    drawn_before, drawn = ((summary.get("regions") or {}).get("digest") for summary in (before, now))
    if drawn_before != drawn:
        parts.append("the regions, all of which would be computed again")
    return ", ".join(parts) or "the code of a stage"


def slide_root(out: Path, key: str) -> Path:
    """The slide's folder in ``out``."""
    return out / key
