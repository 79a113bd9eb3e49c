"""Test-time augmentation: the eight symmetries of a square tile.

A tile is transformed after it is read, within its own legal square, so reads, halos and calls are those of the
untransformed pass and tiles still equal the whole pass:

    Every read starts at r0 = -halo (mod step) and every legal read is R = smallest (mod step) px wide, whatever its
    tile. A flip makes the network start at the other end: its behaviour then repeats on the grid r0 + R (mod step),
    which is the same for all tiles and for the whole pass. A quarter turn is a flip and an exchange of y and x, and
    both axes have the same r0 and R.

    Valid padding: every output pixel is correct in any orientation; transformed back, the outputs are at their original
    positions, and the surplus pixels at the far end are cropped. (All pooled sizes are even, so the cells of pooling
    are the original ones too.)
    Same padding: r0, R = 0 (mod step) and a core of whole cells has no surplus, so a flip exchanges what a cell sees
    before itself with what it sees after itself; the halo covers both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Symmetry:
    """A flip along some of the last two axes, then optionally their exchange."""

    flipped: tuple[int, ...] = ()
    exchanged: bool = False

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor (..., h, w) transformed."""
        turned = tensor.flip(self.flipped) if self.flipped else tensor
        return turned.transpose(-2, -1) if self.exchanged else turned

    def undo(self, tensor: Tensor) -> Tensor:
        """Return the tensor before `apply`."""
        upright = tensor.transpose(-2, -1) if self.exchanged else tensor
        return upright.flip(self.flipped) if self.flipped else upright


D4 = tuple(Symmetry(flipped, exchanged) for exchanged, flipped in product((False, True), ((), (-1,), (-2,), (-2, -1))))
"""The symmetry group of the square; the first element is the identity."""

SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {"none": D4[:1], "d4": D4}
"""Modes of test-time augmentation: the transformations whose probabilities are averaged."""
