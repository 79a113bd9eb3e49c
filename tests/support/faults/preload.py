"""Faults below the command: system calls that fail or kill, chosen by rules (see preload.c).

The one decision made here: the fault strikes the real command in its own process, below Python, where disks fail too.
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
    """Strike the ``first`` to ``last`` occurrence of ``call`` on a path holding ``part``: an errno, or a deed."""

    call: str
    part: str
    action: int | str
    first: int = 1
    last: int = FOR_EVER


@dataclass(slots=True)
class Preload:
    """The compiled library, and how often each set of rules was met."""

    library: Path
    folder: Path
    sets: int = field(default=0)

    @classmethod
    def compile(cls, folder: Path) -> Preload | None:
        """Build the library; None where there is no C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            return None
        library = folder / "preload.so"
        flags = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Werror"]
        subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=60)
        return cls(library, folder)

    def under(self, command: Command, *rules: Rule) -> tuple[Command, list[Path]]:
        """The command with these faults, and for each rule the file whose length counts how often it was met."""
        self.sets += 1
        counters = [self.folder / f"count.{self.sets}.{number}" for number in range(len(rules))]
        lines = [
            "|".join(map(str, (rule.call, rule.part, rule.action, rule.first, rule.last, counter)))
            for rule, counter in zip(rules, counters, strict=True)
        ]
        return command.with_environment(LD_PRELOAD=str(self.library), FAULT_RULES="\n".join(lines)), counters

    def watched(self, command: Command, root: Path) -> tuple[Command, Path]:
        """The command with its changes below ``root`` noted in a file; see ``read_journal``."""
        self.sets += 1
        journal = self.folder / f"journal.{self.sets}"
        noted = {"FAULT_JOURNAL": str(journal), "FAULT_ROOT": str(root)}
        return command.with_environment(LD_PRELOAD=str(self.library), **noted), journal


@dataclass(frozen=True, slots=True)
class Change:
    """One system call that changed the disk: what it did, to which path, and where a rename led."""

    call: str
    path: Path
    to: Path


def read_journal(journal: Path) -> list[Change]:
    """What succeeded, in order, of all processes."""
    lines = (line.split("\t") for line in journal.read_text().splitlines())
    return [Change(call, Path(path), Path(to)) for call, path, to in lines]


def times(counter: Path) -> int:
    """How often a rule was met."""
    return counter.stat().st_size if counter.exists() else 0
