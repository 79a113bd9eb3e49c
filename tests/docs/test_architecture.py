"""The shape of the house, read from its source: who imports whom, which library lives where, how large things get.

A new file needs one line in `tests/docs/architecture_rules.py`: that is the moment to ask whether it belongs at all.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.docs.architecture_rules import (
    BROAD,
    LAZY,
    LEVELS,
    LIBRARIES,
    LIGHT,
    MEANINGLESS,
    MODULES_IN_A_FOLDER,
    PACKAGES,
    PASSES_ON,
    TOP,
)

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES, FILE_LINES, PARAMETERS = 60, 400, 5


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


# ---- who imports whom ----------------------------------------------------------------------------------------------


@each_source
def test_packages_import_only_to_the_right(source: Source) -> None:
    allowed = PACKAGES[PACKAGES.index(source.package) :]
    first = {name.partition(".")[0] for name in source.imports()}
    assert not first & set(PACKAGES) - set(allowed)
    assert "tests" not in first


def _folder(module: str) -> str:
    """The folder of a module: ``pipeline.stages.label`` lies in ``pipeline.stages``."""
    return module.rpartition(".")[0]


MODULES = {source.name.removesuffix(".py").replace("/", "."): source for source in SOURCES}
LEVEL = {folder: number for number, folders in enumerate(LEVELS) for folder in folders}


def test_every_folder_has_one_level() -> None:
    folders = {_folder(name) for name in MODULES if not name.endswith(".__init__")}
    assert folders == set(LEVEL)
    assert len(LEVEL) == sum(map(len, LEVELS))


@each_source
def test_folders_import_lower_levels_only(source: Source) -> None:
    folder = _folder(source.name.removesuffix(".py").replace("/", "."))
    if source.path.name == "__init__.py":
        return
    for name in source.imports():
        if name.partition(".")[0] in PACKAGES:
            other = _folder(name if name in MODULES else _folder(name) if _folder(name) in MODULES else f"{name}.")
            assert other == folder or LEVEL[other] < LEVEL[folder], f"imports {name}"


def test_folders_hold_few_modules() -> None:
    count: dict[Path, int] = {}
    for path in (path for top in (*PACKAGES, "tests") for path in (ROOT / top).rglob("*.py")):
        if path.name != "__init__.py":
            count[path.parent] = count.get(path.parent, 0) + 1
    assert {str(folder): number for folder, number in count.items() if number > MODULES_IN_A_FOLDER} == {}


def test_class_names_are_unique() -> None:
    names = [
        node.name
        for source in SOURCES
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def test_imports_form_no_circle() -> None:
    names = {name: source.imports() for name, source in MODULES.items()}
    seen: dict[str, bool] = {}  # False while its imports are being followed

    def follow(name: str, trail: tuple[str, ...]) -> None:
        assert seen.get(name, True), f"circle: {' -> '.join((*trail, name))}"
        if name not in seen:
            seen[name] = False
            imported = {one if one in names else one.rpartition(".")[0] for one in names[name]}
            for other in imported & set(names):
                follow(other, (*trail, name))
            seen[name] = True

    for name in names:
        follow(name, ())


@each_source
def test_libraries_are_imported_where_they_belong(source: Source) -> None:
    first = {name.partition(".")[0] for name in source.imports()}
    for library in sorted(first & set(LIBRARIES)):
        assert source.is_in(LIBRARIES[library]), f"{source.name} imports {library}; expected {LIBRARIES[library]}"


@each_source
def test_heavy_libraries_are_imported_when_needed(source: Source) -> None:
    first = {name.partition(".")[0] for name in source.imports(top=True)}
    for library in sorted(first & set(LAZY)):
        assert source.is_in(LAZY[library]), f"{source.name} imports {library} at its top"


def test_light_modules_load_neither_torch_nor_prefect() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, sorted({'torch', 'prefect'} & set(sys.modules)))\n"
    )
    run = [sys.executable, "-c", script, *LIGHT]
    lines = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [f"{name} []" for name in LIGHT]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_library(package: str) -> None:
    """A package has a docstring; what it exports is imported on first use."""
    assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    script = (
        "import sys; before = set(sys.modules); "
        f"import {package}; new = {{name.partition('.')[0] for name in set(sys.modules) - before}}; "
        "print(new - sys.stdlib_module_names)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ast.literal_eval(run.stdout) == {package}


# ---- files are data --------------------------------------------------------------------------------------------------

LOADERS = {"yaml.load": {"Loader": "_StrictLoader"}, "torch.load": {"weights_only": "True"}}
LOADERS |= {"np.load": {"allow_pickle": "False"}, "import_module": {}}
"""Calls that could run what a file or a word says, and with which keywords they cannot."""


def _calls(source: Source) -> Iterator[tuple[str, dict[str, str]]]:
    """What is called, and the keywords it is given."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg or "**": ast.unparse(keyword.value) for keyword in node.keywords}
            yield ast.unparse(node.func), keywords


