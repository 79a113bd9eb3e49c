"""The table of mutations fits the tree: every text is found, every result parses, every named test exists."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutations.prove import TREE
from tests.mutations.table import Change, Mutation, MutationError, mutated, parse, read_table

PROMISES = {
    "seam-exact": (
        "tile_stride_off_step",
        "halo_one_step_short",
        "halo_of_same_padding_one_step_short",
        "mirror_at_block_edges",
        "normalised_by_tile",
        "colours_fitted_by_tile",
        "tissue_decided_by_tile",
    ),
    "label-exact": (
        "corner_links_dropped",
        "diagonal_links_dropped",
        "ids_not_in_raster_order",
        "area_filter_before_merging",
    ),
    "kill-safe": (
        "stamp_before_shards",
        "file_not_fsynced",
        "folder_not_fsynced",
        "shard_not_fsynced",
        "written_in_place",
        "missing_shard_read_as_zeros",
        "block_of_other_plan",
        "stamp_of_other_plan",
        "hash_chain_without_predict",
        "tta_not_in_hash",
        "colours_not_in_hash",
        "lock_of_other_host_ignored",
        "manifest_kept_during_rerun",
        "finished_blocks_recomputed",
    ),
    "bounded": ("blocks_unbounded", "worker_memory_unlimited", "images_held_without_limit", "directories_unbounded"),
    "fast": ("slides_one_after_another", "block_queue_first_come"),
    "trustworthy": (
        "exit_0_with_failures",
        "incomplete_shown_as_complete",
        "empty_shard_counted",
        "verify_sizes_only",
        "manifest_omits_arrays",
        "outliers_not_reported",
        "baselines_trained_on_test_images",
        "patient_in_two_folds",
    ),
    "private": (
        "error_names_slide",
        "scanner_description_in_manifest",
        "any_host_header",
        "symlinks_followed",
        "workers_on_all_interfaces",
        "scheduler_without_tls",
    ),
}
"""Mutations that must stay in the table, by the promise that each one breaks."""

MODULE = """
import functools

LIMIT = 3


@functools.lru_cache(maxsize=1)
def first(x):
    return x + 1


class Box:
    side = 2

    def area(self):
        return self.side + 1
