"""The evaluate command on synthetic images: its output is correct and reproducible."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from skimage import io

from pipeline.config import ModelSection
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.image_scorer import ImageScorer
from pipeline.evaluation.methods import Method, networks, probability_reader
from pipeline.geometry import Box, TileGrid
from pipeline.inference.ensemble import load_model, names_of
from pipeline.inference.predictor import LoadedNetwork, Predictor
from tests.support.commands import Command, files_of
from tests.unit.flows.dark_discs import (
    PATIENTS,
    SPEC,
    draw_discs,
    evaluate_arguments,
    objects_by_hand,
    save_dark_network,
    save_discs,
)
from unet_core.data.sampler import AnnotatedImage
from unet_core.model_file.checkpoint import save
from unet_core.model_file.header import sha256
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_discs(tmp_path_factory.mktemp("discs"))
    save_dark_network(root / "sharp.safetensors", 4.0)
    save_dark_network(root / "dull.safetensors", 1.2)
    return root


@pytest.fixture(scope="module")
def compared(folder: Path, overtile_alone: Command) -> tuple[dict[str, Any], str, Path]:
    """Two networks on all images: the record, the printed text, and the report folder."""
    out = folder / "report"
    models = (folder / "sharp.safetensors", folder / "dull.safetensors")
    ran = overtile_alone.run(*evaluate_arguments(folder, out, "--model", *models, "--cases", folder / "cases.csv"))
    assert ran.code == 0, ran.transcript
    return json.loads((out / "metrics.json").read_text()), ran.stdout, out


def hd95_by_hand(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """HD95 in px from all pairs of outline pixels; no object touches the image border."""
    outlines = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) for mask in (found, true)]
    apart = np.hypot(*(outlines[0][:, None] - outlines[1][None]).transpose(2, 0, 1))
    return float(max(np.percentile(apart.min(axis=axis), 95) for axis in (0, 1)))


def test_scores_equal_hand_computed_scores(folder: Path, compared: tuple[dict[str, Any], str, Path]) -> None:
    record, output, out = compared
    names = [str(i) for i in range(len(PATIENTS))]
    for model, weight in (("sharp", 4.0), ("dull", 1.2)):
        rows = {row["image"]: row for row in record["cases"] if row["model"] == model}
        both = total = 0
        for name in names:
            found, true = objects_by_hand(folder, name, weight) > 0, io.imread(folder / "masks" / f"{name}.png") > 0
            assert rows[name]["dice"] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))
            assert rows[name]["hd95"] == pytest.approx(0.5 * hd95_by_hand(found, true))
            both, total = both + (found & true).sum(), total + found.sum() + true.sum()
        (scores,) = (one for one in record["models"] if one["name"] == model)
        assert scores["pooled"]["dice"] == pytest.approx(2 * both / total)
        assert scores["intervals"]["dice"][0] <= scores["pooled"]["dice"] <= scores["intervals"]["dice"][1]
        assert scores["sha256"] == sha256(folder / f"{model}.safetensors")
    assert record["pooled"] == record["models"][0]["pooled"]
    assert {"dice", "iou", "pixel_accuracy", "precision", "recall", "hd95", "surface_dice", "ece"} < set(
        record["pooled"]
    )
    assert {"f1_50", "f1_75", "f1_90", "pq", "aji"} < set(record["pooled"])
    assert "v_rand" not in record["pooled"]
    assert record["settings"]["unit"] == "um"
    assert record["settings"]["surface_tolerance"] == 1.0
    assert (record["settings"]["images"], record["settings"]["patients"]) == (7, 6)
    with (out / "cases.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["model"], line["image"]) for line in lines] == [(m, n) for m in ("sharp", "dull") for n in names]
    assert float(lines[3]["dice"]) == record["cases"][3]["dice"]
    assert f"{record['pooled']['dice']:.3f}" in output


def test_two_models_are_compared_by_patient(compared: tuple[dict[str, Any], str, Path]) -> None:
    record, output, _ = compared
    found = {one["score"]: one for one in record["comparisons"]}
    assert set(found) == {"dice", "f1_50"}
    assert (found["dice"]["first"], found["dice"]["second"], found["dice"]["patients"]) == ("sharp", "dull", 6)
    difference = record["models"][1]["pooled"]["dice"] - record["models"][0]["pooled"]["dice"]
    assert found["dice"]["difference"] == pytest.approx(difference)
    assert found["dice"]["conclusion"] in output


def test_panels_show_image_annotation_prediction_and_errors(compared: tuple[dict[str, Any], str, Path]) -> None:
    record, _, out = compared
    rows = {row["image"]: row["dice"] for row in record["cases"] if row["model"] == "sharp"}
    panels = record["panels"]
    assert rows[panels["best.png"]] == max(rows.values())
    assert rows[panels["worst.png"]] == min(rows.values())
    assert rows[panels["median.png"]] == sorted(rows.values())[3]
    picture = io.imread(out / "panels" / "worst.png")
    image, labels = draw_discs(int(panels["worst.png"]))
    assert picture.shape == (48, 4 * 56 + 3 * 6, 3)
    assert np.array_equal(picture[:, :56], image)
    errors = picture[:, -56:]
    found = objects_by_hand(out.parent, panels["worst.png"], 4.0) > 0
    for mask, colour in (
        (found & (labels > 0), (200, 200, 200)),
        (found & (labels == 0), (213, 94, 0)),
        (~found & (labels > 0), (0, 114, 178)),
        (~found & (labels == 0), (255, 255, 255)),
    ):
        assert (errors[mask] == colour).all()


def test_same_command_writes_identical_bytes(
    folder: Path, overtile_alone: Command, compared: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    """Also with images read on demand instead of held in memory."""
    _, _, out = compared
    models = (folder / "sharp.safetensors", folder / "dull.safetensors")
    ran = overtile_alone.run(
        *evaluate_arguments(
            folder, tmp_path, "--model", *models, "--cases", folder / "cases.csv", "--set", "data.memory_gb=0"
        )
    )
    assert ran.code == 0, ran.transcript
    first, second = ({name: state.sha256 for name, state in files_of(folder).items()} for folder in (out, tmp_path))
    assert first == second
    assert {name for name in first if not name.startswith(("figures/", "maps/"))} == {
        *("metrics.json", "cases.csv", "report.html"),
        *(f"panels/{rank}.png" for rank in ("best", "median", "worst")),
    }


def test_folds_select_scored_images_and_training_images_of_baselines(
    folder: Path, overtile_alone: Command, tmp_path: Path
) -> None:
    more = (
        "--model",
        folder / "sharp.safetensors",
        "--cases",
        folder / "cases.csv",
        "--folds",
        "0",
        "1",
        "--baselines",
    )
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path, *more))
    assert ran.code == 0, ran.transcript
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert [model["name"] for model in record["models"]] == ["sharp", "otsu", "random forest", "linear SVM"]
    assert {row["image"] for row in record["cases"]} == set("01245")
    assert "of 2 training images" in record["models"][2]["how"]
    pooled = {model["name"]: model["pooled"] for model in record["models"]}
    assert all(pooled[name]["dice"] > 0.9 for name in ("otsu", "random forest", "linear SVM"))
    assert [name for name in pooled if "ece" in pooled[name]] == ["sharp", "random forest"]
    assert record["models"][1]["intervals"] == {}
    assert "nothing can be concluded" in record["comparisons"][0]["conclusion"]
    assert "no intervals: patients: 4" in ran.stdout


def test_unknown_folds_are_rejected(folder: Path, overtile_alone: Command, tmp_path: Path) -> None:
    more = ("--model", folder / "sharp.safetensors", "--cases", folder / "cases.csv", "--folds", "7")
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path / "out", *more))
    assert ran.code == 2, ran.transcript
    assert "expected existing folds: 0, 1, 2" in ran.only_error
    assert not (tmp_path / "out").exists()


def methods_of(*names: str | Path, tta: str = "none") -> list[Method]:
    models = [load_model(ModelSection(weights=names_of(str(name)), tta=tta)) for name in names]
    return networks(models, "cpu")


def test_incomparable_models_are_rejected(folder: Path, tmp_path: Path) -> None:
    sharp = folder / "sharp.safetensors"
    with pytest.raises(ModelError, match="no model 'absent'"):
        methods_of(sharp, "absent")
    save(tmp_path / "other.safetensors", UNet(UNetSpec(depth=1, width=2, classes=3)).eval(), {})
    with pytest.raises(ConfigError, match="one list of classes"):
        methods_of(sharp, tmp_path / "other.safetensors")
    shutil.copy(sharp, tmp_path / "sharp.safetensors")
    with pytest.raises(ConfigError, match="sharp twice"):
        methods_of(sharp, tmp_path / "sharp.safetensors")
    (method,) = methods_of(sharp)
    with pytest.raises(ConfigError, match="of 3 channels"):
        method.answers(np.zeros((4, 8, 8), np.uint8))


def test_models_of_one_class_are_comparable_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"class_names": ("nucleus",)})
    save(tmp_path / "nucleus.safetensors", UNet(spec).eval(), {})
    sharp, other = methods_of(folder / "sharp.safetensors", tmp_path / "nucleus.safetensors")
    assert SPEC.class_names != spec.class_names
    assert sharp.config.class_names == other.config.class_names == SPEC.class_names


# ---- agreement with segment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two networks that depend on the orientation of a tile, with different thresholds and minimum areas."""
    root = tmp_path_factory.mktemp("pair")
    for seed, (threshold, area) in enumerate(((0.4, 1.0), (0.5, 2.0))):
        torch.manual_seed(seed)
        model = UNet(SPEC.model_copy(update={"threshold": threshold, "min_area_um2": area}))
        with torch.no_grad():
            model.head.bias[:] = torch.tensor([0.0, 0.3])
        save(root / f"{seed}.safetensors", model.eval(), {})
    return root / "0.safetensors", root / "1.safetensors"


