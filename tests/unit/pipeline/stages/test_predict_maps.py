"""Maps of a network: planes of the same pass, in arrays of their own, and whole or absent after any kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.make_store import put_array, tree_bytes
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.predicting import (
    PLAN,
    Slide,
    all_tissue,
    assert_equal_to_rounding,
    cut,
    slide,
    weights_of,
    whole_pass,
)
from unet_core.spec import UNetSpec

SPECS = {
    "one class": UNetSpec(depth=2, width=4, maps=("distance",)),
    "classes and maps": UNetSpec(depth=2, width=4, classes=3, maps=("boundary", "centre", "distance")),
    "sigmoid": UNetSpec(depth=1, width=4, head="sigmoid", maps=("centre", "distance")),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("weights") for name in SPECS}
    return {name: weights_of(folder, SPECS[name]) for name, folder in found.items()}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("tile", "block"), [(128, 512), (256, 1024)])
def test_maps_of_tiles_are_those_of_the_whole_pass(
    tmp_path: Path, weights: dict[str, Path], name: str, tile: int, block: int
) -> None:
    image = cut(530, 600)
    made = slide(tmp_path, image, weights=weights[name], tile=tile, block=block)
    made.run()
    expected = whole_pass(weights[name], image)
    assert len(expected) == SPECS[name].foreground + len(SPECS[name].maps)
    assert all(plane.std() > 3 for plane in expected)
    assert_equal_to_rounding(made.outputs, expected, share=1e-3)


def test_probability_is_that_of_the_same_network_without_its_maps(tmp_path: Path, weights: dict[str, Path]) -> None:
    """The classes' channels are the first; a network that ends after them gives the same bytes."""
    import torch

    from unet_core.model_file.checkpoint import load, save
    from unet_core.networks.factory import build

    spec = SPECS["classes and maps"]
    full = load(weights["classes and maps"])
    plain = build(spec.model_copy(update={"maps": ()})).eval()
    state = full.state_dict()
    cut_state = {key: state[key][: tensor.shape[0]] for key, tensor in plain.state_dict().items()}
    plain.load_state_dict(cut_state)
    save(tmp_path / "plain.safetensors", plain, {})
    torch.set_num_threads(1)
    image = cut(200, 300)
    one = slide(tmp_path / "one", image, weights=weights["classes and maps"], tile=128)
    other = slide(tmp_path / "other", image, weights=tmp_path / "plain.safetensors", tile=128)
    one.run()
    other.run()
    np.testing.assert_array_equal(one.probability, other.probability)
    assert not (other.work.store.zarr / "maps").exists()


def test_cells_without_tissue_have_no_maps(tmp_path: Path, weights: dict[str, Path]) -> None:
    image = cut(600, 1100)
    made = slide(tmp_path, image, weights=weights["sigmoid"])
    tissue = all_tissue(image.shape[1:])
    tissue[:, 16:32] = False
    put_array(made.work.store, "tissue", tissue, "other")
    made.run()
    assert not made.outputs[:, :, 512:1024].any()
    expected = whole_pass(weights["sigmoid"], image)
    for cells in (np.s_[:, :, :512], np.s_[:, :, 1024:]):
        assert_equal_to_rounding(made.outputs[cells], expected[cells], share=1e-3)


def made_of(root: Path, weights: Path) -> Slide:
    return slide(root, cut(90, 1100), weights=weights, tile=512)


def test_a_block_is_done_when_all_arrays_have_it(tmp_path: Path, weights: dict[str, Path]) -> None:
    whole = made_of(tmp_path / "whole", weights["sigmoid"])
    whole.run()
    broken = made_of(tmp_path / "broken", weights["sigmoid"])
    broken.run()
    (broken.work.store.zarr / "maps" / "distance" / "0" / "c" / "0" / "1").unlink()
    (broken.work.store.zarr / "probability" / "0" / "c" / "0" / "0" / "2").unlink()
    assert broken.run().computed == 2
    assert tree_bytes(broken.work.root) == tree_bytes(whole.work.root)


def test_a_stage_killed_at_any_change_resumes(
    tmp_path: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two arrays of a block, and between two arrays that replace those of another plan, too."""
    whole = made_of(tmp_path / "whole", weights["sigmoid"])
    whole.run()
    renewed = replace(whole, work=replace(whole.work, plan_hash="e" * 64))
    renewed.run()
    expected, step = tree_bytes(whole.work.root), 0
    while True:
        made = made_of(tmp_path / str(step), weights["sigmoid"])
        if step % 2:
            made.run()
        made = replace(made, work=replace(made.work, plan_hash="e" * 64))
        with killed_at(step, monkeypatch) as steps:
            made.run()
        killed = steps[-1] == KILLED
        if killed:
            assert made.work.store.stamped("predict") in (None, PLAN)
            made.run()
        found = tree_bytes(made.work.root)
        assert {name: found[name] for name in found if not name.endswith(".partial")} == expected, step
        if not killed and step % 2:
            break
        step += 3
    assert step > 40
