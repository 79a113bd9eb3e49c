"""Words of the source tree, checked by reading it: docstrings, names, reasons for exceptions, refused phrases."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.docs.architecture_rules import BROAD, MEANINGLESS, REFUSED_WORDS
from tests.docs.source_tree import ROOT, SOURCES, Source, each_source, kept_files


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body)


@each_source
def test_everything_public_says_what_it_is_for(source: Source) -> None:
    assert ast.get_docstring(source.tree), f"{source.name} says nothing"
    silent = [node.name for node in _public(source.tree.body) if not ast.get_docstring(node)]
    assert silent == []


@each_source
def test_names_say_something(source: Source) -> None:
    assert not set(source.path.stem.split("_")) & MEANINGLESS


def _comments(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@each_source
def test_every_exception_from_a_tool_carries_its_reason(source: Source) -> None:
    for line, comment in _comments(source):
        for match in re.finditer(r"#\s*(?:noqa|type:\s*ignore)", comment):
            found = re.match(
                r"#\s*(?:noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*|type:\s*ignore\[[\w, -]+\])(.*)", comment[match.start() :]
            )
            assert found, f"{source.name}:{line} names no rule"
            assert len(re.findall(r"[a-zA-Z]{2,}", found[1])) >= 2, f"{source.name}:{line} gives no reason"


@each_source
def test_errors_are_caught_by_name(source: Source) -> None:
    for function in source.functions:
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                kinds = ast.unparse(node.type) if node.type else "everything"
                if "BaseException" in kinds:
                    last = node.body[-1]
                    assert isinstance(last, ast.Raise), f"{source.name}:{node.lineno} swallows even kill signals"
                    assert last.exc is None
                elif node.type is None or re.search(r"\bException\b", kinds):
                    assert (source.name, function.name) in BROAD, f"{source.name}:{node.lineno} catches {kinds}"


def test_the_places_that_catch_everything_are_still_there() -> None:
    places = {
        (source.name, function.name)
        for source in SOURCES
        for function in source.functions
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler) and node.type and ast.unparse(node.type) == "Exception"
    }
    assert places == BROAD


def test_the_project_speaks_of_itself_alone() -> None:
    """No word of who made it where: those who read it have neither the place nor the notes."""
    words = [
        r"/wor" r"k/",
        r"\bissu" r"e #?\d",
        r"\b(?:DESIGN|FACTS|FAULTS|FIELD|HOUSE)\.md\b",
        r"\bsub-?age" r"nts?\b",
    ]
    words += [r"\bclau" r"de\b", r"\banth" r"ropic\b", r"\bthe le" r"ad\b", r"(?-i:\bTODO\b)", r"\bFIXME\b"]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    for path in kept_files():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".cfg", ".c", ".sh", ""} and path != Path(__file__):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not pattern.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


def test_prose_is_standard_technical_english() -> None:
    pattern = re.compile("|".join(REFUSED_WORDS))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in kept_files()
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".j2", ".c", ".sh"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
