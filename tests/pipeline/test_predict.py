"""Tile by tile equals one pass over the whole slide; what cannot be computed is an error, never background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from pipeline import predict
from pipeline.config import ModelSection, RunConfig, TilesSection
from pipeline.errors import ConfigError, ModelError
from pipeline.geometry import Box, TileGrid
from pipeline.plan import load_model, resolve_tile
from pipeline.predict import (
    ARRAY,
    Network,
    PredictSection,
    Region,
    load_network,
    normalise,
    predict_slide,
    quantise,
    resolve_device,
    resolve_precision,
    single_pass,
    tissue_pixels,
)
from pipeline.store import SlideStore, StoredArray
from pipeline.work import StageReport, Work, serial
from tests.make_store import StopAfter, StoppedError, put_array, tree_bytes
from unet_core.checkpoint import load, save
from unet_core.header import sha256
from unet_core.model import UNet
from unet_core.spec import UNetSpec

GOLDEN = Path(__file__).parents[1] / "golden"
CONTEXT, CLASSES = GOLDEN / "context.safetensors", GOLDEN / "classes.safetensors"
PLAN = "d" * 64
FACTOR = 32  # image px along one tissue px
CELL = 512

Image = NDArray[Any]


# ---- the oracle: imports nothing from pipeline ---------------------------------------------------------------------


@lru_cache
def model_of(weights: Path) -> UNet:
    torch.set_num_threads(1)
    return load(weights)


def whole_pass(weights: Path, image_CYX: Image) -> NDArray[np.uint8]:
    """One forward pass over the mirrored image, cropped: softmax (or sigmoid) in fp32, foreground as bytes."""
    model = model_of(weights)
    spec, step = model.spec, 2**model.spec.depth
    around = 6 * step - 4 if spec.padding == "valid" else 12 * step  # same: far beyond what its zeros can reach
    height, width = image_CYX.shape[1:]
    more = [next(n for n in range(step) if model.shape.is_legal(side + 2 * around + n)) for side in (height, width)]
    colour = np.broadcast_to(image_CYX, (spec.in_channels, height, width))
    padded = np.pad(colour, [(0, 0), (around, around + more[0]), (around, around + more[1])], mode="reflect")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    x = (padded.astype(np.float32) / np.float32(np.iinfo(image_CYX.dtype).max) - mean) / std
    with torch.inference_mode():
        logits = model(torch.from_numpy(x)[None])[0].double()
        p = torch.sigmoid(logits) if spec.head == "sigmoid" else torch.softmax(logits, 0)[1:]
    start = 0 if spec.padding == "valid" else around
    return np.asarray(np.rint(p.numpy() * 255), np.uint8)[:, start : start + height, start : start + width]


def assert_equal_to_rounding(found: Image, expected: Image, share: float = 1e-4) -> None:
    assert found.shape == expected.shape
    apart = np.abs(found.astype(np.int16) - expected)
    assert apart.max(initial=0) <= 1
    assert np.count_nonzero(apart) <= max(1, share * apart.size)


# ---- images and slides ---------------------------------------------------------------------------------------------


@lru_cache
def tissue_image() -> Image:
    """Real tissue, (3, y, x), repeated with a period that is no multiple of any step."""
    crop = immunohistochemistry()[:501, :487].transpose(2, 0, 1)
    return np.tile(crop, (1, 3, 3))


def cut(height: int, width: int) -> Image:
    return np.ascontiguousarray(tissue_image()[:, 7 : 7 + height, 11 : 11 + width])


@dataclass(frozen=True)
class Slide:
    """A slide ready to be predicted: image and tissue are in the store."""

    work: Work
    section: PredictSection

    def run(self, map_blocks: Any = serial) -> StageReport:
        return predict_slide(self.work, self.section, map_blocks)

    @property
    def probability(self) -> NDArray[np.uint8]:
        return self.work.store.read(ARRAY)[()]


def all_tissue(shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    return np.ones([-(-side // FACTOR) for side in shape_yx], bool)


def slide(
    root: Path, image: Image, *, weights: Path = CONTEXT, tile: int = 256, block: int = 512, precision: str = "fp32"
) -> Slide:
    work = Work(root, image.shape[-2:], block, PLAN)
    put_array(work.store, "0", image, "image", block)
    put_array(work.store, "tissue", all_tissue(image.shape[-2:]), "tissue", block)
    foreground = model_of(weights).spec.foreground
    return Slide(work, PredictSection(weights, sha256(weights), foreground, FACTOR, "cpu", precision, tile))


@pytest.fixture(autouse=True)
def _fresh_networks() -> Iterator[None]:
    """A network remembers calls and shrunken tiles; every test starts with a new one."""
    predict._load.cache_clear()
    yield
    predict._load.cache_clear()


def network_of(weights: Path) -> Network:
    return load_network(PredictSection(weights, sha256(weights), 1, FACTOR, "cpu", "fp32", 256))


@pytest.fixture
def network() -> Network:
    return network_of(CONTEXT)


def weights_of(folder: Path, spec: UNetSpec, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = UNet(spec).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    save(folder / "random.safetensors", model, {"seed": seed})
    return folder / "random.safetensors"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 16 channels and more: narrower layers are computed by other kernels for other sizes."""
    return weights_of(tmp_path_factory.mktemp("wide"), UNetSpec(width=16))


