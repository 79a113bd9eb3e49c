"""The evaluate command on images with dots, and on models whose objects are split at seeds."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage import io

from pipeline.config import ModelSection
from pipeline.evaluation.image_scorer import ImageScorer
from pipeline.evaluation.methods import networks
from pipeline.inference.ensemble import load_model
from pipeline.runs.segment_image import segment_image
from tests.support.commands import Command
from tests.unit.flows.dark_discs import PATIENTS, evaluate_arguments, objects_by_hand, save_dark_network, save_discs
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.score_table import OBJECTS, Table
from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import to_input
from unet_core.spec import ObjectSettings, UNetSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_discs(tmp_path_factory.mktemp("discs"))
    save_dark_network(root / "sharp.safetensors", 4.0)
    return root


def test_objects_of_a_model_with_seeds_are_those_of_segment(tmp_path: Path) -> None:
    """Labels of ``segment`` as annotation, in many blocks: each object is found again to the pixel."""
    torch.manual_seed(3)
    seeds = ObjectSettings(method="seeds", source="centre", depth=0.03, max_area_um2=60.0)
    maps = {"maps": ("distance", "centre"), "objects": seeds, "min_area_um2": 2.5, "threshold": 0.5}
    model = UNet(UNetSpec(depth=1, width=4, mpp=0.5, class_names=("disc",), **maps)).eval()
    noise = ndimage.gaussian_filter(np.random.default_rng(4).standard_normal((190, 230, 3)), (2, 2, 0))
    image = np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)
    with torch.no_grad():  # logits of about -1 to 1 around the threshold
        logits = model(to_input(torch.from_numpy(image).permute(2, 0, 1), model.spec))[0]
        for channel in range(4):
            model.head.weight[channel] /= logits[channel].std()
            model.head.bias[channel] = -float(logits[channel].mean() / logits[channel].std())
        model.head.bias[1] -= 0.5
    path = tmp_path / "seeds.safetensors"
    save(path, model, {})
    labels, components = (
        np.asarray(segment_image(image, str(path), mpp=0.5, precision="fp32", method=method).labels)
        for method in ("auto", "components")
    )
    assert len(np.unique(labels)) > len(np.unique(components)) > 10, "some objects are split"
    case = AnnotatedImage("a", np.ascontiguousarray(image.transpose(2, 0, 1)), labels.astype(np.int32))
    (method,) = networks([load_model(ModelSection(weights=(str(path),)))], "cpu")
    scorer = ImageScorer(method.answers(case.image_CYX), case, method.config, block_px=64)
    scores = Table.of([scorer.run().classes[0]])
    assert scores.sums[OBJECTS][0, :2].tolist() == [labels.max(), labels.max()]
    assert scores.scores()["pq"][0] == scores.scores()["aji"][0] == scores.scores()["centre_f1"][0] == 1
    assert np.array_equal(scorer.found_YX > 0, labels > 0)
    assert "split by the map centre (depth 0.03), objects of at least 10 and at most 240 px" in method.how


def test_images_with_dots_are_scored_by_centres(folder: Path, overtile_alone: Command, tmp_path: Path) -> None:
    """Dots for four of seven images: centres of all, pixels of the other three, by hand; panels show the dots."""
    shutil.copytree(folder / "masks", tmp_path / "masks")
    within, rows, outlined = 1.5 / 0.5, {}, []
    for name in map(str, range(len(PATIENTS))):
        found, true = objects_by_hand(folder, name, 4.0), io.imread(folder / "masks" / f"{name}.png")
        a, b = (np.array(ndimage.center_of_mass(ids > 0, ids, np.unique(ids[ids > 0]))) for ids in (found, true))
        if int(name) < 4:
            (tmp_path / "masks" / f"{name}.png").unlink()
            b = np.rint(b)
            lines = ["x,y", *(f"{x:.0f},{y:.0f}" for y, x in b)]
            (tmp_path / "masks" / f"{name}.csv").write_text("\n".join(lines))
        else:
            outlined.append((found > 0, true > 0))
        near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) <= within
        rows[name] = int(near[linear_sum_assignment(~near)].sum()), len(a), len(b)
    out = tmp_path / "out"
    arguments = evaluate_arguments(folder, out, "--model", folder / "sharp.safetensors", "--within-um", "1.5")
    arguments[arguments.index("--masks") + 1] = tmp_path / "masks"
    ran = overtile_alone.run(*arguments, "--cases", folder / "cases.csv")
    assert ran.code == 0, ran.transcript
    record = json.loads((out / "metrics.json").read_text())
    for row in record["cases"]:
        matched, predicted, annotated = rows[row["image"]]
        assert row["centre_f1"] == pytest.approx(2 * matched / (predicted + annotated))
        assert row["centre_precision"] == pytest.approx(matched / predicted)
        assert row["centre_recall"] == pytest.approx(matched / annotated)
        assert ("dice" in row) == (int(row["image"]) >= 4)
    pooled, (matched, predicted, annotated) = record["pooled"], map(sum, zip(*rows.values(), strict=True))
    assert pooled["centre_f1"] == pytest.approx(2 * matched / (predicted + annotated))
    both, total = sum((a & b).sum() for a, b in outlined), sum(a.sum() + b.sum() for a, b in outlined)
    assert pooled["dice"] == pytest.approx(2 * both / total)
    low, high = record["models"][0]["intervals"]["centre_f1"]
    assert low <= pooled["centre_f1"] <= high
    assert record["models"][0]["undefined"] == {}
    assert record["settings"]["centres"]["images_with_dots"] == 4
    assert sum(map(sum, record["models"][0]["confusion"]["pixels_true_by_found"])) == 3 * 48 * 56
    best = max(record["cases"], key=lambda row: row["centre_f1"])
    worst = min(record["cases"], key=lambda row: row["centre_f1"])
    assert (record["panels"]["best.png"], record["panels"]["worst.png"]) == (best["image"], worst["image"])
    with (out / "cases.csv").open(newline="") as file:
        assert [line["dice"] == "" for line in csv.DictReader(file)] == [True] * 4 + [False] * 3
    assert "within 1.5 um" in ran.stdout
    assert "F1 of centres" in (out / "report.html").read_text()


def test_dots_alone_have_no_figures_of_pixels(folder: Path, overtile_alone: Command, tmp_path: Path) -> None:
    """Three images with dots, one of them without an object: the panel's dots are where the table has them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "012":
        shutil.copy(folder / "images" / f"{name}.png", tmp_path / "images")
        (tmp_path / "masks" / f"{name}.csv").write_text("x,y\n" + "10,20\n" * (name != "2"))
    arguments = evaluate_arguments(tmp_path, tmp_path / "out", "--model", folder / "sharp.safetensors")
    ran = overtile_alone.run(*arguments)
    assert ran.code == 0, ran.transcript
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(record["pooled"]) == {"centre_precision", "centre_recall", "centre_f1"}
    assert "annotated centres" in (tmp_path / "out" / "report.html").read_text()
    truth = io.imread(tmp_path / "out" / "panels" / "best.png")[:, 62:118]
    marked = (truth != 255).any(axis=2)
    assert record["panels"]["best.png"] != "2"
    assert np.array_equal(np.argwhere(marked).min(axis=0), [18, 8])
    assert np.array_equal(np.argwhere(marked).max(axis=0), [22, 12])
