"""Selection of slides and models: weights of a cases table are pinned, and its content may be confidential."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.batch.batch import BatchRequest, plan_batch
from flows.batch.selection import pin_models, select_slides
from pipeline.config import InputSection, ModelSection, OutputsSection, RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.inference.ensemble import load_model
from tests.support.commands import CLASSES, CONTEXT, Command
from tests.support.faults.pictures import draw, write

NAME, OTHER = "KOWALSKI-Anna", "MUELLEROVA"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides in one folder, and two with the same name in other folders."""
    for name in (NAME, OTHER, "one/again", "two/again"):
        write(tmp_path / "slides" / f"{name}.tif", draw((64, 64), []))
    return tmp_path / "slides"


def config_of(table: Path, text: str, redact: Path | None = None) -> RunConfig:
    table.write_text(text)
    return RunConfig(
        model=ModelSection(weights=str(CLASSES)),
        input=InputSection(cases=str(table)),
        outputs=OutputsSection(redact=None if redact is None else str(redact)),
    )


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_of_the_cases_table_are_pinned(slides: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(CONTEXT, tmp_path / "own.safetensors"))
    config = config_of(tmp_path / "cases.csv", f"slide,model\n{OTHER}.tif,own.safetensors\n{slides}/{NAME}.tif,\n")
    pinned = pin_models(config)
    assert pinned == {str(own): load_model(ModelSection(weights=str(CONTEXT))).sha256}
    request = BatchRequest(inputs=(slides,), out=tmp_path / "out", config=config, pinned=pinned)
    assert plan_batch(request, writing=False).plans.keys() == {NAME, OTHER}
    shutil.copy(CLASSES, own)
    with pytest.raises(ModelError, match=r"cases.csv, line 2: own: expected the weights that were scheduled, .* again"):
        plan_batch(request, writing=False)
    named_since = request.model_copy(update={"pinned": {}})
    assert len(plan_batch(named_since, writing=False).plans) == 2, (
        "a model that could not be pinned is that of the table"
    )


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{NAME}.tif\n{OTHER}.tif\n", 1),
        (f"slide,{NAME},{NAME}\n{OTHER}.tif,,\n", 1),
        (f"slide,\n{OTHER}.tif,{NAME}\n", 2),
        (f"slide,mpp\n{OTHER}.tif,{NAME}\n", 2),
        (f"slide,priority\n{OTHER}.tif,{NAME}\n", 2),
        (f"slide\n{OTHER}\n{OTHER}.tif\n", 3),
        ("slide\n\nagain.tif\n", 3),
    ],
    ids=["no header", "column twice", "nameless column", "resolution", "priority", "slide twice", "two slides"],
)
def test_invalid_table_is_quoted_only_without_redaction(slides: Path, tmp_path: Path, text: str, line: int) -> None:
    for redact in (None, tmp_path / "names.json"):
        config = config_of(tmp_path / "cases.csv", text, redact)
        with pytest.raises(ConfigError, match=f"cases.csv, line {line}: ") as refused:
            select_slides((slides,), tmp_path / "out", config)
        assert any(name in str(refused.value) for name in (NAME, OTHER, "again")) == (redact is None), refused.value


def test_suggestions_are_given_only_without_redaction(slides: Path, tmp_path: Path) -> None:
    for redact in (None, tmp_path / "names.json"):
        config = config_of(tmp_path / "cases.csv", f"slide\n{NAME[:-1]}.tif\n", redact)
        (missing,) = select_slides((slides,), tmp_path / "out", config)
        assert f"no slide '{'slide-' if redact else NAME[:-1]}" in str(missing.candidate.refused)
        assert (f"{NAME}.tif" in str(missing.candidate.refused)) == (redact is None)


def test_command_with_redaction_quotes_nothing(slides: Path, tmp_path: Path, overtile_alone: Command) -> None:
    (tmp_path / "cases.csv").write_text(f"slide\n{OTHER}\n{OTHER}.tif\n")
    options = ("--cases", tmp_path / "cases.csv", "--redact", tmp_path / "names.json")
    ran = overtile_alone.segment(slides, tmp_path / "out", *options)
    assert ran.code == 2
    assert "cases.csv, line 3: " in ran.only_error
    assert OTHER not in ran.transcript
