"""Legal input sizes of a network, and the halo that it needs around a core. Integers only.

Sizes follow from the spec by arithmetic and are not configured. Lengths are per axis.

        read  ┌─────────────────────────┐
              │ halo                    │      read = core + 2 * halo + surplus
              │     ┌─────────────┐     │      core starts on a multiple of step
              │     │    core     │     │      valid: the output starts at the core; same: crop_px = halo further in
              │     └─────────────┘     │
              └─────────────────────────┘

Valid padding, depth d. Two 3x3 convolutions remove 4 px, a pooling halves, an up-convolution doubles:
    lost = 4 * 2^d at the bottom + 2 * 4 * (2^d - 1) on the way  =>  halo = 6 * 2^d - 4 on each side.
    Every pooled size must be even => inputs are -4 (mod 2^d); at d = 4: 188, 204, ... = 16k + 12 with k >= 11.
    Nearest upsampling has the reach of the 2x2 up-convolution. Bilinear upsampling also reads the next coarse pixel,
    which does not exist beyond the tile: those outer pixels, 1 on each side at every level, are cut off in the network
    => halo = 7 * 2^d - 5.
Same padding, depth d. Zero padding at the tile's edge affects every pixel that can see it, so as much is cropped as a
    cell, the 2^d pixels pooled into one, can see: 6 * 2^d - 2 px at d > 1, rounded up to a multiple of step so that
    reads start on the same phase as cores => halo = 6 * 2^d, bilinear 7 * 2^d. (Single pixels see up to 2^d - 1
    further on one side, by as much less on the other; legal reads are whole cells and include it.)
U-Net++, depth 4. Same padding, 2x2 up-convolutions. From node (level i, column j) a path goes to column j - 1, on the
    same level or the one below; so it passes 5 nodes before it climbs the contracting path, and of these paths the one
    that descends at once sees furthest: it is that of the U-Net => halo = 6 * 2^d.
Attention U-Net, depth d. Same padding. Halving is a 3x3 convolution of stride 2, which reads 2i - 1 .. 2i + 1; doubling
    is its transpose, which reads floor(i / 2) .. ceil(i / 2); a node going up has one 3x3 convolution, one going down
    two, gates read single pixels. A cell's first index f is traced backwards: d times f -> floor((f - 1) / 2), which
    stays at -1; d times f -> 2 (f - 1) - 1; the last two convolutions: f = 1 - 4 * 2^d. Its last index likewise ends
    4 * 2^d px beyond the cell (6 at d = 1) => halo = 4 * 2^d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from unet_core.errors import SizeError
from unet_core.spec import UNetSpec

CONVOLUTIONS_PX = 4  # two valid 3x3 convolutions remove 2 px each


@dataclass(frozen=True, slots=True)
class ValidShape:
    """Sizes of one network; tiles are exact if cores start on multiples of `step` and reads `halo` px before them."""

    step: int  # 2^depth: with poolings, the network is equivariant only to shifts by multiples of it
    halo: int  # px to read on each side of a core
    smallest_px: int  # smallest legal input; the others follow at every step
    trim_px: int  # input - output
    crop_px: int  # where the core starts in the output

    @classmethod
    def of(cls, spec: UNetSpec) -> Self:
        """Derive the sizes of a network from its spec."""
        step = 2**spec.depth
        if spec.architecture == "attention":
            halo = 4 * step
            return cls(step=step, halo=halo, smallest_px=step, trim_px=0, crop_px=halo)
        bilinear = spec.up == "bilinear"
        if spec.padding == "same":
            halo = -(-_cell_reach_px(spec.depth, bilinear=bilinear) // step) * step
            return cls(step=step, halo=halo, smallest_px=step, trim_px=0, crop_px=halo)
        halo = 7 * step - 5 if bilinear else 6 * step - 4
        smallest = _smallest_valid_px(spec.depth, bilinear=bilinear)
        return cls(step=step, halo=halo, smallest_px=smallest, trim_px=2 * halo, crop_px=0)

    def is_legal(self, input_px: int) -> bool:
        """Return whether the network takes an input of this side."""
        return input_px >= self.smallest_px and (input_px - self.smallest_px) % self.step == 0

    def output_px(self, input_px: int) -> int:
        """Return the side of the network's output.

        Raises:
            SizeError: The network does not take this input; the message names the nearest legal sizes.
        """
        if not self.is_legal(input_px):
            nearest = " or ".join(str(size) for size in self.nearest_legal(input_px))
            raise SizeError(
                f"input of {input_px} px: this network takes {self.smallest_px} px and every {self.step} px more; "
                f"nearest legal: {nearest} px"
            )
        return input_px - self.trim_px

    def nearest_legal(self, input_px: int) -> tuple[int, ...]:
        """Return the legal sizes around `input_px`: itself, or one below (if any) and one above."""
        above = self.smallest_px + max(0, -(-(input_px - self.smallest_px) // self.step)) * self.step
        if above == input_px:
            return (above,)
        below = above - self.step
        return (below, above) if below >= self.smallest_px else (above,)

    def read_px(self, core_px: int) -> int:
        """Return the smallest legal input whose valid output covers `core_px` pixels.

        Raises:
            SizeError: `core_px` is below 1.
        """
        if core_px < 1:
            raise SizeError(f"core of {core_px} px: expected at least 1 px")
        return self.nearest_legal(core_px + 2 * self.halo)[-1]

    def surplus_px(self, core_px: int) -> int:
        """Return the pixels of a read beyond core and halos, at its far end; the output there is cropped."""
        return self.read_px(core_px) - core_px - 2 * self.halo


@dataclass(frozen=True, slots=True)
class JointShape:
    """Sizes for several networks with a common core: one read that contains the read of each.

    Cores start on multiples of every network's step and each network reads its own halo, so its output is that of the
    network alone.
    """

    members: tuple[ValidShape, ...]

    @property
    def step(self) -> int:
        """Least common multiple of the steps."""
        return math.lcm(*(one.step for one in self.members))

    @property
    def halo(self) -> int:
        """Pixels to read before a core: the largest halo."""
        return max(one.halo for one in self.members)

    def surplus_px(self, core_px: int) -> int:
        """Return the pixels of the read beyond core and halos, at its far end, for the network that reads furthest."""
        return max(one.read_px(core_px) - one.halo for one in self.members) - core_px - self.halo

    def window(self, one: ValidShape, core_px: int) -> slice:
        """Return the part of the common read that one network reads, along each axis."""
        start = self.halo - one.halo
        return slice(start, start + one.read_px(core_px))


def _smallest_valid_px(depth: int, *, bilinear: bool) -> int:
    """Trace one output pixel back to the input, rounding up where a level doubles."""
    lost = CONVOLUTIONS_PX + (2 if bilinear else 0)
    size = 1
    for _ in range(depth):
        size = -(-(size + lost) // 2)  # before: doubled, then `lost` pixels fewer
    size += CONVOLUTIONS_PX  # the bottom
    for _ in range(depth):
        size = 2 * size + CONVOLUTIONS_PX  # before: two convolutions, then halved
    return size


def _cell_reach_px(depth: int, *, bilinear: bool) -> int:
    """Return how far beyond itself a cell of 2^depth pixels sees through same-padded convolutions, on either side.

    Its first index is traced backwards through the deepest path, which sees furthest: a convolution adds one,
    upsampling reads index // 2 (bilinear: its neighbour too), pooling reads from 2 * index.
    """
    first = 0
    for _ in range(depth):
        first = (first - 2 - bilinear) // 2
    first -= 2
    for _ in range(depth):
        first = 2 * first - 2
    return -first