@pytest.mark.long
def test_mask_equals_the_mask_of_segment(
    pair: tuple[Path, Path], overtile: Command, overtile_alone: Command, tmp_path: Path
) -> None:
    """An ensemble of two networks with eightfold test-time augmentation; both settings change the mask."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image, labels = draw_discs(3)
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "images" / "a.tif", image, photometric="rgb", **resolution)
    io.imsave(tmp_path / "masks" / "a.png", labels, check_contrast=False)
    ensemble = f"{pair[0]}+{pair[1]}"
    out = tmp_path / "report"
    ran = overtile_alone.run(*evaluate_arguments(tmp_path, out, "--model", ensemble, pair[0], "--set", "model.tta=d4"))
    assert ran.code == 0, ran.transcript
    assert "mean of 2 networks and 8 flips and quarter turns, threshold 0.45, objects of at least 6 px" in ran.stdout
    picture = io.imread(out / "panels" / "best.png")[:, 2 * (56 + 6) :][:, :56]
    found = (picture != 255).any(axis=2)
    weights = ["--model", pair[1], "model.tta=d4", "tissue=null"]
    segmented = overtile.segment(tmp_path / "images" / "a.tif", tmp_path / "out", *weights, model=pair[0])
    assert segmented.code == 0, segmented.transcript
    objects = zarr.open_array(tmp_path / "out" / "a" / "slide.ome.zarr" / "labels" / "objects" / "0", mode="r")[:]
    assert np.array_equal(found, objects > 0)

    case = AnnotatedImage("a", np.ascontiguousarray(image.transpose(2, 0, 1)), labels.astype(np.int32))
    for (method,) in (methods_of(ensemble), methods_of(pair[0], tta="d4")):
        scorer = ImageScorer(method.answers(case.image_CYX), case, method.config)
        scorer.run()
        assert not np.array_equal(scorer.found_YX > 0, found), "the setting makes no difference here"


@pytest.mark.long
def test_enlarged_image_with_resolution_is_scored_as_the_original(
    folder: Path, overtile_alone: Command, tmp_path: Path
) -> None:
    records = []
    for times in (1, 2):
        root = tmp_path / str(times)
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        image, labels = (part.repeat(times, axis=0).repeat(times, axis=1) for part in draw_discs(3))
        resolution = {"resolution": (20000 * times,) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(root / "images" / "a.tif", image, photometric="rgb", **resolution)
        io.imsave(root / "masks" / "a.png", labels, check_contrast=False)
        ran = overtile_alone.run(*evaluate_arguments(root, root / "out", "--model", folder / "sharp.safetensors"))
        assert ran.code == 0, ran.transcript
        records.append(json.loads((root / "out" / "metrics.json").read_text()))
    assert records[0]["cases"] == records[1]["cases"]
    assert "resampled to the network's 0.5" in " ".join(records[1]["settings"]["said"])
    other = tmp_path / "other.safetensors"
    save(other, UNet(SPEC.model_copy(update={"mpp": 0.25})).eval(), {})
    ran = overtile_alone.run(
        *evaluate_arguments(tmp_path / "1", tmp_path / "o", "--model", folder / "sharp.safetensors", other)
    )
    assert ran.code == 2, ran.transcript
    assert "expected networks of one resolution" in ran.only_error


def test_ensemble_is_named_by_its_networks(pair: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    one, other = methods_of(f"{pair[0]}+{pair[1]}", folder / "sharp.safetensors")
    assert sorted(one.name.split(" + ")) == ["0", "1"]
    assert other.name == "sharp"
    odd = tmp_path / "a+b.safetensors"
    shutil.copy(pair[0], odd)
    assert [method.name for method in methods_of(odd)] == ["a+b"]
    with pytest.raises(ConfigError, match=r"0 \+ 1 twice|1 \+ 0 twice"):
        methods_of(f"{pair[0]}+{pair[1]}", f"{pair[1]}+{pair[0]}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "neither --model nor --baselines"),
        (("--model", "nuclei@1", "--set", "model.weights=a"), r"unknown key 'model\.weights': known: tta"),
        (("--model", "nuclei@1", "--set", "objects.threshold=0.3"), "unknown key 'objects'"),
        (("--baselines", "--set", "data.maks=labels"), "did you mean 'mask'"),
    ],
)
def test_invalid_evaluation_requests_are_rejected(
    folder: Path, overtile_alone: Command, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path / "out", *more))
    assert ran.code == 2, ran.transcript
    assert re.search(message, ran.only_error)


def test_otsu_needs_no_model(folder: Path, overtile_alone: Command, tmp_path: Path) -> None:
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path, "--baselines"))
    assert ran.code == 0, ran.transcript
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert [(model["name"], model["pooled"]["dice"] > 0.9) for model in record["models"]] == [("otsu", True)]
    assert len(record["cases"]) == len(PATIENTS)


def test_tiled_prediction_equals_the_whole_pass(tmp_path: Path) -> None:
    """An image evaluated in blocks and tiles equals one pass; the network never gets more than a tile."""
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = UNet(UNetSpec(depth=2, width=4)).eval()
    sizes: list[int] = []

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(x_NCHW.shape[-1])
        return model(x_NCHW)

    network = Predictor((LoadedNetwork(forward, model.spec),))
    image = np.random.default_rng(0).integers(0, 256, (3, 150, 203), np.uint8)
    whole = probability_reader(network, image)(Box(0, 0, 150, 203))
    assert len(sizes) == 1
    sizes.clear()
    tiled = np.zeros_like(whole)
    answer = probability_reader(network, image, tile_px=32)
    for tile in TileGrid(Box(0, 0, 150, 203), 64):
        tiled[(slice(None), *tile.core.slices)] = answer(tile.core)
    torch.set_num_threads(threads)
    assert np.array_equal(tiled, whole)
    assert set(sizes) == {model.shape.read_px(32)}
