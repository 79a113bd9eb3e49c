"""The source tree as the tests of its rules read it: modules, imports, and the files that git knows."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.docs.architecture_rules import PACKAGES

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """One file of the three packages."""

    path: Path

    @cached_property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.name.partition("/")[0]

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    def imports(self, *, top: bool = False) -> set[str]:
        """Dotted names imported anywhere, or (``top``) when the module is."""
        nodes = _when_imported(self.tree) if top else ast.walk(self.tree)
        return {name for node in nodes for name in _imported(node)}

    def is_in(self, patterns: tuple[str, ...]) -> bool:
        """Whether a pattern names the file: ``a/b.py``, ``a/*.py`` or, with all folders below, ``a/*``."""
        return any(
            self.name.startswith(pattern[:-1]) if pattern.endswith("/*") else self.path.relative_to(ROOT).match(pattern)
            for pattern in patterns
        )


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        return [f"{module}.{alias.name}" if module in PACKAGES else module for alias in node.names]
    return []


def _when_imported(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run on import: not in functions, not only for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _when_imported(child)


SOURCES = [Source(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def each_source(check: Callable[[Source], None]) -> Callable[[], None]:
    """One test of all files, which names every file that fails the check."""

    def test() -> None:
        wrong = []
        for source in SOURCES:
            try:
                check(source)
            except AssertionError as error:
                wrong.append(f"{source.name}: {error}")
        assert not wrong, "\n".join(wrong)

    test.__doc__ = check.__doc__
    return test


def kept_files() -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
