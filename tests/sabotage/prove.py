"""Break every promise on purpose, in a copy of this tree, and demand that the tests named beside it notice.

Each ``*.patch`` beside this file is one sabotage. Its first lines say what is broken and which tests must go red:

    # sabotage: halo one step short
    # tests: tests/pipeline/test_predict.py::test_a tests/pipeline/test_predict.py::test_b

The one decision made here: red means that a named test ran and failed. A test that could not be collected or set up,
was skipped or took too long proves nothing, and neither does one that is red without the sabotage: each is run on the
untouched tree first. Exit 1 when a sabotage survives, no longer applies, or names a test that is not green before.

    python tests/sabotage/prove.py [NAME...]        NAME: part of a patch's file name; without any, all of them
"""

from __future__ import annotations

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

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
AT_ONCE = 2
TEST_S, RUN_S = 300, 3600
"""A test, and a whole run of pytest, is given up after so long."""
TIMED_OUT = "Failed: Timeout"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One patch: its file, what it breaks in words, the tests that must notice."""

    patch: Path
    broken: str
    tests: tuple[str, ...]

    @classmethod
    def read(cls, patch: Path) -> Sabotage:
        """Raises ValueError for a patch without its two lines."""
        lines = patch.read_text("utf-8").splitlines()
        said = {name: text for name, _, text in (line[2:].partition(": ") for line in lines if line.startswith("# "))}
        if not said.get("sabotage") or not said.get("tests", "").split():
            raise ValueError(f"{patch}: expected lines '# sabotage: ...' and '# tests: ...' above the patch")
        return cls(patch, said["sabotage"], tuple(said["tests"].split()))


@dataclass(frozen=True, slots=True)
class Run:
    """What pytest did: its exit code, names of tests by how they ended, seconds, output."""

    code: int
    passed: frozenset[str]
    failed: tuple[str, ...]
    seconds: float
    output: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a sabotage: the tests that went red, or why it does not count."""

    sabotage: Sabotage
    red: tuple[str, ...]
    why: str
    seconds: float


def main(names: Sequence[str]) -> int:
    """Prove all sabotages whose file name holds one of ``names``; the exit code."""
    patches = [path for path in sorted(HERE.glob("*.patch")) if not names or any(name in path.stem for name in names)]
    sabotages = [Sabotage.read(patch) for patch in patches]
    if not sabotages:
        print(f"no patch in {HERE} is called like {', '.join(names)}")
        return 2
    began = time.monotonic()
    with TemporaryDirectory(prefix="overtile-prove-") as scratch:
        clean = copy_tree(Path(scratch) / "clean")
        sound = run_clean(clean, sorted({test for sabotage in sabotages for test in sabotage.tests}))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            verdicts = list(announced(pool.map(lambda sabotage: judge(sabotage, clean, sound), sabotages)))
    show(verdicts)
    survived = [verdict for verdict in verdicts if verdict.why]
    caught = len(verdicts) - len(survived)
    print(f"\n{caught} of {len(verdicts)} sabotages were caught, in {time.monotonic() - began:.0f} s")
    return 1 if survived else 0


def copy_tree(target: Path) -> Path:
    """A copy of the files git knows or does not ignore, beside the same ``shared`` folder, if there is one."""
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
    """Run every named test once on the untouched tree, in as many parts as run at once; the sum of the parts."""
    shares = [share for share in (tests[number::AT_ONCE] for number in range(AT_ONCE)) if share]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda share: run_tests(clean, share, stop_early=False), shares))
    for run in runs:
        if run.code:
            print(f"on the untouched tree:\n{run.output}")
    return Run(
        code=max(run.code for run in runs),
        passed=frozenset().union(*(run.passed for run in runs)),
        failed=tuple(name for run in runs for name in run.failed),
        seconds=max(run.seconds for run in runs),
        output="",
    )


def run_tests(tree: Path, tests: Sequence[str], *, stop_early: bool) -> Run:
    """Run the tests in a tree of their own and read what became of each."""
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
        return Run(-1, frozenset(), (), RUN_S, f"pytest did not end within {RUN_S} s")
    seconds = time.monotonic() - began
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    passed = (case for case in cases if not len(case) or {part.tag for part in case} <= {"system-out", "system-err"})
    failed = (case for case in cases if (found := case.find("failure")) is not None and not timed_out(found))
    return Run(
        ran.returncode, frozenset(map(name_of, passed)), tuple(map(name_of, failed)), seconds, ran.stdout + ran.stderr
    )


def timed_out(failure: ElementTree.Element) -> bool:
    """Whether a test failed for its time alone."""
    return TIMED_OUT in f"{failure.get('message')} {failure.text}"


def name_of(case: ElementTree.Element) -> str:
    """A test by the name of its file and its own, as in ``test_predict.py::test_halo[3]``."""
    return f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"


def judge(sabotage: Sabotage, clean: Path, sound: Run) -> Verdict:
    """Apply one sabotage to a copy of its own and see whether a test notices."""
    unproven = [test for test in sabotage.tests if not green_before(test, sound)]
    if unproven:
        return Verdict(sabotage, (), f"not green without the sabotage: {unproven[0]}", 0)
    with TemporaryDirectory(prefix="overtile-sabotage-") as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(clean, tree, symlinks=True)
        if (clean.parent / "shared").exists():
            (Path(scratch) / "shared").symlink_to((clean.parent / "shared").resolve())
        applied = subprocess.run(
            ["git", "apply", "-p1", str(sabotage.patch)], cwd=tree, capture_output=True, text=True, check=False
        )
        if applied.returncode:
            return Verdict(sabotage, (), f"does not apply: {applied.stderr.strip()}", 0)
        run = run_tests(tree, sabotage.tests, stop_early=True)
    if run.code == 1 and run.failed:
        return Verdict(sabotage, run.failed, "", run.seconds)
    return Verdict(sabotage, (), f"SURVIVED: pytest ended with {run.code}: {last_line(run.output)}", run.seconds)


def announced(verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
    """Say how it goes, one line a sabotage."""
    for verdict in verdicts:
        print(f"{verdict.sabotage.patch.stem}: {verdict.why or 'caught'}", file=sys.stderr, flush=True)
        yield verdict


def green_before(test: str, sound: Run) -> bool:
    """Whether a named test, or every case of it, passed on the untouched tree."""
    name = test.rpartition("/")[2]
    of_it = (found == name or found.startswith((f"{name}[", f"{name}::")) for found in sound.passed)
    red = any(found == name or found.startswith((f"{name}[", f"{name}::")) for found in sound.failed)
    return any(of_it) and not red


def last_line(output: str) -> str:
    """Where pytest sums up."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "nothing said")


def show(verdicts: Iterable[Verdict]) -> None:
    """Print the table: sabotage, the tests that went red, seconds."""
    print("| sabotage | red | s |\n|---|---|---:|")
    for verdict in verdicts:
        tests = ", ".join(verdict.red[:SHOWN]) or verdict.why
        print(f"| {verdict.sabotage.patch.stem}: {verdict.sabotage.broken} | {tests} | {verdict.seconds:.0f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
