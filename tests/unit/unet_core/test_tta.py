"""The eight symmetries of a square equal those of numpy."""

from __future__ import annotations

import numpy as np
import torch

from unet_core.tta import D4, SYMMETRIES


def test_symmetries_equal_the_eight_of_numpy() -> None:
    square = np.arange(12).reshape(2, 2, 3)[:, :, :2]  # two channels, no two pixels alike
    turns = [np.rot90(square, quarter, axes=(1, 2)) for quarter in range(4)]
    expected = {one.tobytes() for turn in turns for one in (turn, turn[:, :, ::-1])}
    found = [one.apply(torch.from_numpy(square.copy())).numpy() for one in D4]
    assert {np.ascontiguousarray(one).tobytes() for one in found} == expected
    assert len(expected) == len(D4) == 8


def test_undo_reverses_apply() -> None:
    tile = torch.rand(2, 3, 5, 7)
    for symmetry in D4:
        turned = symmetry.apply(tile)
        assert turned.shape[-2:] == ((7, 5) if symmetry.exchanged else (5, 7))
        assert torch.equal(symmetry.undo(turned), tile)


def test_none_keeps_the_tile_unchanged() -> None:
    (upright,) = SYMMETRIES["none"]
    tile = torch.rand(1, 3, 4, 4)
    assert upright.apply(tile) is tile
    assert upright.undo(tile) is tile
    assert SYMMETRIES["d4"] is D4
    assert D4[0] == upright
