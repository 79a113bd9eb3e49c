"""Inject faults below Python by rules (see preload.c).

Faults occur in the process of the real command, below Python, as with a failing disk.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.commands import Command

SOURCE = Path(__file__).with_name("preload.c")
FOR_EVER = 10**9


@dataclass(frozen=True, slots=True)
class Rule:
    """Fails occurrences ``first`` to ``last`` of ``call`` on paths with ``part``, by an errno or another action."""

    call: str
    part: str
    action: int | str
    first: int = 1
    last: int = FOR_EVER


@dataclass(slots=True)
class Preload:
    """The compiled library and counters of how often each rule applied."""

    library: Path
    folder: Path
    sets: int = field(default=0)

    @classmethod
    def compile(cls, folder: Path) -> Preload | None:
        """Build the library; None without a C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            return None
        library = folder / "preload.so"
        flags = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Werror"]
        subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=60)
        return cls(library, folder)

    def under(self, command: Command, *rules: Rule) -> tuple[Command, list[Path]]:
        """Return the command with these faults and, for each rule, a file whose length counts its occurrences."""
        self.sets += 1
        counters = [self.folder / f"count.{self.sets}.{number}" for number in range(len(rules))]
        lines = [
            "|".join(map(str, (rule.call, rule.part, rule.action, rule.first, rule.last, counter)))
            for rule, counter in zip(rules, counters, strict=True)
        ]
        return command.with_environment(LD_PRELOAD=str(self.library), FAULT_RULES="\n".join(lines)), counters

    def watched(self, command: Command, root: Path) -> tuple[Command, Path]:
        """Return the command with its changes below ``root`` recorded in a file; see ``read_journal``."""
        self.sets += 1
        journal = self.folder / f"journal.{self.sets}"
        noted = {"FAULT_JOURNAL": str(journal), "FAULT_ROOT": str(root)}
        return command.with_environment(LD_PRELOAD=str(self.library), **noted), journal


@dataclass(frozen=True, slots=True)
class Change:
    """One system call that changed the disk: its name, its path and the target of a rename."""

    call: str
    path: Path
    to: Path


def read_journal(journal: Path) -> list[Change]:
    """Return the successful calls of all processes in order."""
    lines = (line.split("\t") for line in journal.read_text().splitlines())
    return [Change(call, Path(path), Path(to)) for call, path, to in lines]


def times(counter: Path) -> int:
    """Return how often a rule applied."""
    return counter.stat().st_size if counter.exists() else 0
