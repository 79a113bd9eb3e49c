"""Mutations: read them from ``mutations.toml`` and apply them to source text.

Each table of ``mutations.toml`` is one mutation::

    [tile_stride_off_step]
    broken = "Tiles are kept 4 px wider than a multiple of the step."
    function = "pipeline.predict.predict_block"
    edits = [["old text", "new text"]]
    tests = ["tests/pipeline/test_predict.py::test_a"]

``function`` names a function, method or class, or a module for text outside functions; ``file`` replaces it for
files that are not Python. Each old text occurs exactly once in the source named. A mutation that changes several
places holds an array of tables ``changes``, each with ``function`` or ``file`` and ``edits``.
"""

from __future__ import annotations

import ast
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent / "mutations.toml"
KEYS = frozenset({"broken", "tests", "changes"})
CHANGE_KEYS = frozenset({"function", "file", "edits"})


class MutationError(ValueError):
    """A mutation that cannot be read or applied."""


@dataclass(frozen=True, slots=True)
class Change:
    """Edits of one function, class, module or other file."""

    target: str
    is_file: bool
    edits: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault: its name, its description, the changes that cause it and the tests that detect it."""

    name: str
    broken: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


# ---- the table -------------------------------------------------------------------------------------------------------


def read_table(path: Path = TABLE) -> list[Mutation]:
    """Read all mutations.

    Raises:
        MutationError: If a table misses a key or has an unknown one.
    """
    return [parse(name, table) for name, table in tomllib.loads(path.read_text("utf-8")).items()]


def parse(name: str, table: Mapping[str, Any]) -> Mutation:
    """Convert one table of the TOML file.

    Raises:
        MutationError: If a key is missing, unknown or empty.
    """
    changes = table["changes"] if "changes" in table else [{key: table[key] for key in CHANGE_KEYS & table.keys()}]
    allowed = KEYS if "changes" in table else (KEYS | CHANGE_KEYS) - {"changes"}
    unknown = sorted(table.keys() - allowed)
    if unknown or not table.get("broken") or not table.get("tests") or not changes:
        raise MutationError(f"{name}: expected broken, tests, and function (or file) with edits; unknown: {unknown}")
    return Mutation(name, table["broken"], tuple(parse_change(name, change) for change in changes), (*table["tests"],))


def parse_change(name: str, table: Mapping[str, Any]) -> Change:
    """Convert the place and the edits of a mutation.

    Raises:
        MutationError: If not exactly one of ``function`` and ``file`` is given, or an edit is not a pair.
    """
    named = {"function", "file"} & table.keys()
    edits = table.get("edits", ())
    if len(named) != 1 or table.keys() - CHANGE_KEYS or not edits or any(len(edit) != 2 for edit in edits):
        raise MutationError(f"{name}: expected function or file, and edits as pairs of old and new text")
    place = named.pop()
    return Change(table[place], place == "file", tuple((old, new) for old, new in edits))


# ---- editing ---------------------------------------------------------------------------------------------------------


def mutated(mutation: Mutation, tree: Path) -> dict[Path, tuple[str, str]]:
    """Return the text of each changed file before and after the mutation, by path relative to ``tree``.

    Raises:
        MutationError: If a target does not exist, or an old text does not occur exactly once in it.
    """
    replaced: dict[Path, list[tuple[int, int, str]]] = {}
    for change in mutation.changes:
        path, begin, end = locate(change, tree)
        text = read_text(tree / path)
        for old, new in change.edits:
            count = text.count(old, begin, end)
            if count != 1 or old == new:
                raise MutationError(
                    f"{mutation.name}: {change.target} ({path}) holds the text {count} times, expected once: {old!r}"
                )
            at = text.index(old, begin, end)
            replaced.setdefault(path, []).append((at, at + len(old), new))
    return {path: (text := read_text(tree / path), replace(mutation, text, spans)) for path, spans in replaced.items()}


def replace(mutation: Mutation, text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """Replace spans of a text, given as start, end and new content.

    Raises:
        MutationError: If two spans overlap.
    """
    limit = len(text)
    for start, stop, new in sorted(spans, reverse=True):
        if stop > limit:
            raise MutationError(f"{mutation.name}: two edits overlap")
        text, limit = text[:start] + new + text[stop:], start
    return text


def locate(change: Change, tree: Path) -> tuple[Path, int, int]:
    """Find the file of a change, relative to ``tree``, and the span of characters that may be edited.

    Raises:
        MutationError: If the file, module, class or function does not exist.
    """
    if change.is_file:
        if not (tree / change.target).is_file():
            raise MutationError(f"no file {change.target}")
        return Path(change.target), 0, len(read_text(tree / change.target))
    parts = change.target.split(".")
    for length in range(len(parts), 0, -1):
        module = Path(*parts[:length])
        path = next((p for p in (module.with_suffix(".py"), module / "__init__.py") if (tree / p).is_file()), None)
        if path is not None:
            return (path, *span(tree / path, tuple(parts[length:])))
    raise MutationError(f"no module holds {change.target}")


def span(path: Path, qualified: tuple[str, ...]) -> tuple[int, int]:
    """Return the characters from the first decorator to the last line of a definition, or of a whole module.

    Raises:
        MutationError: If the module does not define the name, or defines it more than once.
    """
    text = read_text(path)
    if not qualified:
        return 0, len(text)
    found = definitions(path).get(qualified, [])
    if len(found) != 1:
        raise MutationError(f"{path} defines {'.'.join(qualified)} {len(found)} times, expected once")
    first, last = found[0]
    lines = text.splitlines(keepends=True)
    return sum(map(len, lines[: first - 1])), sum(map(len, lines[:last]))


@cache
def read_text(path: Path) -> str:
    """Return the text of a file, read once per process."""
    return path.read_text("utf-8")


@cache
def definitions(path: Path) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Return first and last line of each class, method and function of a module, by qualified name."""
    found: dict[tuple[str, ...], list[tuple[int, int]]] = {}

    def visit(node: ast.AST, outer: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found.setdefault((*outer, child.name), []).append((first, child.end_lineno or first))
                visit(child, (*outer, child.name))
            else:
                visit(child, outer)

    visit(ast.parse(read_text(path)), ())
    return found


def diff_of(mutation: Mutation, tree: Path) -> str:
    """Return the mutation as a unified diff."""
    return "".join(
        line
        for path, (before, after) in mutated(mutation, tree).items()
        for line in difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
        )
    )
