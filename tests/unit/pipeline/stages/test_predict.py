"""Tiles equal one pass over the whole slide; pixels that cannot be computed are an error, never background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ModelSection, RunConfig, TilesSection
from pipeline.errors import ConfigError, ModelError
from pipeline.geometry import Box, TileGrid
from pipeline.inference import predictor as networks
from pipeline.inference.ensemble import load_model
from pipeline.inference.predictor import (
    Predictor,
    activate,
    load_networks,
    resolve_device,
    resolve_precision,
    single_pass,
)
from pipeline.runs.plan import resolve_tile
from pipeline.stages.predict import cell_pixels, tissue_cells
from pipeline.storage.layout import PROBABILITY
from pipeline.storage.slide_store import SlideStore, StoredArray
from tests.support.make_store import StopAfter, StoppedError, put_array, tree_bytes
from tests.unit.pipeline.predicting import (
    CELL,
    CLASSES,
    CONTEXT,
    FACTOR,
    PLAN,
    Image,
    assert_equal_to_rounding,
    chosen,
    cut,
    forward_of,
    slide,
    weights_of,
    whole_pass,
)
from unet_core.model_file.checkpoint import load
from unet_core.model_file.header import sha256
from unet_core.networks.whole_pass import to_bytes, to_input
from unet_core.spec import UNetSpec

# ---- equal to the whole pass ---------------------------------------------------------------------------------------


def test_oracle_has_foreground_and_background() -> None:
    answer = whole_pass(CONTEXT, cut(700, 900))
    assert 0.02 < (answer > 127).mean() < 0.9
    assert ((answer > 5) & (answer < 250)).mean() > 0.02


@pytest.mark.parametrize(("tile", "block"), [(256, 512), (384, 512), (256, 1024), (384, 1024)])
@pytest.mark.parametrize("shape_yx", [(1, 1), (1, 700), (61, 5), (511, 513), (512, 512), (601, 1025)], ids=str)
def test_every_tile_and_block_gives_the_whole_pass(
    tmp_path: Path, shape_yx: tuple[int, int], tile: int, block: int
) -> None:
    image = cut(*shape_yx)
    made = slide(tmp_path, image, tile=tile, block=block)
    report = made.run()
    assert_equal_to_rounding(made.probability, whole_pass(CONTEXT, image))
    assert report.blocks == report.computed == len(made.work.grid)
    assert report.counts["network_calls"] == sum(len(TileGrid(core.core, tile)) for core in made.work.grid)


def test_tiles_of_different_size_agree_to_the_bit(tmp_path: Path, wide: Path) -> None:
    """From width 16 and 316 px of input up, on one thread, fp32 rounding does not depend on a pixel's surroundings."""
    image = cut(300, 600)
    answers = [
        slide(tmp_path / f"{tile}-{block}", image, weights=wide, tile=tile, block=block)
        for tile, block in [(128, 512), (384, 512), (640, 1024)]
    ]
    for made in answers:
        made.run()
    assert answers[0].probability.std() > 3
    assert all(np.array_equal(made.probability, answers[0].probability) for made in answers)


@pytest.mark.parametrize(
    ("box", "tile"), [(Box(0, 0, 776, 776), 388), (Box(8, 0, 520, 512), 256), (Box(0, 1, 9, 9), 16)]
)
def test_tiles_off_the_step_are_refused(network: Predictor, box: Box, tile: int) -> None:
    with pytest.raises(ValueError, match="expected starts and sides that are multiples of 16"):
        network.grid(box, tile)