@each_source
def test_fault_55_60_nothing_that_is_read_is_ever_run(source: Source) -> None:
    for name, keywords in _calls(source):
        risky = name.rpartition(".")[2] in ("eval", "exec", "compile", "__import__", "system", "popen", "import_module")
        risky |= re.fullmatch(r"(yaml|torch|np|numpy|pandas|pd)\.(\w+_)?(load|read_pickle)(_\w+)?", name) is not None
        is_method = name.endswith((".eval", "re.compile"))  # of a network; of a pattern
        assert not risky or is_method or name in LOADERS, f"{source.name} calls {name}"
        for keyword, value in LOADERS.get(name, {}).items():
            assert keywords.get(keyword) == value, f"{source.name}: {name} without {keyword}={value}"
        assert keywords.get("shell", "False") == "False", f"{source.name} starts a shell"


@each_source
def test_fault_66_what_a_flow_raises_is_kept_as_json(source: Source) -> None:
    """Prefect keeps it whatever it is told, by default as a pickle of the exception and all that it holds."""
    flows = [keywords for name, keywords in _calls(source) if name == "flow"]
    assert [keywords.get("result_serializer") for keywords in flows] == ["'json'"] * len(flows)
    assert len(flows) == len(re.findall(r"^@flow\b", source.text, re.MULTILINE))


@each_source
def test_fault_65_labels_and_macros_are_never_asked_for(source: Source) -> None:
    assert not {"associated_images", "get_thumbnail"} & {getattr(node, "attr", "") for node in ast.walk(source.tree)}


# ---- size ----------------------------------------------------------------------------------------------------------


@each_source
def test_files_and_functions_stay_small(source: Source) -> None:
    assert len(source.text.splitlines()) <= FILE_LINES
    for function in source.functions:
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES, f"{source.name}: {function.name} has {lines} lines"


def test_files_of_tests_stay_small() -> None:
    long = {
        path.name for path in (ROOT / "tests").rglob("*.py") if len(path.read_text("utf-8").splitlines()) > FILE_LINES
    }
    assert not long


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("app.") for decorator in function.decorator_list)


@each_source
def test_functions_take_few_parameters(source: Source) -> None:
    for function in source.functions:
        given = function.args
        names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        names += [one.arg for one in (given.vararg,) if one]
        count = len([name for name in names if name not in ("self", "cls")])
        is_command = source.is_in(LIBRARIES["typer"]) and _is_command(function)
        assert count <= PARAMETERS or is_command, f"{source.name}: {function.name} takes {count}"
        assert given.kwarg is None or (source.name, function.name) in PASSES_ON, f"{source.name}: **{given.kwarg}"


# ---- words ---------------------------------------------------------------------------------------------------------


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


# ---- the tree ------------------------------------------------------------------------------------------------------


def _kept_files() -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_top_of_the_tree_is_short() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in _kept_files()}
    assert {name for name in top if not name.startswith(".")} - TOP == set()


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
    for path in _kept_files():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".cfg", ".c", ".sh", ""} and path != Path(__file__):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not pattern.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
