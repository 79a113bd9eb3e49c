"""Training configuration: defaults, example files and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config import load_as
from pipeline.errors import ConfigError
from unet_core.spec import UNetSpec
from unet_core.training.config import CONFIGURABLE, TrainConfig

CONFIGS = Path(__file__).parents[4] / "configs"
EXAMPLES = sorted(CONFIGS.glob("train*.yaml"))


def load(path: Path | None = None, *overrides: str) -> TrainConfig:
    return load_as(TrainConfig, path, overrides)


def plain(value: Any) -> Any:
    """As YAML represents it: lists, no tuples."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def test_the_example_spells_out_every_key_with_its_default() -> None:
    written = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    network = written.pop("network")
    assert network == {"preset": "compact", "start": None} | dict.fromkeys(CONFIGURABLE)
    defaults = plain(TrainConfig().model_dump())
    defaults.pop("network")
    defaults["augment"]["dab"] = 0.0  # not stored without effect
    assert written == defaults
    assert load(CONFIGS / "train.yaml").network.spec(3, ["a"]) == TrainConfig().network.spec(3, ["a"])


def test_every_key_of_the_example_is_commented() -> None:
    text = (CONFIGS / "train.yaml").read_text()
    assert [line for line in text.splitlines() if line.startswith("  ") and "#" not in line] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    load(path)


def test_the_paper_s_example_has_the_settings_of_the_paper() -> None:
    recipe = load(CONFIGS / "train_paper.yaml")
    assert recipe.network.spec(1, ["cell"]).channels == (64, 128, 256, 512, 1024)
    assert recipe.network.spec(1, ["cell"]).dropout == 0.5
    assert (recipe.optimiser.kind, recipe.optimiser.momentum, recipe.sampling.batch) == ("sgd", 0.99, 1)
    assert (recipe.augment.elastic_px, recipe.sampling.separation, recipe.sampling.separation_sigma_px) == (10, 10, 5)


@pytest.mark.parametrize(
    ("override", "documented"),
    [
        ("optimiser.rat=1", r"optimiser\.rat.*did you mean 'rate'"),
        ("optimizer.rate=1", r"optimizer.*did you mean 'optimiser'"),
        ("network.dept=3", r"network\.dept.*did you mean 'depth'"),
        ("network.depth=9", r"network: .*depth"),
        ("network.preset=tini", r"tini"),
        ("network.stain_normalisation=macenco", r"network: .*'macenko'"),
        ("schedule.minutes=null", r"schedule.*neither"),
        ("schedule.minutes=0", r"schedule\.minutes"),
        ("optimiser.rate='0.1'", r"optimiser\.rate"),
        ("folds.hold_back=some", r"folds\.hold_back"),
        ("stopping.monitor=auc", r"stopping\.monitor"),
        ("compute.seed=-1", r"compute\.seed"),
    ],
)
def test_errors_name_the_invalid_key(override: str, documented: str) -> None:
    with pytest.raises(ConfigError, match=documented):
        load(None, override)


def test_changes_replace_single_fields_of_the_preset() -> None:
    spec = load(None, "network.preset=paper", "network.width=8", "network.mpp=0.5").network.spec(2, ["a", "b"])
    assert (spec.width, spec.dropout, spec.mpp, spec.in_channels, spec.classes) == (8, 0.5, 0.5, 2, 3)
    assert spec.class_names == ("a", "b")


def test_every_configurable_field_of_a_network_is_accepted() -> None:
    found = {"in_channels", "classes", "class_names", "colours", "mean", "std", "threshold", "min_area_um2"}
    found |= {"stain_mean", "stain_covariance", "stain_target", "maps", "objects"}
    assert set(UNetSpec.model_fields) - found == set(CONFIGURABLE)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().schedule.steps = 3  # type: ignore[misc]  # that is the point


def test_time_ends_a_run_that_has_no_number_of_steps() -> None:
    schedule = load(None, "schedule.minutes=2").schedule
    assert schedule.progress(10**6, 60.0) == 0.5
    assert schedule.progress(0, 1e9) == 1.0
    assert schedule.progress(0, 30.0, reserve_s=60.0) == 0.5
    assert load(None, "schedule.steps=10").schedule.progress(5, 1e9) == 0.5