# ---- equal to the whole pass ---------------------------------------------------------------------------------------


def test_the_oracle_sees_something_worth_comparing() -> None:
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
    """From width 16 and 316 px of input up, on one thread, fp32 rounds the same whatever surrounds a pixel."""
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
def test_tiles_off_the_step_are_refused(network: Network, box: Box, tile: int) -> None:
    with pytest.raises(ValueError, match="expected starts and sides that are multiples of 16"):
        network.grid(box, tile)


def test_a_tile_off_the_step_is_refused_when_the_run_is_planned() -> None:
    model = load_model(RunConfig(model=ModelSection(weights=str(CONTEXT))))

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
        UNetSpec(depth=1, width=4, mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3)),
    ],
    ids=["same", "same batch bilinear", "sigmoid", "four classes", "own normalisation"],
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


def test_one_pass_over_a_window_equals_the_tiles_there(network: Network) -> None:
    image = cut(700, 700)
    window = Box(112, 64, 500, 447)
    assert_equal_to_rounding(single_pass(network, image, window), whole_pass(CONTEXT, image)[(..., *window.slices)])


# ---- a slide's worth -----------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
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
    assert sum(len(shape) == 3 for shape in reads) == 9, "each block reads the image once"


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
        assert report.facts == {"pixels": 1100 * 1300, "skipped_pixels": int((~cells).sum())}


def test_a_slide_without_tissue_is_complete_and_asks_the_network_nothing(tmp_path: Path) -> None:
    made = slide(tmp_path, cut(600, 600))
    put_array(made.work.store, "tissue", np.zeros((19, 19), bool), "none")
    report = made.run()
    assert report.counts["network_calls"] == 0
    assert not made.probability.any()
    assert made.work.store.done(ARRAY, PLAN) == {(0, 0), (0, 1), (1, 0), (1, 1)}
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
        assert np.array_equal(tissue_pixels(store.read("tissue"), box, factor), expected[box.slices])


# ---- out of memory -------------------------------------------------------------------------------------------------


def without_memory_above(network: Network, side_px: int) -> tuple[Network, list[int]]:
    """The same network on a device that cannot take inputs wider than ``side_px``; and the widths it was given."""
    given: list[int] = []

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        given.append(x_NCHW.shape[-1])
        if x_NCHW.shape[-1] > side_px:
            raise torch.OutOfMemoryError(f"tried to allocate {x_NCHW.numel()} floats")
        return network.forward(x_NCHW)

    return replace(network, forward=forward), given


