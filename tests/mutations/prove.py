"""Apply each mutation of ``mutations.toml`` to a copy of this tree and require that a named test fails.

A mutation counts as caught when a named test ran and failed. A test that could not be collected or set up, was
skipped or timed out does not count, nor does a test that fails without the mutation: each test is run on the unchanged
tree first. A mutation whose tests are all skipped there, for lack of data, is left out. The exit code
is 1 when a mutation survives, cannot be applied, or names a test that is not green before.

    python -m tests.mutations.prove [NAME...]       NAME: part of a mutation's name (default: all)
    python -m tests.mutations.prove --diff NAME...  print unified diffs and run nothing
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.mutations.table import Mutation, MutationError, diff_of, mutated, read_table

TREE = Path(__file__).resolve().parents[2]
AT_ONCE = 2
TEST_S, RUN_S = 300, 3600
"""Time limits of one test and of one run of pytest."""
TIMED_OUT = "Failed: Timeout"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Run:
    """Result of one run of pytest: exit code, names of passed, failed and skipped tests, seconds, output."""

    code: int
    passed: frozenset[str]
    failed: tuple[str, ...]
    skipped: frozenset[str]
    seconds: float
    output: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one mutation: the tests that failed, or the reason why it does not count as caught."""

    mutation: Mutation
    failed: tuple[str, ...]
    reason: str
    seconds: float


# ---- proving ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Apply mutations and require that a named test fails.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a mutation's name (default: all)")
    parser.add_argument("--diff", action="store_true", help="print unified diffs and run nothing")
    options = parser.parse_args(arguments)
    mutations = [
        mutation
        for mutation in read_table()
        if not options.names or any(name in mutation.name for name in options.names)
    ]
    if not mutations:
        print(f"no mutation is called like {', '.join(options.names)}")
        return 2
    if options.diff:
        for mutation in mutations:
            print(f"# {mutation.name}: {mutation.broken}\n{diff_of(mutation, TREE)}")
        return 0
    return prove(mutations)


def prove(mutations: Sequence[Mutation]) -> int:
    """Test all mutations, print a table of them and return the exit code."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="overtile-prove-") as scratch:
        clean = copy_tree(Path(scratch) / "clean")
        unchanged = run_clean(clean, sorted({test for mutation in mutations for test in mutation.tests}))
        print(f"tests on the unchanged tree: {unchanged.seconds:.0f} s", file=sys.stderr, flush=True)
        left_out = [
            mutation for mutation in mutations if all(is_among(unchanged.skipped, test) for test in mutation.tests)
        ]
        mutations = [mutation for mutation in mutations if mutation not in left_out]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            verdicts = list(announced(pool.map(lambda mutation: judge(mutation, clean, unchanged), mutations)))
    show(verdicts)
    survived = [verdict for verdict in verdicts if verdict.reason]
    caught = len(verdicts) - len(survived)
    for mutation in left_out:
        print(f"{mutation.name}: left out, since its tests are skipped on this machine")
    print(f"\n{caught} of {len(verdicts)} mutations were caught, in {time.monotonic() - began:.0f} s")
    return 1 if survived else 0


def copy_tree(target: Path) -> Path:
    """Copy the files that git tracks or does not ignore, and link the ``shared`` folder beside them, if any."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=TREE,
        check=True,
        capture_output=True,
    )
    tree = target / "tree"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (TREE / name).is_file():  # not one that was removed and not yet committed
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, tree / name)
    if (TREE.parent / "shared").is_dir():
        (target / "shared").symlink_to(TREE.parent / "shared")
    return tree


def run_clean(clean: Path, tests: Sequence[str]) -> Run:
    """Run every named test once on the unchanged tree, divided into ``AT_ONCE`` parallel runs."""
    shares = [share for share in (tests[number::AT_ONCE] for number in range(AT_ONCE)) if share]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda share: run_tests(clean, share, stop_early=False), shares))
    for run in runs:
        if run.code:
            print(f"on the unchanged tree:\n{run.output}")
    return Run(
        code=max(run.code for run in runs),
        passed=frozenset().union(*(run.passed for run in runs)),
        failed=tuple(name for run in runs for name in run.failed),
        skipped=frozenset().union(*(run.skipped for run in runs)),
        seconds=max(run.seconds for run in runs),
        output="",
    )


