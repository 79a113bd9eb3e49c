"""One layer of a model summary: sizes, parameters and operations.

An operation is a multiplication or an addition: two for each weight used.
"""

from __future__ import annotations

from dataclasses import dataclass

UP_CONVOLUTION = "up-convolution"


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of the forward pass: `output_px` is the side of its output, `into` and `out` are channel counts."""

    name: str  # as in the weights file; poolings and joins hold no weights
    kind: str
    kernel: int
    into: int
    out: int
    output_px: int
    parameters: int = 0
    computed_px: int = 0  # side at which products are summed; 0 if there are none

    @property
    def operations(self) -> int:
        """Multiplications and additions for one tile."""
        products = 2 * self.kernel**2 * self.into * self.out * self.computed_px**2
        return products // 4 if self.kind == UP_CONVOLUTION else products  # a quarter of the taps meet an input pixel