@pytest.mark.parametrize(("tile", "fits", "side"), [(512, 444, 256), (384, 380, 192), (512, 316, 128)])
def test_out_of_memory_halves_the_tile_and_changes_no_byte(wide: Path, tile: int, fits: int, side: int) -> None:
    network = network_of(wide)
    image, core = cut(400, 400), Box(0, 0, 384, 384)
    region = Region.around(image, network.grid(core, tile))
    small, given = without_memory_above(network, fits)
    halved = small.probability(region, core, tile)
    assert np.array_equal(halved, network.probability(region, core, tile))
    assert small.largest_px == side
    assert given[-1] == side + 188
    tried = len(given)
    small.probability(region, Box(0, 0, 64, 64), tile)
    assert set(given[tried:]) == {side + 188}, "what did not fit once is not tried again"


@pytest.mark.parametrize(("tile", "fits", "side"), [(256, 316, 128), (240, 316, 112), (64, 204, 16)])
def test_narrow_networks_and_small_inputs_round_at_most_one_level_differently(
    network: Network, tile: int, fits: int, side: int
) -> None:
    image, core = cut(180, 180), Box(0, 0, 100, 164)
    region = Region.around(image, network.grid(core, tile))
    small, _ = without_memory_above(network, fits)
    assert_equal_to_rounding(small.probability(region, core, tile), network.probability(region, core, tile))
    assert small.largest_px == side


def test_out_of_memory_in_the_middle_of_a_block_leaves_no_trace_in_it(wide: Path) -> None:
    network = network_of(wide)
    image, core = cut(300, 500), Box(0, 0, 256, 500)
    region = Region.around(image, network.grid(core, 256))
    calls = 0

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("somebody else took it")
        return network.forward(x_NCHW)

    found = replace(network, forward=forward).probability(region, core, 256)
    assert np.array_equal(found, network.probability(region, core, 256))


