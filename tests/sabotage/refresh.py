"""Write the ``*.patch`` files anew from ``sabotages.toml``, after code around a sabotage has moved.

The one decision made here: a sabotage is kept as the few words it changes, which outlive a reformatting; the patch is
what is applied and read. Exit 1 when the words to be changed are not there, or there more than once.

    python tests/sabotage/refresh.py
"""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
CONTEXT_LINES = 1


def main() -> int:
    """Replace all patches; the exit code."""
    sabotages: dict[str, Any] = tomllib.loads((HERE / "sabotages.toml").read_text("utf-8"))
    faults = [f"{name}: {fault}" for name, sabotage in sabotages.items() for fault in faults_of(sabotage)]
    if faults:
        print("\n".join(faults))
        return 1
    for patch in HERE.glob("*.patch"):
        patch.unlink()
    for name, sabotage in sabotages.items():
        head = f"# sabotage: {sabotage['broken']}\n# tests: {' '.join(sabotage['tests'])}\n"
        (HERE / f"{name}.patch").write_text(head + "".join(diff(sabotage)), "utf-8")
    print(f"{len(sabotages)} patches")
    return 0


def edits_of(sabotage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of words as they are and as they are to be."""
    return [(str(old), str(new)) for old, new in sabotage["edits"]]


def faults_of(sabotage: Mapping[str, Any]) -> Iterator[str]:
    """Words that are not there exactly once."""
    text = (TREE / sabotage["file"]).read_text("utf-8")
    for old, _ in edits_of(sabotage):
        if text.count(old) != 1:
            yield f"{sabotage['file']} holds {text.count(old)} times, expected once: {old!r}"


def diff(sabotage: Mapping[str, Any]) -> Iterator[str]:
    """The unified diff."""
    path = str(sabotage["file"])
    before = after = (TREE / path).read_text("utf-8")
    for old, new in edits_of(sabotage):
        after = after.replace(old, new)
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return difflib.unified_diff(*lines, f"a/{path}", f"b/{path}", n=CONTEXT_LINES)


if __name__ == "__main__":
    sys.exit(main())
