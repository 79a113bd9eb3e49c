"""The table of survived faults.

It lists every case of cases.toml with the tests of this run that carry its number. The pytest plugin
(``-p tests.support.faults.table``) selects tests named ``test_fault_<numbers>_...`` and fails the run if a case has
neither a passed test nor a reason. As the number is part of the test's name, the list cannot differ from what is run.
Tests report recomputed blocks with ``record_property("recomputed", ...)``.
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
"""Maximum number of cases with a reason instead of a test."""
NAME = re.compile(r"test_fault((?:_\d+)+)_")
OUTCOMES = ("failed", "skipped", "passed")
"""Outcomes of a test, worst first."""


@dataclass(slots=True)
class Case:
    """One fault: what is injected, what is promised, and the outcome of its tests in this run."""

    injected: str
    promise: str
    reason: str = ""
    ended: dict[str, str] = field(default_factory=dict)
    recomputed: list[str] = field(default_factory=list)

    def note(self, test: str, outcome: str, recomputed: Iterable[str] = ()) -> None:
        """Record the outcome of a test; of several parameters the worst counts."""
        self.ended[test] = min(outcome, self.ended.get(test, outcome), key=OUTCOMES.index)
        self.recomputed += [text for text in recomputed if text not in self.recomputed]

    @property
    def survived(self) -> str:
        """ "yes" if a test passed and none failed; else what is missing, or the reason for having no test."""
        outcomes = set(self.ended.values())
        if "failed" in outcomes:
            return "NO"
        if "passed" in outcomes:
            return "yes"
        return f"not tested: {self.reason}" if self.reason else "NOT SHOWN" if outcomes else "NO TEST"

    @property
    def is_settled(self) -> bool:
        """Whether the fault is survived or has a reason."""
        return self.survived == "yes" or self.survived.startswith("not tested: ")


def read_cases(path: Path = CASES) -> dict[int, Case]:
    """Read all cases by number.

    Raises:
        ValueError: Too many cases have a reason instead of a test.
    """
    cases = {int(number): Case(**fields) for number, fields in tomllib.loads(path.read_text("utf-8")).items()}
    if sum(bool(case.reason) for case in cases.values()) > REASONS:
        raise ValueError(f"{path}: expected at most {REASONS} cases with a reason instead of a test")
    return cases


def numbers_of(test: str) -> list[int]:
    """Return the case numbers in a test's name; empty for most tests."""
    found = NAME.match(test)
    return [int(number) for number in found[1].strip("_").split("_")] if found else []


def table(cases: Mapping[int, Case]) -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = ["| case | injected | promise | test | survived | recomputed |", "|---:|---|---|---|---|---|"]
    for number, case in sorted(cases.items()):
        cells = (case.injected, case.promise, ", ".join(case.ended), case.survived, "; ".join(case.recomputed))
        lines.append(f"| {number} | {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |")
    return lines


# ---- pytest hooks ------------------------------------------------------------------------------------------------


class Faults:
    """Collects the outcomes of a run and decides whether it passes."""

    def __init__(self) -> None:
        self.cases = read_cases()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Select the tests whose name carries a number."""
        others = [item for item in items if not numbers_of(item.name)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if numbers_of(item.name)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record tests that were called, and those that failed or were skipped before."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        properties = defaultdict(list)
        for key, value in report.user_properties:
            properties[key].append(str(value))
        for number in numbers_of(name):
            self.cases[number].note(name, report.outcome, properties["recomputed"])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that leaves a case open."""
        if session.exitstatus == pytest.ExitCode.OK and not all(case.is_settled for case in self.cases.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table and the open cases."""
        terminalreporter.section("faults")
        for line in table(self.cases):
            terminalreporter.write_line(line)
        left = [str(number) for number, case in sorted(self.cases.items()) if not case.is_settled]
        survived = sum(case.survived == "yes" for case in self.cases.values())
        open_cases = f"; open: {', '.join(left)}" if left else ""
        terminalreporter.write_line(f"{survived} of {len(self.cases)} faults survived{open_cases}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin for the whole run."""
    config.pluginmanager.register(Faults(), "faults")
