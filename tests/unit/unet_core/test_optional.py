"""Libraries of the extra ``train`` are imported where they are needed, and an error names them and the extra."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.methods import baselines
from pipeline.inference import predictor
from tests.unit.unet_core.training_runs import case
from unet_core.data.folds import FoldMember, FoldSettings, assign_folds
from unet_core.errors import MissingLibraryError
from unet_core.model_file.checkpoint import load, save
from unet_core.model_file.header import Weights, sha256
from unet_core.networks import meta_profile
from unet_core.networks.factory import build
from unet_core.networks.model_summary import parameters
from unet_core.spec import UNetSpec
from unet_core.training.baselines import otsu
from unet_core.training.loss import LossSettings, loss_for
from unet_core.training.metrics_log import MetricsLog

ROOT = Path(__file__).parents[3]
NESTED = UNetSpec(architecture="unet++", width=2, padding="same", norm="batch")
GATED = UNetSpec(architecture="attention", depth=1, width=2, padding="same", norm="batch")
INSTALL = r"pip install 'overtile\[train\]'"

Hide = Callable[[str], None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make a library unimportable."""

    def without(library: str) -> None:
        for name in [*sys.modules]:
            if name.partition(".")[0] == library:
                monkeypatch.setitem(sys.modules, name, None)
            elif name in ("unet_core.networks.monai_variants", "torch.utils.tensorboard"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)

    return without


@pytest.mark.parametrize("spec", [NESTED, GATED], ids=["unet++", "attention"])
def test_architectures_of_monai_need_monai(hide: Hide, tmp_path: Path, spec: UNetSpec) -> None:
    path = tmp_path / "model.safetensors"
    save(path, build(spec), {})
    weights = Weights(path, sha256(path))
    assert predictor.load_networks((weights,), "cpu", "fp32", "none").spec == spec
    assert parameters(spec) > 0
    hide("monai")
    meta_profile.trace.cache_clear()  # another test may have measured this spec
    for refused in (lambda: build(spec), lambda: load(path), lambda: parameters(spec)):
        with pytest.raises(MissingLibraryError, match=rf"{spec.architecture.replace('+', '.')}.*monai.*{INSTALL}"):
            refused()
    predictor._loaded.cache_clear()
    with pytest.raises(ModelError, match=INSTALL):
        predictor.load_networks((weights,), "cpu", "fp32", "none")
    assert build(UNetSpec(depth=1, width=2))


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal"])
def test_losses_of_monai_need_monai_and_cross_entropy_does_not(hide: Hide, name: str) -> None:
    hide("monai")
    spec = UNetSpec()
    with pytest.raises(MissingLibraryError, match=rf"loss\.{name}.*monai.*{INSTALL}"):
        loss_for(LossSettings.model_validate({"dice": 0.0, name: 1.0}), spec)
    plain = loss_for(LossSettings(dice=0.0), spec)
    assert float(plain(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), torch.ones(1, 4, 4))) > 0


def test_event_files_need_tensorboard(hide: Hide, tmp_path: Path) -> None:
    hide("tensorboard")
    with pytest.raises(MissingLibraryError, match=rf"tensorboard.*{INSTALL}"):
        MetricsLog(tmp_path, 0, 0)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("method", ["kfold", "grouped", "stratified"])
def test_drawing_folds_needs_scikit_learn_and_a_column_of_folds_does_not(hide: Hide, method: str) -> None:
    hide("sklearn")
    members = [FoldMember(str(number), str(number), stratum="any") for number in range(4)]
    with pytest.raises(MissingLibraryError, match=rf"folds.*sklearn.*{INSTALL}"):
        assign_folds(members, FoldSettings.model_validate({"method": method, "k": 2}))
    stated = [FoldMember(str(number), str(number), fold=number % 2) for number in range(4)]
    assert assign_folds(stated, FoldSettings()).method == "column"


def test_classifiers_of_pixels_need_scikit_learn_and_otsu_does_not(hide: Hide) -> None:
    hide("sklearn")
    assert otsu().of_image(np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match=rf"sklearn.*{INSTALL}"):
        baselines(("disc",), [case(0)])


def test_modules_are_importable_without_the_libraries_of_the_extra() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sorted((ROOT / "unet_core").rglob("*.py"))
        if path.stem not in ("__init__", "monai_variants")
    ]
    script = (
        "import importlib, sys\n"
        "sys.modules |= dict.fromkeys(('monai', 'sklearn', 'tensorboard'))\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
    )
    run = [sys.executable, "-c", script, *modules]
    done = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
