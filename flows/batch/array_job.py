"""Array jobs (`--array i/n`): job i of n independent processes takes every n-th slide.

Queueing systems pass both numbers to their jobs, so no scheduler is needed. All jobs write to the same OUT, where
locks keep two jobs from the same slide.
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
    """Job ``number`` of ``of``, counted from 1."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> ArrayJob:
        """Parse i/n.

        Raises:
            ConfigError: The text has another form, or i is not between 1 and n.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        share = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= share.number <= share.of:
            raise ConfigError(
                f"--array {text}: expected i/n with i from 1 to n, such as 3/8. Under SLURM, with #SBATCH --array=1-8: "
                "--array $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
            )
        return share

    def take(self, items: Sequence[T]) -> list[T]:
        """The items of this job. The items of all jobs are disjoint and complete."""
        return list(items[self.number - 1 :: self.of])
