"""The table of faults survived: every case of cases.toml with the tests of this very run that carry its number.

A pytest plugin (``-p tests.support.faults.table``): only tests named ``test_fault_<numbers>_...`` are run, and the
run fails when a case has neither a test that passed nor a reason. The number is part of the
test's name, so the list of what is proven cannot differ from what is run. A test reports what was computed again with
``record_property("recomputed", ...)``.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cases.toml")
REASONS = 5
"""So many cases may have no test."""
NAME = re.compile(r"test_fault((?:_\d+)+)_")
STANDING = ("failed", "skipped", "passed")
"""How a test ended, the worst first."""


@dataclass(slots=True)
class Case:
    """One fault: what it is, what is promised, and what this run showed."""

    injected: str
    promise: str
    reason: str = ""
    ended: dict[str, str] = field(default_factory=dict)
    recomputed: list[str] = field(default_factory=list)

    def note(self, test: str, outcome: str, recomputed: Iterable[str] = ()) -> None:
        """Remember how a test ended; of several parameters the worst counts."""
        self.ended[test] = min(outcome, self.ended.get(test, outcome), key=STANDING.index)
        self.recomputed += [said for said in recomputed if said not in self.recomputed]

    @property
    def survived(self) -> str:
        """ "yes" when a test passed and none failed; else what is lacking, or the reason for having no test."""
        outcomes = set(self.ended.values())
        if "failed" in outcomes:
            return "NO"
        if "passed" in outcomes:
            return "yes"
        return f"not tested: {self.reason}" if self.reason else "NOT SHOWN" if outcomes else "NO TEST"

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be done for it."""
        return self.survived == "yes" or self.survived.startswith("not tested: ")


def read_cases(path: Path = CASES) -> dict[int, Case]:
    """Every case by its number. Raises ValueError when too many have a reason instead of a test."""
    cases = {int(number): Case(**told) for number, told in tomllib.loads(path.read_text("utf-8")).items()}
    if sum(bool(case.reason) for case in cases.values()) > REASONS:
        raise ValueError(f"{path}: expected at most {REASONS} cases with a reason instead of a test")
    return cases


def numbers_of(test: str) -> list[int]:
    """The cases that a test's name says it proves; none for most tests."""
    found = NAME.match(test)
    return [int(number) for number in found[1].strip("_").split("_")] if found else []


def table(cases: Mapping[int, Case]) -> list[str]:
    """The table's lines, as Markdown."""
    lines = ["| case | injected | promise | test | survived | recomputed |", "|---:|---|---|---|---|---|"]
    for number, case in sorted(cases.items()):
        cells = (case.injected, case.promise, ", ".join(case.ended), case.survived, "; ".join(case.recomputed))
        lines.append(f"| {number} | {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |")
    return lines


# ---- what pytest calls -----------------------------------------------------------------------------------------------


class Faults:
    """Watches a run and judges it."""

    def __init__(self) -> None:
        self.cases = read_cases()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave only what carries a number."""
        others = [item for item in items if not numbers_of(item.name)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if numbers_of(item.name)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what was called, and what never came to that."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        said = defaultdict(list)
        for key, value in report.user_properties:
            said[key].append(str(value))
        for number in numbers_of(name):
            self.cases[number].note(name, report.outcome, said["recomputed"])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that leaves a case open has failed."""
        if session.exitstatus == pytest.ExitCode.OK and not all(case.is_settled for case in self.cases.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, and what is open."""
        terminalreporter.section("faults")
        for line in table(self.cases):
            terminalreporter.write_line(line)
        left = [str(number) for number, case in sorted(self.cases.items()) if not case.is_settled]
        survived = sum(case.survived == "yes" for case in self.cases.values())
        open_cases = f"; open: {', '.join(left)}" if left else ""
        terminalreporter.write_line(f"{survived} of {len(self.cases)} faults survived{open_cases}")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the whole run, wherever its tests are run."""
    config.pluginmanager.register(Faults(), "faults")
