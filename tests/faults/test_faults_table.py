"""Rules of the fault table, on test runs made up for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults.table import REASONS, Case, numbers_of, read_cases

ROOT = Path(__file__).parents[2]
MADE_UP = """
import pytest
def test_fault_{first}_{last}_passes(record_property):
    record_property("recomputed", "1 of 3 blocks")
@pytest.mark.parametrize("fails", [False, True])
def test_fault_5_fails(fails):
    assert not fails
def test_fault_6_is_skipped():
    pytest.skip("why not")
def test_2_is_no_fault():
    pass
"""


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("test_fault_7_it", [7]),
        ("test_fault_46_49_it_has_2_of_3", [46, 49]),
        ("test_fault_x_7_it", []),
        ("test_faults_7_it", []),
        ("test_7_fault", []),
    ],
)
def test_a_name_carries_its_numbers(name: str, numbers: list[int]) -> None:
    assert numbers_of(name) == numbers


def test_every_fault_has_its_line_and_few_have_a_reason() -> None:
    cases = read_cases()
    assert list(cases) == list(range(1, 67))
    assert all(case.injected and case.promise for case in cases.values())


def test_too_many_reasons_are_refused(tmp_path: Path) -> None:
    lines = (f'[{number}]\ninjected = "a"\npromise = "b"\nreason = "c"\n' for number in range(1, REASONS + 2))
    (tmp_path / "cases.toml").write_text("".join(lines))
    with pytest.raises(ValueError, match=f"at most {REASONS}"):
        read_cases(tmp_path / "cases.toml")


def test_reason_replaces_a_missing_test_but_not_a_failed_one() -> None:
    case = Case("a", "b", reason="no such thing here")
    assert (case.survived, case.is_settled) == ("not tested: no such thing here", True)
    case.note("test_fault_1_x", "failed")
    assert (case.survived, case.is_settled) == ("NO", False)


def test_a_run_is_judged_by_what_passed(tmp_path: Path) -> None:
    """Faults whose tests are missing, failed or skipped are open, and open faults fail the run."""
    (tmp_path / "test_made_up.py").write_text(MADE_UP.format(first=1, last=66))
    line = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.faults.table", "-c", os.devnull, str(tmp_path)]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(line, cwd=ROOT, env=bare, capture_output=True, text=True, check=False, timeout=100)
    rows = {line.split("|")[1].strip(): line for line in ran.stdout.splitlines() if line.startswith("| ")}
    assert ran.returncode == 1, ran.stdout
    for number in ("1", "66"):
        assert rows[number].endswith("| test_fault_1_66_passes | yes | 1 of 3 blocks |")
    assert "| test_fault_5_fails | NO |" in rows["5"]
    assert "| test_fault_6_is_skipped | NOT SHOWN |" in rows["6"]
    assert "| - | NO TEST | - |" in rows["2"]
    assert "1 deselected" in ran.stdout
    assert "2 of 66 faults survived; open: 2, 3, 4, 5, 6, 7," in ran.stdout


def test_every_fault_is_claimed_by_a_test_or_has_a_reason() -> None:
    """``make faults`` checks whether they pass."""
    claimed: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("def "):
                claimed.update(numbers_of(line.removeprefix("def ")))
    unclaimed = [number for number, case in read_cases().items() if number not in claimed and not case.reason]
    print(f"without a test: {unclaimed}")
    assert not unclaimed