def test_a_halved_run_writes_the_bytes_of_an_undisturbed_one_and_says_so(
    tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = cut(300, 600)
    undisturbed, halved = (slide(tmp_path / name, image, weights=wide, tile=512) for name in ("one", "two"))
    assert undisturbed.run().counts["halved"] == 0
    small, _ = without_memory_above(network_of(wide), 500)
    monkeypatch.setattr(predict, "load_network", lambda section: small)
    assert halved.run().counts["halved"] > 0
    assert tree_bytes(halved.work.store.zarr) == tree_bytes(undisturbed.work.store.zarr)


def test_no_memory_at_all_is_an_error_not_a_background(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = slide(tmp_path, cut(100, 100))
    small, given = without_memory_above(network, 0)
    monkeypatch.setattr(predict, "load_network", lambda section: small)
    with pytest.raises(ModelError, match="out of memory even for the smallest tile"):
        made.run()
    assert given == [444, 316, 252, 220, 204], "each half tried once"
    assert made.work.store.done(ARRAY, PLAN) == set()
    assert made.work.store.stamped("predict") is None


def test_other_errors_of_the_device_are_not_taken_for_want_of_memory(network: Network) -> None:
    def forward(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device-side assert")

    core = Box(0, 0, 64, 64)
    broken = replace(network, forward=forward)
    with pytest.raises(RuntimeError, match="device-side assert"):
        broken.probability(Region.around(cut(64, 64), network.grid(core, 64)), core, 64)
    assert broken.largest_px is None


# ---- not a number --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("place", [(0, 0), (99, 99), (50, 3)])
def test_one_number_that_is_not_finite_fails_the_slide(
    tmp_path: Path,
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    channel: int,
    place: tuple[int, int],
) -> None:
    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        logits = network.forward(x_NCHW)
        logits[0, channel, *place] = value
        return logits

    made = slide(tmp_path, cut(100, 100), tile=128)
    monkeypatch.setattr(predict, "load_network", lambda section: replace(network, forward=forward))
    with pytest.raises(ModelError, match="not finite"):
        made.run()
    assert made.work.store.done(ARRAY, PLAN) == set()
    assert made.work.store.stamped("predict") is None


def test_infinities_of_both_signs_do_not_cancel() -> None:
    logits = torch.zeros(2, 4, 4)
    logits[0, 0, 0], logits[0, 0, 1] = float("inf"), float("-inf")
    with pytest.raises(ModelError, match="not finite"):
        quantise(logits, UNetSpec(), torch.float32)


def test_an_overflow_in_half_precision_names_the_way_out() -> None:
    logits = torch.full((2, 4, 4), 70_000.0).to(torch.float16).float()
    with pytest.raises(ModelError, match=r"overflow.*bf16 or fp32"):
        quantise(logits, UNetSpec(), torch.float16)


def test_weights_that_are_not_finite_give_no_background(tmp_path: Path) -> None:
    model = UNet(UNetSpec(depth=1, width=2))
    with torch.no_grad():
        for name in ("down.0.0.weight", "down.0.2.weight", "bottom.0.weight", "bottom.2.weight"):
            model.get_parameter(name).fill_(1e15)
    save(tmp_path / "huge.safetensors", model, {})
    made = slide(
        tmp_path / "slide", np.full((3, 60, 60), 250, np.uint8), weights=tmp_path / "huge.safetensors", tile=64
    )
    with pytest.raises(ModelError, match="not finite"):
        made.run()


# ---- which network -------------------------------------------------------------------------------------------------


def test_weights_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, UNetSpec(depth=1, width=2), seed=1)
    made = slide(tmp_path / "slide", cut(60, 60), weights=weights, tile=64)
    weights_of(tmp_path, UNetSpec(depth=1, width=2), seed=2)
    with pytest.raises(ModelError, match=rf"{weights}.*expected sha256 .*found .*changed") as caught:
        made.run()
    assert made.section.sha256[:12] in str(caught.value)
    assert sha256(weights)[:12] in str(caught.value)
    assert made.work.store.done(ARRAY, PLAN) == set()


def test_a_network_is_loaded_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    monkeypatch.setattr(predict.checkpoint, "load", lambda path: (loads.append(path), load(path))[1])
    section = PredictSection(CONTEXT, sha256(CONTEXT), 1, FACTOR, "cpu", "fp32", 256)
    assert load_network(section) is load_network(replace(section, tile_px=512))
    assert load_network(replace(section, precision="bf16")) is not load_network(section)
    assert len(loads) == 2


def test_a_network_computes_on_one_thread(network: Network) -> None:
    assert torch.get_num_threads() == 1
    assert not network.forward.training  # type: ignore[attr-defined]  # it is a module


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
    x = normalise(torch.from_numpy(every), spec, torch.float32)
    assert x.shape == (1, 3, *every.shape[1:])
    assert x.is_contiguous(memory_format=torch.channels_last)
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    exact = (every.astype(np.float64) / limit - mean) / std
    unit = np.finfo(np.float32).eps * np.maximum(np.abs(every / limit / std), np.abs(mean / std))
    assert (np.abs(x[0].double().numpy() - exact) <= 2 * unit).all()


@pytest.mark.parametrize(
    ("spec", "activate"),
    [
        (UNetSpec(), lambda z: torch.softmax(z, 0)[1:]),
        (UNetSpec(classes=4), lambda z: torch.softmax(z, 0)[1:]),
        (UNetSpec(classes=4, head="sigmoid"), torch.sigmoid),
    ],
    ids=["two classes", "four classes", "sigmoid"],
)
def test_bytes_are_the_rounded_probability(spec: UNetSpec, activate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(spec.out_channels, 200, 200, generator=generator) * 6
    logits[0, 0, 0], logits[-1, 0, 1] = 300.0, 300.0
    exact = np.rint(activate(logits.double()).numpy() * 255)
    found = quantise(logits, spec, torch.float32)
    assert found.dtype == torch.uint8
    assert found.shape == (spec.foreground, 200, 200)
    assert_equal_to_rounding(found.numpy(), exact.astype(np.uint8), share=1e-4)
    assert {0, 255} <= set(np.unique(found.numpy()))
