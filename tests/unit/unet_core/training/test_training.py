"""Training learns, stops as configured, keeps the best network, and survives divergence."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from skimage import measure

from pipeline.config import load_as
from tests.unit.unet_core.training_runs import Silent, case, lines, material, recipe, run
from tests.unit.unet_core.watched import Watched
from unet_core.data.augmentation import Augmentation
from unet_core.data.sampler import AnnotatedImage
from unet_core.errors import DivergedError, RecipeError
from unet_core.model_file.checkpoint import load
from unet_core.model_file.header import describe, sha256
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import whole_pass
from unet_core.spec import UNetSpec
from unet_core.training import dataset_spec
from unet_core.training import validation as validation
from unet_core.training.config import TrainConfig
from unet_core.training.model_selection import select_objects
from unet_core.training.trainer import TrainData, TrainJob, train
from unet_core.training.validation import LARGEST_PX, evenly_spaced, views, windows

CONFIGS = Path(__file__).parents[4] / "configs"


SPEC = UNetSpec(mpp=0.5, threshold=0.5)

pytestmark = pytest.mark.usefixtures("one_thread")


def dice(found_YX: np.ndarray, wanted_YX: np.ndarray) -> float:
    return 2 * float((found_YX & wanted_YX).sum()) / float(found_YX.sum() + wanted_YX.sum())


def test_the_smoke_configuration_overfits_one_tile(tmp_path: Path) -> None:
    """Without augmentation there is one tile to learn. The cross-entropy of a centre does not fall to 0."""
    smoke = load_as(TrainConfig, CONFIGS / "train_smoke.yaml")
    given = smoke.model_copy(update={"augment": Augmentation.off()})
    one = case(1)
    train(TrainJob(tmp_path, TrainData([one]), given), Silent())
    losses = [line["loss"] for line in lines(tmp_path)]
    model = load(tmp_path / "best.safetensors")
    found = whole_pass(model, one.image_CYX)[0] >= np.ceil(255 * (model.spec.threshold or 0))
    print(f"loss {losses[0]:.3f} to {np.mean(losses[-5:]):.3f}, Dice {dice(found, one.labels_YX > 0):.3f}")
    assert np.mean(losses[-5:]) < losses[0] / 4
    assert dice(found, one.labels_YX > 0) > 0.9


def test_training_learns_to_segment_discs(tmp_path: Path) -> None:
    """With every augmentation, trained on three images and validated on a fourth."""
    network, optimiser, stopping = {"width": 8, "dropout": 0}, {"rate": 5e-3}, {"every": 100}
    given = recipe(
        network=network, optimiser=optimiser, stopping=stopping, schedule={"steps": 100}, sampling={"batch": 4}
    )
    run(tmp_path, given)
    (scores,) = (line["validation"] for line in lines(tmp_path) if "validation" in line and line["step"])
    print(scores)
    assert scores["dice"] > 0.85


def test_model_files_state_their_provenance(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    header = describe(tmp_path / "best.safetensors")
    assert header.spec.class_names == ("disc",)
    assert header.spec.threshold is not None
    assert header.provenance["trained_on"] == ["0", "1", "2"]
    assert header.provenance["held_back"] == ["3"]
    assert header.provenance["recipe"]["schedule"]["steps"] == 7
    assert describe(tmp_path / "last.safetensors").provenance["steps"] == 7
    pixels = np.concatenate([case(seed).image_CYX.reshape(3, -1) for seed in range(3)], axis=1) / 255
    assert header.spec.mean == pytest.approx(pixels.mean(axis=1), abs=1e-4)
    assert header.spec.std == pytest.approx(pixels.std(axis=1), abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best.safetensors", "last.safetensors", "resume.safetensors", "metrics.jsonl", "tensorboard")
    }


def test_the_log_holds_the_documented_values(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["epoch"] for line in steps] == [step * 2 // 3 for step in range(1, 8)]
    assert all(set(line) == {"step", "epoch", "loss", "rate", "gradient_norms"} for line in steps)
    assert set(steps[0]["gradient_norms"]) == {"down.0", "bottom", "up.0", "join.0", "head"}
    validations = [line for line in lines(tmp_path) if "validation" in line]
    assert all(set(line["validation"]) == {"loss", "dice", "iou", "f1_50"} for line in validations)


def test_the_best_network_is_kept_not_the_last(tmp_path: Path) -> None:
    """The kept weights are those of the best validation in the log."""
    given = recipe(
        network={"norm": "none"},  # so large a rate then undoes what was learnt
        schedule={"steps": 40},
        stopping={"every": 4, "monitor": "iou"},
        optimiser={"rate": 0.3, "clip": None},
    )
    run(tmp_path, given)
    scores = {
        line["step"]: line["validation"]["iou"] for line in lines(tmp_path) if "validation" in line and line["step"]
    }
    best = max(scores, key=lambda step: scores[step])
    print(scores)
    assert describe(tmp_path / "best.safetensors").provenance["steps"] == best
    assert best < 40, "choose another seed: the last one is the best by chance"


def test_patience_ends_a_run(tmp_path: Path) -> None:
    given = recipe(
        network={"norm": "none", "dropout": 0},  # nothing changes, running means neither
        schedule={"steps": 1000},
        stopping={"every": 1, "patience": 3, "images": 1},
        optimiser={"rate": 1e-12},
    )
    assert run(tmp_path, given).step == 4


def test_settings_that_need_validation_need_held_back_images(tmp_path: Path) -> None:
    for given in (recipe(stopping={"patience": 3}), recipe(schedule={"kind": "plateau"})):
        with pytest.raises(RecipeError, match=r"folds\.hold_back"):
            run(tmp_path, given, material(3, 0))


def test_without_validation_the_best_is_the_last(tmp_path: Path) -> None:
    run(tmp_path, recipe(), material(3, 0))
    assert describe(tmp_path / "best.safetensors").provenance["steps"] == 7
    assert not [line for line in lines(tmp_path) if "validation" in line]


def test_fault_61_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_network_stays(tmp_path: Path) -> None:
    given = recipe(optimiser={"kind": "sgd", "rate": 1e25, "clip": None}, schedule={"steps": 50, "warmup": 0})
    with pytest.raises(DivergedError, match=r"diverged at step \d+: loss .*Kept are best\.safetensors of step \d+"):
        run(tmp_path, given)
    for name in ("best.safetensors", "last.safetensors"):
        load(tmp_path / name)


def test_training_from_a_model_keeps_its_spec(tmp_path: Path) -> None:
    run(tmp_path / "first", recipe())
    start = tmp_path / "first" / "best.safetensors"
    given = recipe(network={"start": str(start)}, schedule={"steps": 1}, optimiser={"rate": 1e-3})
    run(tmp_path / "second", given, material(1, 0))
    header = describe(tmp_path / "second" / "last.safetensors")
    assert header.provenance["start"]["sha256"] == sha256(start)
    assert header.spec.mean == describe(start).spec.mean
    moved = (load(tmp_path / "second" / "last.safetensors").head.weight - load(start).head.weight).abs().max()
    assert 0 < float(moved.detach()) < 1e-2


def test_validation_scores_equal_independent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooled Dice, IoU and object F1, counted independently; predictions are the truth shifted by two pixels."""
    chosen = [case(3), case(4)]
    found = {id(one.image_CYX): np.where(np.roll(one.labels_YX, 2, axis=1) > 0, 128, 127)[None] for one in chosen}
    monkeypatch.setattr(validation, "whole_outputs", lambda _, image_CYX: found[id(image_CYX)].astype(np.uint8))
    both = found_px = wanted_px = matched = found_count = wanted_count = 0
    for one in chosen:
        labels, mask = np.asarray(one.labels_YX), found[id(one.image_CYX)][0] == 128
        objects, numbers = measure.label(mask, connectivity=2), np.unique(labels)[1:]
        both, found_px, wanted_px = (
            both + (mask & (labels > 0)).sum(),
            found_px + mask.sum(),
            wanted_px + (labels > 0).sum(),
        )
        found_count, wanted_count = found_count + objects.max(), wanted_count + len(numbers)
        for own in (labels == number for number in numbers):
            others = [objects == i for i in np.unique(objects[own]) if i]
            matched += any((own & other).sum() * 2 >= (own | other).sum() for other in others)
    scores = validation.validate(UNet(UNetSpec(depth=1, width=2)), chosen)
    assert scores["dice"] == pytest.approx(2 * both / (found_px + wanted_px))
    assert scores["iou"] == pytest.approx(both / (found_px + wanted_px - both))
    assert scores["f1_50"] == pytest.approx(2 * matched / (found_count + wanted_count))
    assert 0 < matched < wanted_count


