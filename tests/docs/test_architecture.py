"""Rules of the source tree, checked by reading the source: imports, libraries, sizes.

The rules themselves are in `architecture_rules.py`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.architecture_rules import LAZY, LEVELS, LIBRARIES, LIGHT, MODULES_IN_A_FOLDER, PACKAGES, PASSES_ON, TOP
from tests.docs.source_tree import ROOT, SOURCES, Source, each_source, kept_files

FUNCTION_LINES, FILE_LINES, PARAMETERS = 60, 400, 5


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


@each_source
def test_stages_do_not_import_one_another(source: Source) -> None:
    """Stages meet in the slide store only; ``split_objects`` is a part of the label stage."""
    if source.name.startswith("pipeline/stages/"):
        others = {name for name in source.imports() if name.startswith("pipeline.stages")}
        assert others <= {"pipeline.stages.split_objects"}


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


# ---- the tree ------------------------------------------------------------------------------------------------------


def test_the_top_of_the_tree_is_short() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in kept_files()}
    assert {name for name in top if not name.startswith(".")} - TOP == set()
