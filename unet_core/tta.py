"""The eight ways to lay a square tile: flips and quarter turns, and back.

Decision: a tile is turned after it is read, within its own legal square, never the image; so reads, halos and calls
stay those of the upright pass, and tiles still equal the whole pass, turned the same way. Why that is so:

    Every read starts at r0 = -halo (mod step) and every legal read is R = smallest (mod step) px wide, whatever its
    tile. A flip lets the network begin at the other end: it then repeats its behaviour on the grid r0 + R (mod step),
    which is one and the same for all tiles and for the whole pass. A quarter turn is a flip and an exchange of y and x,
    and both axes have the same r0 and R.

    Valid padding: nothing is made up at the tile's ends, so every output pixel is right whichever way it is turned;
    turned back, the outputs lie where they lay upright, and the surplus pixels are again those at the far end, which
    are cropped. (All pooled sizes being even, pooling's cells are the upright ones, too.)
    Same padding: r0, R = 0 (mod step) and there is no surplus for a core of whole cells, so a flip exchanges what a
    cell sees before itself with what it sees after, and the halo covers either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Symmetry:
    """Flip along some of the last two axes, then exchange them or not."""

    flipped: tuple[int, ...] = ()
    exchanged: bool = False

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor (..., h, w) turned."""
        turned = tensor.flip(self.flipped) if self.flipped else tensor
        return turned.transpose(-2, -1) if self.exchanged else turned

    def undo(self, tensor: Tensor) -> Tensor:
        """Return what `apply` was given."""
        upright = tensor.transpose(-2, -1) if self.exchanged else tensor
        return upright.flip(self.flipped) if self.flipped else upright


D4 = tuple(Symmetry(flipped, exchanged) for exchanged, flipped in product((False, True), ((), (-1,), (-2,), (-2, -1))))
"""The square's symmetry group; the first leaves the tile as it is."""

SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {"none": D4[:1], "d4": D4}
"""Ways of test-time augmentation, by name: whose answers are averaged."""