def test_several_classes_are_trained_and_validated(tmp_path: Path) -> None:
    one = case(0)
    classes = np.where(np.asarray(one.labels_YX) % 2, 1, 2).astype(np.uint8)
    both = replace(one, classes_YX=classes)
    assert set(np.unique(both.class_map[:, :])) == {0, 1, 2}
    run(tmp_path, recipe(), TrainData([both], [both], ("odd", "even")))
    spec = describe(tmp_path / "best.safetensors").spec
    assert (spec.class_names, spec.threshold) == (("odd", "even"), None)


def test_images_too_large_for_one_pass_are_split_into_windows() -> None:
    side = int(LARGEST_PX**0.5) + 8
    large = AnnotatedImage("large", np.zeros((1, side, side), np.uint8), np.zeros((side, side), np.int32))
    chosen = views([large, *(case(seed) for seed in range(5))], 12)
    assert [one.name for one in chosen] == ["large", "large", "0", "1", "2", "3", "4"]
    assert chosen[0].image_CYX.shape == (1, 1024, 1024)
    assert [one.name for one in views([case(0)], 12)] == ["0"]
    assert views([], 12) == []
    assert evenly_spaced(range(10), 4) == [0, 2, 5, 7]


def test_half_of_the_windows_of_a_large_image_hold_objects_and_windows_are_read_lazily() -> None:
    """The image is on disk and annotated in one corner, which the windows have to contain."""
    labels = np.zeros((4200, 3100), np.int32)
    labels[4190:4195, 3080:3090] = 7
    image = np.random.default_rng(0).integers(0, 256, (1, 4200, 3100), np.uint8)
    arrays = [Watched(image), Watched(labels)]
    large = AnnotatedImage("large", *arrays)
    large.census()
    for one in arrays:
        one.read.clear()
    chosen = views([large], 4)
    assert [one.read for one in arrays] == [[], []]
    assert len(chosen) == 4
    assert sum(bool(np.asarray(one.labels_YX[:, :]).any()) for one in chosen) == 1
    last = chosen[-1]
    assert np.array_equal(last.image_CYX[:, :, :], image[:, 4096:, 3072:])
    assert np.array_equal(last.labels_YX[90:200, 3:], labels[4186:, 3075:])
    bare = AnnotatedImage("", image[:, :4, :4], labels[:4, :4])
    assert select_objects([np.zeros((1, 4, 4), np.uint8)], [bare], SPEC).min_area_um2 == 0


