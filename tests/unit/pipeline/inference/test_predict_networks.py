"""Other architectures, test-time augmentation and ensembles through the predict stage equal the whole pass.

The oracle is a forward pass of each network over the whole mirrored image, turned as a whole, in torch and numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.geometry import TileGrid
from pipeline.inference import predictor as networks
from pipeline.inference.predictor import Predictor
from pipeline.stages.predict import load_network
from tests.unit.pipeline.predicting import (
    Image,
    Slide,
    answers,
    assert_equal_to_rounding,
    chosen,
    cut,
    slide,
    weights_of,
)
from unet_core.model_file.checkpoint import load
from unet_core.shapes import JointShape, ValidShape
from unet_core.spec import UNetSpec, preset

VALID = UNetSpec(depth=3, width=4)
BILINEAR = UNetSpec(depth=2, width=4, up="bilinear", mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3))
NESTED = preset("unet++", width=4, growth=1)
GATED = preset("attention", width=4, depth=3)
SHALLOW = preset("attention", width=4, depth=1, head="sigmoid")
MAPPED = UNetSpec(depth=2, width=4, classes=3, maps=("centre", "distance"))
TWICE = preset("attention", width=4, depth=1, head="sigmoid", classes=3, maps=("centre", "distance"))


@dataclass(frozen=True)
class Case:
    """Networks that are averaged, and the test-time augmentation."""

    specs: tuple[UNetSpec, ...]
    tta: str = "none"

    @property
    def turns(self) -> Sequence[tuple[int, bool]]:
        """Quarter turns, and a flip after them or not."""
        every = [(quarter, flip) for quarter in range(4) for flip in (False, True)]
        return every[:1] if self.tta == "none" else every


CASES = {
    "unet++": Case((NESTED,)),
    "attention": Case((GATED,)),
    "valid, turned": Case((VALID,), "d4"),
    "attention, turned": Case((SHALLOW,), "d4"),
    "two": Case((BILINEAR, GATED)),
    "two, turned": Case((BILINEAR, SHALLOW), "d4"),
    "maps, turned": Case((MAPPED,), "d4"),
    "two with maps": Case((MAPPED, TWICE)),
}
LONG = {
    "unet++, turned": Case((NESTED,), "d4"),
    "attention, turned": Case((GATED,), "d4"),
    "bilinear, turned": Case((BILINEAR,), "d4"),
    "three": Case((VALID, NESTED, GATED)),
    "three, turned": Case((VALID, NESTED, GATED), "d4"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ---- the oracle ----------------------------------------------------------------------------------------------------


def whole_pass(files: Sequence[Path], image_CYX: Image, turns: Sequence[tuple[int, bool]]) -> NDArray[np.int16]:
    """The mean, over networks and turns, of one forward pass over all of the mirrored image; 0 to 255, rounded."""
    each = [one for path in files for one in passes(path, image_CYX, turns)]
    return np.rint(255 * np.mean(each, axis=0)).astype(np.int16)


def passes(path: Path, image_CYX: Image, turns: Sequence[tuple[int, bool]]) -> Iterator[NDArray[np.float64]]:
    """Outputs (k + m, y, x) of one network. The whole mirrored image is a legal size and starts on the step."""
    torch.set_num_threads(1)
    model = load(path)
    spec, step = model.spec, 2**model.spec.depth
    lost = 0 if spec.padding == "same" else 7 * step - 5 if spec.up == "bilinear" else 6 * step - 4
    around = lost or 12 * step  # same padding: far beyond what its zeros can reach
    height, width = image_CYX.shape[1:]
    more = [next(n for n in range(step) if model.shape.is_legal(side + 2 * around + n)) for side in (height, width)]
    padded = np.pad(image_CYX, [(0, 0), (around, around + more[0]), (around, around + more[1])], mode="reflect")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    x = (padded.astype(np.float32) / np.float32(255) - mean) / std
    for quarter, flip in turns:
        turned = np.rot90(x, quarter, axes=(1, 2))
        turned = turned[:, :, ::-1] if flip else turned
        with torch.inference_mode():
            logits = model(torch.from_numpy(turned.copy())[None])[0].double()
            p = answers(logits, spec).numpy()
        p = p[:, :, ::-1] if flip else p
        start = around - lost
        yield np.rot90(p, -quarter, axes=(1, 2))[:, start : start + height, start : start + width]


def files_of(folder: Path, case: Case) -> tuple[Path, ...]:
    """Random (He) weights for each network of a case."""
    places = [folder / f"weights {number}" for number in range(len(case.specs))]
    for place in places:
        place.mkdir(parents=True)
    return tuple(
        weights_of(place, spec, seed) for seed, (place, spec) in enumerate(zip(places, case.specs, strict=True))
    )


def ready(root: Path, image: Image, files: tuple[Path, ...], case: Case, **sizes: int) -> Slide:
    """A slide to be predicted by all networks of a case."""
    made = slide(root, image, weights=files[0], **sizes)
    return replace(made, section=replace(made.section, weights=chosen(*files), tta=case.tta))


def prove(folder: Path, case: Case, image: Image, sizes: Sequence[tuple[int, int]]) -> None:
    files = files_of(folder, case)
    expected = whole_pass(files, image, case.turns)
    assert expected.std() > 3, "something to compare"
    for tile, block in sizes:
        made = ready(folder / f"{tile} {block}", image, files, case, tile=tile, block=block)
        report = made.run()
        assert_equal_to_rounding(made.outputs, expected, share=1e-3)
        tiles = sum(len(TileGrid(core.core, tile)) for core in made.work.grid)
        assert report.counts["network_calls"] == tiles, "a tile is a call, in however many passes it is answered"


@each_case
def test_tiles_equal_the_whole_pass(tmp_path: Path, case: Case) -> None:
    prove(tmp_path, case, cut(133, 547), [(128, 512)])


@pytest.mark.long
@pytest.mark.parametrize("case", [*CASES.values(), *LONG.values()], ids=[*CASES, *(f"long: {name}" for name in LONG)])
def test_tiles_of_every_size_equal_the_whole_pass(tmp_path: Path, case: Case) -> None:
    prove(tmp_path, case, cut(601, 1125), [(64, 512), (160, 512), (256, 512), (512, 512), (384, 1024), (1024, 1024)])


def test_every_orientation_and_every_network_changes_result(tmp_path: Path) -> None:
    """Control: the mean differs from the result of one orientation and from that of one network."""
    case, image = CASES["two, turned"], cut(133, 200)
    files = files_of(tmp_path, case)
    expected = whole_pass(files, image, case.turns)
    others = [whole_pass(files, image, [(0, False)]), *(whole_pass([one], image, case.turns) for one in files)]
    others += [whole_pass(files, image, case.turns[:-1])]
    for other in others:
        assert (np.abs(expected - other) > 1).mean() > 0.02


@pytest.mark.parametrize("name", ["unet++", "attention", "two"])
def test_control_halo_one_step_short_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, image = CASES[name], cut(133, 547)
    files = files_of(tmp_path, case)
    made = ready(tmp_path / "slide", image, files, case, tile=64)
    of = ValidShape.of

    def short(spec: UNetSpec) -> ValidShape:
        shape = of(spec)
        if spec.padding == "valid":
            return shape
        return replace(shape, halo=shape.halo - shape.step, crop_px=shape.crop_px - shape.step)

    monkeypatch.setattr(ValidShape, "of", staticmethod(short))
    made.run()
    apart = np.abs(made.probability - whole_pass(files, image, case.turns))
    print(f"{(apart > 1).mean():.2%} of pixels are more than 1 grey level off, up to {apart.max()}")
    assert (apart > 1).any()


def test_bf16_is_the_same_for_every_tile_and_averaged_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, image = CASES["two, turned"], cut(133, 300)
    files = files_of(tmp_path, case)
    answers, rounded = [], set()
    to_bytes = networks.to_bytes
    monkeypatch.setattr(networks, "to_bytes", lambda mean: (rounded.add(mean.dtype), to_bytes(mean))[1])
    for tile in (64, 256):
        made = ready(tmp_path / str(tile), image, files, case, tile=tile)
        made = replace(made, section=replace(made.section, precision="bf16"))
        made.run()
        answers.append(made.probability)
    assert np.array_equal(*answers)
    assert rounded == {torch.float32}


def test_out_of_memory_halves_the_tile_of_all_networks(tmp_path: Path) -> None:
    case, image = CASES["two, turned"], cut(133, 300)
    files = files_of(tmp_path, case)
    plain, short = (ready(tmp_path / name, image, files, case, tile=256) for name in ("plain", "short"))
    plain.run()
    network = load_network(short.section)
    second = network.members[1]

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        if x_NCHW.shape[-1] > 200:
            raise torch.OutOfMemoryError("too wide")
        return second.forward(x_NCHW)

    network.members = (network.members[0], replace(second, forward=forward))
    assert short.run().counts["halved"] > 0
    assert network.largest_px == 128
    assert_equal_to_rounding(short.probability, plain.probability, share=1e-3)


def test_single_network_writes_bytes_of_plain_predictor(tmp_path: Path) -> None:
    """One member without augmentation: its own sizes, one pass, its own bytes."""
    case, image = Case((VALID,)), cut(133, 300)
    files = files_of(tmp_path, case)
    made = ready(tmp_path / "slide", image, files, case, tile=128)
    network = load_network(made.section)
    (member,) = network.members
    given: list[tuple[int, ...]] = []

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        given.append(tuple(x_NCHW.shape))
        return member.forward(x_NCHW)

    network.members = (replace(member, forward=forward),)
    assert made.run().counts["network_calls"] == len(given) == 6
    assert set(given) == {(1, 3, member.shape.read_px(128), member.shape.read_px(128))}
    assert network.shape == JointShape((member.shape,))


def test_networks_are_loaded_once_for_each_augmentation(tmp_path: Path) -> None:
    case = CASES["two"]
    section = ready(tmp_path / "slide", cut(60, 60), files_of(tmp_path, case), case, tile=64).section
    network = load_network(section)
    assert isinstance(network, Predictor)
    assert len(network.members) == 2
    assert load_network(replace(section, tile_px=128)) is network
    assert len(load_network(replace(section, tta="d4")).symmetries) == 8
