"""Pruned results.

Nothing is recomputed unless forced; then the result is complete again.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import zarr
from ome_zarr_models.v05 import Image as OmeImage
from PIL import Image
from rich.console import Console

from flows.batch.cleanup import delete, prune, read_age
from flows.batch.history import BatchHistory
from flows.batch.status import Status
from flows.cli.inspect_output import show_record
from flows.reports.batch_html import SIDE_PX, content_of
from flows.reports.inspect import inspect_stores
from pipeline.errors import ConfigError
from pipeline.exports.formats import missing_parts
from pipeline.exports.vector_formats import CompleteResult
from pipeline.runs.prune import prune_slide
from pipeline.runs.slide_run import SlideRun
from pipeline.runs.verify import verify_slide
from pipeline.storage.lock import slide_lock
from pipeline.storage.slide_store import SlideStore
from tests.resume.test_dropped import assert_consistent, result
from tests.support.commands import CLASSES, Command, is_complete
from tests.support.make_store import tree_bytes
from tests.support.run_slide import Plan, computed, plans_of_discs, run

KEEP = frozenset({"tables", "overview"})
LARGER = "objects.min_area_um2=40"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slide")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """Plans for one generated slide of two classes in three blocks, with any settings."""
    return plans_of_discs(folder, (300, 1100))


@pytest.fixture(scope="module")
def whole(plan: Plan, folder: Path) -> Path:
    """A complete result, to be copied."""
    run(plan(), folder / "whole")
    return folder / "whole"


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of the result in an output folder."""
    return Path(shutil.copytree(whole, tmp_path / "out" / "discs"))


@pytest.mark.parametrize("keep", [KEEP, frozenset({"labels", "image"})], ids=["kept", "labels-image"])
def test_the_same_settings_compute_nothing(plan: Plan, root: Path, keep: frozenset[str]) -> None:
    prune_slide(SlideStore(root), keep)
    before = tree_bytes(root)
    for settings in ((), ("outputs.image=drop",), ("outputs.probability=drop",)):
        slide = SlideRun(plan(*settings), SlideStore(root))
        assert slide.is_complete()
        assert slide.prepare() == slide.prepare(forced=True) == "complete"
    assert tree_bytes(root) == before


def test_labels_and_probability_open_without_the_image(root: Path) -> None:
    prune_slide(SlideStore(root), {"labels", "probability"})
    for group in ("labels/objects", "probability"):
        opened = zarr.open_group(root / "slide.ome.zarr" / group, mode="r")
        assert len(OmeImage.from_zarr(opened).attributes.ome.multiscales[0].datasets) == 3


def test_changed_settings_keep_pruned_result_unless_forced(plan: Plan, root: Path, tmp_path: Path) -> None:
    prune_slide(SlideStore(root), KEEP | {"labels"})
    before = tree_bytes(root)
    kept = SlideRun(plan(LARGER), SlideStore(root))
    assert kept.prepare() == "kept"
    assert "discs: kept: it was made with other settings" in kept.notices[0]
    assert "Add --force discs" in kept.notices[0]
    assert tree_bytes(root) == before
    assert computed(run(plan(LARGER), root, forced=True))["predict"] == 3
    run(plan(LARGER), tmp_path / "fresh")
    assert result(root) == result(tmp_path / "fresh")
    assert assert_consistent(root)


def test_damaged_pruned_result_is_kept_unless_forced(plan: Plan, root: Path, whole: Path) -> None:
    prune_slide(SlideStore(root), KEEP | {"labels"})
    shard = root / "slide.ome.zarr" / "labels" / "objects" / "0" / "c" / "0" / "1"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert [damage.path for damage in verify_slide(SlideStore(root)) or []] == [shard.relative_to(root).as_posix()]
    kept = SlideRun(plan(), SlideStore(root))
    assert not kept.is_complete()
    assert kept.prepare() == "kept"
    assert "labels/objects/0/c/0/1 is damaged, and parts" in kept.notices[0]
    run(plan(), root, forced=True)
    assert result(root) == result(whole)
    assert assert_consistent(root)


# ---- commands on an output folder --------------------------------------------------------------------------------