def test_a_tile_off_the_step_is_refused_when_the_run_is_planned() -> None:
    model = load_model(ModelSection(weights=str(CONTEXT)))

    def resolved(tile: Any, block: int = 2048, device: str = "cpu") -> int:
        return resolve_tile(RunConfig(tiles=TilesSection(tile=tile, block=block)), model, device)

    for tile, nearest in [(388, (384, 400)), (1000, (992, 1008)), (17, (16, 32)), (1, (16,)), (2047, (2032, 2048))]:
        with pytest.raises(ConfigError, match=rf"tiles\.tile={tile}: expected a multiple of .*step 16") as caught:
            resolved(tile)
        assert all(str(side) in str(caught.value) for side in nearest)
    for tile, block, nearest in [(1024, 512, 512), (16384, 2048, 2048)]:
        with pytest.raises(ConfigError, match=rf"at most the block of {block}.*Nearest: .*{nearest}"):
            resolved(tile, block)
    assert [resolved(tile) for tile in (16, 384, 2048)] == [16, 384, 2048]
    assert [resolved("auto"), resolved("auto", device="cuda"), resolved("auto", 512)] == [1024, 2048, 512]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_16_bit_images(tmp_path: Path, channels: int, dtype: type) -> None:
    image = cut(130, 300).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    image = image if channels == 3 else image[1:2]
    made = slide(tmp_path, image)
    made.run()
    assert_equal_to_rounding(made.probability, whole_pass(CONTEXT, image))
    if channels == 3 and dtype is np.uint16:
        assert_equal_to_rounding(made.probability, whole_pass(CONTEXT, cut(130, 300)))


@pytest.mark.parametrize(
    "spec",
    [
        UNetSpec(depth=3, width=4, padding="same"),
        UNetSpec(depth=2, width=4, padding="same", norm="batch", up="bilinear"),
        UNetSpec(depth=2, width=4, head="sigmoid", classes=3),
        UNetSpec(depth=3, width=3, classes=4, up="nearest", skip="add"),
        UNetSpec(depth=2, width=4, skip="none"),
        UNetSpec(depth=1, width=4, mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3)),
    ],
    ids=["same", "same batch bilinear", "sigmoid", "four classes", "no skips", "own normalisation"],
)
def test_other_networks(tmp_path: Path, spec: UNetSpec) -> None:
    weights = weights_of(tmp_path, spec)
    image = cut(200, 415)
    made = slide(tmp_path / "slide", image, weights=weights, tile=128)
    made.run()
    assert made.probability.shape == (spec.foreground, 200, 415)
    assert made.probability.std() > 3
    assert_equal_to_rounding(made.probability, whole_pass(weights, image), share=1e-3)


def test_three_classes_known_beforehand(tmp_path: Path) -> None:
    image = np.full((3, 600, 520), 255, np.uint8)
    red, blue = np.zeros((2, 600, 520), bool)
    red[490:530, 100:200] = blue[505:520, 300:519] = True
    image[:, red] = np.array([[255], [0], [0]])
    image[:, blue] = np.array([[0], [0], [255]])
    made = slide(tmp_path, image, weights=CLASSES)
    made.run()
    assert np.array_equal(made.probability, np.stack([red, blue]) * np.uint8(255))


def test_bf16_is_the_same_for_every_tile(tmp_path: Path) -> None:
    image = cut(200, 300)
    answers = []
    for tile in (64, 256, 512):
        made = slide(tmp_path / str(tile), image, tile=tile, precision="bf16")
        made.run()
        answers.append(made.probability)
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])
    apart = np.abs(answers[0].astype(np.int16) - whole_pass(CONTEXT, image))
    assert 0 < apart.mean() < 5, "another precision, near the same answer"


def test_one_pass_over_a_window_equals_the_tiles_there(network: Predictor) -> None:
    image = cut(700, 700)
    window = Box(112, 64, 500, 447)
    assert_equal_to_rounding(single_pass(network, image, window), whole_pass(CONTEXT, image)[(..., *window.slices)])


# ---- a slide's worth -----------------------------------------------------------------------------------------------


