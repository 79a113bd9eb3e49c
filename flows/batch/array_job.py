"""A share of a batch: every n-th slide, taken by one of n processes that know nothing of each other.

The one decision made here: a share is told by two numbers that every queueing system hands to its jobs, so there is no
scheduler. All shares work into the same OUT, where locks keep two from one slide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ArrayJob:
    """Number ``number`` of ``of``, counted from 1."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> ArrayJob:
        """From i/n. Raises ConfigError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        share = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= share.number <= share.of:
            raise ConfigError(
                f"--array {text}: expected i/n with i from 1 to n, such as 3/8. Under SLURM, with #SBATCH --array=1-8: "
                "--array $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
            )
        return share

    def take(self, items: Sequence[T]) -> list[T]:
        """Its part; those of all numbers are everything, once."""
        return list(items[self.number - 1 :: self.of])