def test_only_what_is_old_enough_and_complete_is_pruned_and_it_is_noted(root: Path) -> None:
    out = root.parent
    (out / "begun" / ".work").mkdir(parents=True)
    shutil.copytree(root, out / "held")
    assert [one.key for one in prune(out, read_age("1h"), KEEP, dry=False)] == ["begun"]
    assert not (out / "history.jsonl").exists(), "nothing was to be pruned"
    before = tree_bytes(out)
    dry = list(prune(out, read_age("0h"), KEEP, dry=True))
    assert tree_bytes(out) == before
    assert [(one.key, one.state) for one in dry] == [("begun", "left alone"), ("discs", "pruned"), ("held", "pruned")]
    files = json.loads((root / "manifest.json").read_bytes())["files"]
    gone = {name: entry["size"] for name, entry in files.items() if name not in ("objects.parquet", "overview.png")}
    assert dry[1].bytes == sum(gone.values()) > 0
    with slide_lock(out / "held" / ".work"):
        records = {one.key: one for one in prune(out, read_age("0h"), KEEP, dry=False)}
    assert (records["discs"].state, records["discs"].bytes) == ("pruned", dry[1].bytes)
    assert records["held"].state == "left alone"
    assert "is being worked on" in records["held"].cause
    assert [name for name in gone if (root / name).exists()] == []
    assert {name for name in gone if not (out / "held" / name).exists()} == set()
    (line,) = BatchHistory.read(out).lines
    assert (line["event"], line["keys"], line["keep"]) == ("prune", ["discs", "held"], ["overview", "tables"])


def test_readers_of_results_report_pruned_parts(root: Path) -> None:
    list(prune(root.parent, read_age("0h"), KEEP, dry=False))
    (record,) = inspect_stores(root)
    assert record["state"] == "complete"
    assert record["pruned"]["parts"] == ["geojson", "labels", "probability", "tissue", "image"]
    console = Console(record=True, width=200, color_system="truecolor")
    show_record(record, console)
    assert "geojson, labels, probability, tissue, image; 0." in console.export_text()
    ((row, picture),) = content_of(root.parent)["pictures"]
    assert row["key"] == "discs"
    assert max(Image.open(io.BytesIO(picture.jpeg)).size) == SIDE_PX, "a thumbnail of the overview"
    found = CompleteResult.open(SlideStore(root))
    assert missing_parts(found, ["csv"]) == ""
    assert missing_parts(found, ["csv", "ome-tiff"]) == "labels, probability"
    assert missing_parts(found, ["geojson"]) == "labels"


def test_a_deleted_slide_is_computed_again_and_forgotten(plan: Plan, root: Path) -> None:
    out = root.parent
    shutil.copytree(root, root / "nested" / "below")
    (root / "exports").mkdir()
    (root / "exports" / "objects.csv").write_text("a copy")
    line = {"event": "ended", "when": "2026-01-01", "run": "1", "not_complete": {"discs": {"state": "failed"}}}
    began = {"event": "began", "when": "2026-01-01", "run": "1", "command": ["overtile"], "who": "", "host": ""}
    (out / "history.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in (began, line)))
    with pytest.raises(ConfigError, match=r"dics: expected the key of a slide in .*, such as discs"):
        list(delete(out, ["dics"], dry=False))
    before = tree_bytes(out)
    (dry,) = delete(out, ["discs"], dry=True)
    assert tree_bytes(out) == before
    (deleted,) = delete(out, ["discs"], dry=False)
    assert deleted == dry
    own = {name: content for name, content in before.items() if name.startswith("discs/") and "nested" not in name}
    assert deleted.bytes == sum(map(len, own.values()))
    assert deleted.cause == f"{plan().slide} is still there: the next run over it computes it again"
    assert {name for name in tree_bytes(out) if name != "history.jsonl"} == {n for n in before if n not in own} - {
        "history.jsonl"
    }
    assert SlideRun(plan(), SlideStore(root)).prepare() == "todo"
    shutil.rmtree(root / ".work")
    (root / "nested" / "below" / ".work" / "damage.json").unlink(missing_ok=True)
    assert [slide.key for slide in Status.of(out).slides] == ["discs/nested/below"], "deleted slides are not reported"
    list(delete(out, ["discs/nested/below"], dry=False))
    assert list(out.iterdir()) == [out / "history.jsonl"]


def test_prune_and_delete_commands(plan: Plan, root: Path, overtile_alone: Command) -> None:
    out = root.parent
    ran = overtile_alone.run("prune", out, "--older-than", "0d", "--keep", "tables,overview")
    assert ran.code == 0, ran.transcript
    assert "pruned  discs  " in ran.stdout
    ran = overtile_alone.segment(plan().slide, out, model=CLASSES)
    assert ran.code == 0, ran.transcript
    assert "1 of 1 slides complete; 0 blocks computed, 0 network calls" in ran.stdout
    ran = overtile_alone.run("delete", out, "discs", "--dry-run")
    assert ran.code == 0, ran.transcript
    assert "would be removed; 0 left alone" in ran.stdout
    assert is_complete(root)
    ran = overtile_alone.run("prune", out, "--older-than", "30", "--keep", "tables")
    assert ran.code == 2
    assert "--older-than 30: expected a number and h, d or w, such as 30d" in ran.only_error