def test_stopped_run_resumes_where_it_was(tmp_path: Path) -> None:
    image = cut(700, 1100)
    undisturbed = slide(tmp_path / "one", image)
    undisturbed.run()
    stopped = slide(tmp_path / "two", image)
    with pytest.raises(StoppedError):
        stopped.run(StopAfter(4))
    assert stopped.work.store.stamped("predict") is None
    report = stopped.run()
    assert (report.blocks, report.computed) == (6, 2)
    assert tree_bytes(stopped.work.root) == tree_bytes(undisturbed.work.root)


def test_only_a_block_and_its_halo_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []
    take = StoredArray.__getitem__

    def noted(array: StoredArray, key: Any) -> Image:
        pixels = take(array, key)
        reads.append(pixels.shape)
        return pixels

    made = slide(tmp_path, cut(1400, 1400))
    monkeypatch.setattr(StoredArray, "__getitem__", noted)
    made.run()
    largest = max(np.prod(shape) for shape in reads)
    assert largest <= 3 * (512 + 2 * 92 + 4) ** 2
    of_image = [shape for shape in reads if len(shape) == 3 and shape[0] == 3]  # the look at seams reads one class
    assert len(of_image) == 9, "each block reads the image once"


def test_cells_without_tissue_are_zero_and_cost_no_call(tmp_path: Path) -> None:
    image = cut(1100, 1300)
    rng = np.random.default_rng(3)
    per_cell = CELL // FACTOR
    alive = np.array([[True, False, False], [False, False, True], [False, True, False]])
    specks = np.zeros((3 * per_cell, 3 * per_cell), bool)
    for row, col in np.argwhere(alive):
        height, width = (
            min(per_cell, -(-side // FACTOR) - at * per_cell)
            for side, at in zip(image.shape[1:], (row, col), strict=True)
        )
        specks[row * per_cell + rng.integers(height), col * per_cell + rng.integers(width)] = True  # one tissue pixel
    tissue = specks[: -(-1100 // FACTOR), : -(-1300 // FACTOR)]
    cells = np.repeat(np.repeat(alive, CELL, 0), CELL, 1)[:1100, :1300]
    expected = whole_pass(CONTEXT, image) * cells
    for tile, block in [(256, 512), (384, 1024)]:  # one cell a block; tiles across cells
        made = slide(tmp_path / f"{tile}", image, tile=tile, block=block)
        put_array(made.work.store, "tissue", tissue, "specks", block)
        report = made.run()
        assert_equal_to_rounding(made.probability, expected)
        assert not made.probability[:, ~cells].any()
        calls = sum(bool(cells[t.core.slices].any()) for b in made.work.grid for t in TileGrid(b.core, tile))
        assert report.counts["network_calls"] == calls
        assert report.facts == {"pixels": 1100 * 1300, "skipped_pixels": int((~cells).sum()), "seam": None}


def test_slide_without_tissue_is_complete_without_network_call(tmp_path: Path) -> None:
    made = slide(tmp_path, cut(600, 600))
    put_array(made.work.store, "tissue", np.zeros((19, 19), bool), "none")
    report = made.run()
    assert report.counts["network_calls"] == 0
    assert not made.probability.any()
    assert made.work.store.done(PROBABILITY, PLAN) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert report.facts["skipped_pixels"] == 600 * 600


@pytest.mark.parametrize("factor", [1, 16, 32, 512])
def test_tissue_is_decided_by_cell(tmp_path: Path, factor: int) -> None:
    rng = np.random.default_rng(factor)
    height, width = 700, 1300
    tissue = rng.random((-(-height // factor), -(-width // factor))) < (
        0.4 if factor == 512 else 0.3 / (512 // factor) ** 2
    )
    store = SlideStore(tmp_path)
    put_array(store, "tissue", tissue, "t")
    fine = np.repeat(np.repeat(tissue, factor, 0), factor, 1)
    expected = np.zeros((1024, 1536), bool)
    for y in range(0, height, CELL):
        for x in range(0, width, CELL):
            expected[y : y + CELL, x : x + CELL] = fine[y : y + CELL, x : x + CELL].any()
    assert expected.any()
    assert not expected.all()
    for box in (Box(0, 0, height, width), Box(0, 512, 512, 1024), Box(512, 1024, 700, 1300), Box(511, 1000, 513, 1025)):
        assert np.array_equal(cell_pixels(tissue_cells(store.read("tissue"), box, factor), box), expected[box.slices])


# ---- which network -------------------------------------------------------------------------------------------------


def test_weights_changed_since_plan_are_refused(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, UNetSpec(depth=1, width=2), seed=1)
    made = slide(tmp_path / "slide", cut(60, 60), weights=weights, tile=64)
    weights_of(tmp_path, UNetSpec(depth=1, width=2), seed=2)
    with pytest.raises(ModelError, match=rf"{weights}.*expected sha256 .*found .*changed") as caught:
        made.run()
    assert made.section.weights[0].sha256[:12] in str(caught.value)
    assert sha256(weights)[:12] in str(caught.value)
    assert made.work.store.done(PROBABILITY, PLAN) == set()


def test_a_network_is_loaded_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    monkeypatch.setattr(networks.checkpoint, "load", lambda path: (loads.append(path), load(path))[1])
    network = load_networks(chosen(CONTEXT), "cpu", "fp32", "none")
    assert load_networks(chosen(CONTEXT), "cpu", "fp32", "none") is network
    assert load_networks(chosen(CONTEXT), "cpu", "bf16", "none") is not network
    assert len(loads) == 2


def test_a_network_computes_on_one_thread(network: Predictor) -> None:
    assert torch.get_num_threads() == 1
    assert not forward_of(network).training  # type: ignore[attr-defined]  # it is a module


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, auto in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto") == auto
        assert resolve_device("cpu") == "cpu"
    with pytest.raises(ModelError, match="no CUDA device"):
        resolve_device("cuda")
    assert resolve_precision("auto", "cuda") == "fp16"
    assert [resolve_precision(name, device) for name in ("fp32", "bf16") for device in ("cpu", "cuda")] == [
        "fp32",
        "fp32",
        "bf16",
        "bf16",
    ]
    for avx, amx, auto in [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert resolve_precision("auto", "cpu") == auto


# ---- numbers in and out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_the_formula(dtype: type, channels: int) -> None:
    spec = UNetSpec(mean=(0.7, 0.0, 0.31), std=(0.25, 1.0, 0.013))
    limit = np.iinfo(dtype).max
    every = np.arange(limit + 1, dtype=dtype).reshape(1, -1, 16).repeat(channels, 0)
    x = to_input(torch.from_numpy(every), spec, torch.float32)
    assert x.shape == (1, 3, *every.shape[1:])
    assert x.is_contiguous(memory_format=torch.channels_last)
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    exact = (every.astype(np.float64) / limit - mean) / std
    unit = np.finfo(np.float32).eps * np.maximum(np.abs(every / limit / std), np.abs(mean / std))
    assert (np.abs(x[0].double().numpy() - exact) <= 2 * unit).all()


@pytest.mark.parametrize(
    ("spec", "formula"),
    [
        (UNetSpec(), lambda z: torch.softmax(z, 0)[1:]),
        (UNetSpec(classes=4), lambda z: torch.softmax(z, 0)[1:]),
        (UNetSpec(classes=4, head="sigmoid"), torch.sigmoid),
    ],
    ids=["two classes", "four classes", "sigmoid"],
)
def test_bytes_are_the_rounded_probability(spec: UNetSpec, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(spec.out_channels, 200, 200, generator=generator) * 6
    logits[0, 0, 0], logits[-1, 0, 1] = 300.0, 300.0
    exact = np.rint(formula(logits.double()).numpy() * 255)
    found = to_bytes(activate(logits, spec, torch.float32))
    assert found.dtype == torch.uint8
    assert found.shape == (spec.foreground, 200, 200)
    assert_equal_to_rounding(found.numpy(), exact.astype(np.uint8), share=1e-4)
    assert {0, 255} <= set(np.unique(found.numpy()))
