"""Which sizes a U-Net takes, and how much it must see to answer for a square of pixels. Integers only.

Decision: sizes follow from the spec by arithmetic alone and nobody configures them. Lengths are per axis.

        read  ┌─────────────────────────┐
              │ halo                    │      read = core + 2 * halo + surplus
              │     ┌─────────────┐     │      core starts on a multiple of step
              │     │    core     │     │      valid: the output starts at the core; same: crop_px = halo further in
              │     └─────────────┘     │
              └─────────────────────────┘

Valid, depth d. Two 3x3 convolutions take 4 px, a pooling halves, an up-convolution doubles:
    lost = 4 * 2^d at the bottom + 2 * 4 * (2^d - 1) on the way  =>  halo = 6 * 2^d - 4 on each side.
    Every pooled size must be even => inputs are -4 (mod 2^d); at d = 4: 188, 204, ... = 16k + 12 with k >= 11.
    Nearest upsampling has the reach of the 2x2 up-convolution. Bilinear upsampling also looks at the next coarse pixel,
    which does not exist beyond the tile: those outer pixels, 1 on each side at every level, are cut off in the network
    => halo = 7 * 2^d - 5.
Same, depth d. Zero padding at the tile's edge is wrong for every pixel that can see it, so as much is cropped as a
    cell, the 2^d pixels pooled into one, can see: 6 * 2^d - 2 px at d > 1, rounded up to a multiple of step so that
    reads start on the same phase as cores => halo = 6 * 2^d, bilinear 7 * 2^d. (Single pixels see up to 2^d - 1
    further on one side, by as much less on the other; legal reads are whole cells, so what they see is there.)
U-Net++, depth 4. Same padding, 2x2 up-convolutions. From node (level i, column j) a path goes to column j - 1, on the
    same level or the one below; so it passes 5 nodes before it climbs the contracting path, and of these paths the one
    that goes down at once sees furthest: it is the U-Net's own => halo = 6 * 2^d.
Attention U-Net, depth d. Same padding. Halving is a 3x3 convolution of stride 2, which reads 2i - 1 .. 2i + 1; doubling
    is its transpose, which reads floor(i / 2) .. ceil(i / 2); a node going up has one 3x3 convolution, one going down
    two, gates look at single pixels. A cell's first index f is walked backwards: d times f -> floor((f - 1) / 2), which
    stays at -1; d times f -> 2 (f - 1) - 1; the last two convolutions: f = 1 - 4 * 2^d. Its last index likewise ends
    4 * 2^d px beyond the cell (6 at d = 1) => halo = 4 * 2^d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from unet_core.errors import SizeError
from unet_core.spec import UNetSpec

CONVOLUTIONS_PX = 4  # two valid 3x3 convolutions take 2 px each


@dataclass(frozen=True, slots=True)
class ValidShape:
    """The sizes of one network: exact if cores start on multiples of `step` and reads start `halo` before them."""

    step: int  # 2^depth: poolings make the network equivariant to shifts by this and nothing finer
    halo: int  # px to read on each side of a core
    smallest_px: int  # smallest legal input; the others follow at every step
    trim_px: int  # input - output
    crop_px: int  # where the core starts in the output

    @classmethod
    def of(cls, spec: UNetSpec) -> Self:
        """Derive the sizes of the network `spec` describes."""
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
        """Whether the network takes an input this many pixels wide."""
        return input_px >= self.smallest_px and (input_px - self.smallest_px) % self.step == 0

    def output_px(self, input_px: int) -> int:
        """Return the width of the network's output. Raises SizeError, naming the nearest legal sizes."""
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
        """Return the smallest legal input whose trustworthy output covers `core_px` pixels.

        Raises SizeError below 1 px.
        """
        if core_px < 1:
            raise SizeError(f"core of {core_px} px: expected at least 1 px")
        return self.nearest_legal(core_px + 2 * self.halo)[-1]

    def surplus_px(self, core_px: int) -> int:
        """Return what a read holds beyond core and halos, at its far end; the output there is cropped."""
        return self.read_px(core_px) - core_px - 2 * self.halo


@dataclass(frozen=True, slots=True)
class JointShape:
    """What several networks need to answer for the same core: one read, in which each finds its own.

    Cores start on multiples of every network's step, and each reads its own halo: so each answers as if it were alone.
    """

    members: tuple[ValidShape, ...]

    @property
    def step(self) -> int:
        """The least common multiple: on its grid each network is on its own."""
        return math.lcm(*(one.step for one in self.members))

    @property
    def halo(self) -> int:
        """Px to read before a core: the largest."""
        return max(one.halo for one in self.members)

    def surplus_px(self, core_px: int) -> int:
        """Return what the read holds beyond core and halos, at its far end, for the network that reads furthest."""
        return max(one.read_px(core_px) - one.halo for one in self.members) - core_px - self.halo

    def window(self, one: ValidShape, core_px: int) -> slice:
        """Return what one of the networks reads of the common read, along each axis."""
        start = self.halo - one.halo
        return slice(start, start + one.read_px(core_px))


def _smallest_valid_px(depth: int, *, bilinear: bool) -> int:
    """Walk from one output pixel back to the input, rounding up where a level doubles."""
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

    Its first index is walked backwards through the deepest path, which sees furthest: a convolution adds one,
    upsampling reads index // 2 (bilinear: its neighbour too), pooling reads from 2 * index.
    """
    first = 0
    for _ in range(depth):
        first = (first - 2 - bilinear) // 2
    first -= 2
    for _ in range(depth):
        first = 2 * first - 2
    return -first