"""


def unknown_tests(mutation: Mutation) -> list[str]:
    """Tests of a mutation that no module of the tree defines."""
    return [test for test in mutation.tests if not is_defined(*test.split("::", 1))]


def is_defined(file: str, function: str) -> bool:
    path = TREE / file
    return path.is_file() and function.partition("[")[0] in test_functions(path)


_FUNCTIONS: dict[Path, frozenset[str]] = {}


def test_functions(path: Path) -> frozenset[str]:
    if path not in _FUNCTIONS:
        body = ast.parse(path.read_text("utf-8")).body
        _FUNCTIONS[path] = frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))
    return _FUNCTIONS[path]


test_functions.__test__ = False  # type: ignore[attr-defined]


def mutation(*edits: tuple[str, str], target: str = "package.module.first") -> Mutation:
    return Mutation("example", "Something is broken.", (Change(target, False, edits),), ("tests/test_a.py::test_b",))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/module.py").write_text(MODULE, "utf-8")
    return tmp_path


# ---- the table of this tree ------------------------------------------------------------------------------------------


def test_every_text_occurs_once_in_its_function_and_the_mutated_source_parses() -> None:
    for mutation in read_table():
        for path, (before, after) in mutated(mutation, TREE).items():
            assert before != after, mutation.name
            if path.suffix == ".py":
                ast.parse(after, mutation.name)


def test_every_named_test_exists() -> None:
    missing = {mutation.name: unknown for mutation in read_table() if (unknown := unknown_tests(mutation))}
    assert not missing


def test_no_mutation_and_no_description_is_given_twice() -> None:
    mutations = read_table()
    for values in (
        [mutation.broken for mutation in mutations],
        [mutation.changes for mutation in mutations],
        [test for mutation in mutations for test in {f"{mutation.name}: {test}" for test in mutation.tests}],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    assert [mutation.name for mutation in mutations if len(set(mutation.tests)) < len(mutation.tests)] == []


def test_every_description_is_a_sentence() -> None:
    assert [mutation.name for mutation in read_table() if not is_sentence(mutation.broken)] == []


def is_sentence(text: str) -> bool:
    return not text[0].islower() and text.endswith(".")


def test_every_promise_is_broken_by_its_mutations() -> None:
    present = {mutation.name for mutation in read_table()}
    required = [name for names in PROMISES.values() for name in names]
    assert [name for name in required if name not in present] == []
    assert len(required) == len(set(required))


# ---- the rules, on a module made for them ----------------------------------------------------------------------------


def test_the_edit_is_confined_to_the_function_named(package: Path) -> None:
    ((path, (before, after)),) = mutated(mutation(("+ 1", "- 1")), package).items()
    assert path == Path("package/module.py")
    assert before == MODULE
    assert after == MODULE.replace("x + 1", "x - 1")


@pytest.mark.parametrize(
    ("target", "edit"),
    [
        ("package.module.first", ("maxsize=1", "maxsize=2")),
        ("package.module.Box", ("side = 2", "side = 3")),
        ("package.module.Box.area", ("self.side + 1", "self.side")),
        ("package.module", ("LIMIT = 3", "LIMIT = 4")),
    ],
)
def test_functions_with_decorators_methods_classes_and_modules_are_targets(
    package: Path, target: str, edit: tuple[str, str]
) -> None:
    ((_, (_, after)),) = mutated(mutation(edit, target=target), package).items()
    assert after == MODULE.replace(*edit)


def test_edits_are_found_in_the_original_text_not_in_what_earlier_edits_made(package: Path) -> None:
    ((_, (_, after)),) = mutated(mutation(("x)", "x + 1)"), ("return x + 1", "return x")), package).items()
    assert "def first(x + 1):\n    return x\n" in after


@pytest.mark.parametrize(
    "broken",
    [
        mutation(("+ 2", "- 1")),
        mutation(("+ 1", "- 1"), target="package.module"),
        mutation(("LIMIT = 3", "LIMIT = 4")),
        mutation(("+ 1", "+ 1")),
        mutation(("x + 1", "x"), ("+ 1", "- 1")),
        mutation(("+ 1", "- 1"), target="package.module.second"),
        mutation(("+ 1", "- 1"), target="package.other.first"),
    ],
    ids=["missing", "twice", "elsewhere", "unchanged", "overlapping", "no function", "no module"],
)
def test_a_mutation_that_does_not_fit_is_refused(package: Path, broken: Mutation) -> None:
    with pytest.raises(MutationError):
        mutated(broken, package)


def test_a_test_that_does_not_exist_is_reported() -> None:
    assert is_defined("tests/mutations/test_mutations.py", "test_every_named_test_exists[case]")
    assert not is_defined("tests/mutations/test_mutations.py", "test_that_was_removed")
    assert not is_defined("tests/mutations/test_removed.py", "test_every_named_test_exists")


TABLE = {"broken": "It is.", "function": "a.b", "edits": [["x", "y"]], "tests": ["t.py::test_a"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop("tests"),
        lambda table: table.pop("broken"),
        lambda table: table.pop("function"),
        lambda table: table.update(file="a.py"),
        lambda table: table.update(edits=[]),
        lambda table: table.update(edits=[["x"]]),
        lambda table: table.update(test=["t.py::test_a"]),
        lambda table: table.update(changes=[]),
    ],
)
def test_a_table_with_missing_or_unknown_keys_is_refused(change: Callable[[dict[str, object]], object]) -> None:
    table: dict[str, object] = dict(TABLE)
    parse("example", table)
    change(table)
    with pytest.raises(MutationError):
        parse("example", table)