def run_tests(tree: Path, tests: Sequence[str], *, stop_early: bool) -> Run:
    """Run the tests in ``tree`` and read the outcome of each from pytest's report."""
    report = tree.parent / f"{time.monotonic_ns()}.xml"
    options = ["-q", "--tb=line", f"--timeout={TEST_S}", f"--junitxml={report}", "-o", "junit_family=xunit2"]
    command = [sys.executable, "-m", "pytest", *options, *(["-x"] if stop_early else []), *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    began = time.monotonic()
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(-1, frozenset(), (), frozenset(), RUN_S, f"pytest did not end within {RUN_S} s")
    seconds = time.monotonic() - began
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    passed = (case for case in cases if not len(case) or {part.tag for part in case} <= {"system-out", "system-err"})
    failed = (case for case in cases if (found := case.find("failure")) is not None and not timed_out(found))
    skipped = frozenset(name_of(case) for case in cases if case.find("skipped") is not None)
    names = frozenset(map(name_of, passed)), tuple(map(name_of, failed)), skipped
    return Run(ran.returncode, *names, seconds, ran.stdout + ran.stderr)


def timed_out(failure: ElementTree.Element) -> bool:
    """Return whether a test failed only because of its time limit."""
    return TIMED_OUT in f"{failure.get('message')} {failure.text}"


def name_of(case: ElementTree.Element) -> str:
    """Return a test as pytest names it, as in ``tests/pipeline/test_predict.py::test_halo[3]``."""
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def judge(mutation: Mutation, clean: Path, unchanged: Run) -> Verdict:
    """Apply one mutation to a copy of its own and run its tests."""
    unproven = [test for test in mutation.tests if not green_before(test, unchanged)]
    if unproven:
        return Verdict(mutation, (), f"not green without the mutation: {unproven[0]}", 0)
    with TemporaryDirectory(prefix="overtile-mutation-") as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(clean, tree, symlinks=True)
        if (clean.parent / "shared").exists():
            (Path(scratch) / "shared").symlink_to((clean.parent / "shared").resolve())
        try:
            texts = mutated(mutation, clean)
        except MutationError as error:
            return Verdict(mutation, (), f"cannot be applied: {error}", 0)
        for path, (_, after) in texts.items():
            (tree / path).write_text(after, "utf-8")
        run = run_tests(tree, mutation.tests, stop_early=True)
    if run.code == 1 and run.failed:
        return Verdict(mutation, run.failed, "", run.seconds)
    return Verdict(mutation, (), f"SURVIVED: pytest ended with {run.code}: {last_line(run.output)}", run.seconds)


def announced(verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
    """Print one line for each mutation when its result is known."""
    for verdict in verdicts:
        result = verdict.reason or "caught"
        print(f"{verdict.mutation.name}: {result} ({verdict.seconds:.0f} s)", file=sys.stderr, flush=True)
        yield verdict


def green_before(test: str, unchanged: Run) -> bool:
    """Return whether a test, or each of its cases, passed on the unchanged tree."""
    return is_among(unchanged.passed, test) and not is_among(unchanged.failed, test)


def is_among(names: Iterable[str], test: str) -> bool:
    """Return whether the test or one of its parametrised cases is among the names."""
    return any(found == test or found.startswith(f"{test}[") for found in names)


def last_line(output: str) -> str:
    """Return the last line that is not empty, where pytest summarises."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "no output")


def show(verdicts: Iterable[Verdict]) -> None:
    """Print a table of mutations, the tests that failed, and seconds."""
    print("| mutation | failed | s |\n|---|---|---:|")
    for verdict in verdicts:
        tests = ", ".join(name.rpartition("/")[2] for name in verdict.failed[:SHOWN]) or verdict.reason
        print(f"| {verdict.mutation.name}: {verdict.mutation.broken} | {tests} | {verdict.seconds:.0f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