def test_windows_of_a_large_image_hold_their_own_dots() -> None:
    """Each dot lies in one window, on the pixel of the image that has its number; windows with dots come first."""
    shape = (2200, 2300)
    at = np.random.default_rng(3).permutation(np.argwhere(np.ones((40, 40))))[:200] * (55, 57)
    at = np.concatenate((at, [(1023, 1023), (1024, 1024), (2199, 2299)]))
    image = np.zeros((1, *shape), np.uint16)
    image[0, at[:, 0], at[:, 1]] = np.arange(1, len(at) + 1)
    dots = np.column_stack((at + 0.3, np.ones(len(at)))).astype(np.float32)
    dots[-3:-1, :2] -= 0.3
    large = AnnotatedImage("large", image, np.zeros(shape, np.int32), points_N3=dots)
    numbers: list[int] = []
    for one in windows(large, 9):
        assert one.points_N3 is not None
        y, x = np.rint(one.points_N3[:, :2]).astype(int).T
        numbers += np.asarray(one.image_CYX[:, :, :])[0, y, x].tolist()
    assert sorted(numbers) == list(range(1, len(at) + 1))
    alone = replace(large, points_N3=dots[-1:])
    assert sum(len(one.points_N3) for one in windows(alone, 2) if one.points_N3 is not None) == 1


def test_normalisation_is_of_each_channel_by_the_range_of_its_type() -> None:
    pixels = np.random.default_rng(5).integers(0, 2**16, (2, 30, 40), dtype=np.uint16)
    one = AnnotatedImage("one", pixels, np.ones((30, 40), np.int32))
    spec = dataset_spec.spec_for([one], ["thing"], recipe())
    assert spec.mean == pytest.approx((pixels / 65535).mean(axis=(1, 2)), abs=1e-4)
    assert spec.std == pytest.approx((pixels / 65535).std(axis=(1, 2)), abs=1e-4)
    assert (spec.in_channels, spec.stain_mean) == (2, None)


def test_the_stain_is_stored_for_images_with_a_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_spec, "stain_shown", partial(dataset_spec.stain_shown, draws=20))
    run(tmp_path, recipe(network={"mpp": 0.5}, schedule={"steps": 1}), material(1, 0))
    stain = describe(tmp_path / "best.safetensors").spec.stain
    assert stain is not None
    assert describe(tmp_path / "last.safetensors").spec.stain is None


@pytest.mark.long
def test_the_paper_s_configuration_takes_two_real_steps(tmp_path: Path) -> None:
    """One tile of 572 px, 64 channels, SGD with momentum, dropout."""
    paper = load_as(TrainConfig, CONFIGS / "train_paper.yaml", ["schedule.steps=2", "compute.threads=1"])
    image = np.random.default_rng(0).integers(0, 256, (1, 600, 600), dtype=np.uint8)
    labels = np.zeros((600, 600), np.int32)
    labels[100:200, 100:200] = 1
    run(tmp_path, paper, TrainData([AnnotatedImage("one", image, labels)]))
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert len(steps) == 2
    assert np.isfinite([line["loss"] for line in steps]).all()
    assert steps[0]["loss"] != steps[1]["loss"]
