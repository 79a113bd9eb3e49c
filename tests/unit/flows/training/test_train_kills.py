"""A training run killed in the system calls that change its checkpoints resumes as if it had not been interrupted.

The signals are sent below Python (tests/support/faults/preload.c) to the installed command. After every kill the files
of the run are read without the code under test: each is either the complete old or the complete new file.
"""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.support.commands import Command
from tests.support.faults.preload import Preload, Rule, times
from tests.support.make_discs import Discs, write_discs
from tests.unit.flows.test_train import words
from tests.unit.unet_core.training_runs import assert_equal_runs, state

STEPS, EVERY = 2, 2
CALLS = ("rename", "write", "fsync")
"""System calls that change a checkpoint file or make it durable."""
RESUME, MODELS = "resume.safetensors", ("last.safetensors", "best.safetensors")
LIMIT = 30
"""Upper limit of the number of such calls in a run."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def line(discs: Discs, out: Path) -> list[str]:
    """Command line of a short training run; repeated options override earlier ones."""
    return words(discs, out, "--steps", str(STEPS), "--set", f"stopping.every={EVERY}", "--set", "schedule.warmup=1")


def digest(path: Path) -> tuple[str, str]:
    """Metadata and tensor hash of a checkpoint; raises an error if the file is incomplete."""
    with safe_open(path, framework="pt") as file:
        metadata = json.dumps(dict(file.metadata()), sort_keys=True)
        tensors = hashlib.sha256()
        for name in sorted(file.keys()):
            tensors.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return metadata, tensors.hexdigest()


@dataclass
class SeenCheckpoints:
    """The checkpoints found after all kills: for one step and file name there is only ever one content."""

    content: dict[tuple[str, str], str] = field(default_factory=dict)

    def look(self, folder: Path) -> int:
        """Read all checkpoints; return the step of the resume checkpoint, -1 if there is none yet."""
        for name in MODELS:
            if (folder / name).exists():
                metadata, tensors = digest(folder / name)
                known = self.content.setdefault((name, metadata), tensors)
                assert known == tensors, f"{name} is neither the old nor the new file"
        if not (folder / RESUME).exists():
            return -1
        step = int(state(folder)[0]["position"]["step"])
        _, tensors = digest(folder / RESUME)
        assert self.content.setdefault((RESUME, str(step)), tensors) == tensors, f"{RESUME} mixes two steps"
        return step


@dataclass(frozen=True)
class ReferenceRun:
    """An uninterrupted run, and the number of calls of each kind on its checkpoints."""

    discs: Discs
    out: Path
    calls: dict[str, int]


@pytest.fixture(scope="module")
def reference(overtile: Command, preload: Preload, tmp_path_factory: pytest.TempPathFactory) -> ReferenceRun:
    folder = tmp_path_factory.mktemp("undisturbed")
    discs = write_discs(folder)
    counting, counters = preload.under(overtile, *(Rule(call, ".safetensors", 0) for call in CALLS))
    ran = counting.run(*line(discs, folder / "run"))
    assert ran.code == 0, ran.transcript
    calls = dict(zip(CALLS, map(times, counters), strict=True))
    assert calls["rename"] == calls["fsync"] == 11, calls
    assert calls["write"] >= 11, calls
    return ReferenceRun(discs, folder / "run", calls)


def killed_at(preload: Preload, command: Command, call: str, number: int, words: list[str]) -> bool:
    """Run the command and kill it in its n-th such call on a checkpoint; return whether the kill happened."""
    striking, _ = preload.under(command, Rule(call, ".safetensors", "kill", number, number))
    ran = striking.run(*words)
    assert ran.code in (0, -signal.SIGKILL), ran.transcript
    return ran.code != 0


def assert_same(out: Path, reference: ReferenceRun) -> None:
    """Require losses, weights, optimiser state, random state and model files equal to those of the reference run."""
    assert_equal_runs(out, reference.out)
    assert not list(out.rglob("*.partial"))


def test_fault_25_kill_at_each_rename_keeps_a_complete_checkpoint_and_resumes(
    reference: ReferenceRun, overtile: Command, preload: Preload, tmp_path: Path
) -> None:
    seen = SeenCheckpoints()
    assert seen.look(reference.out) == STEPS
    for number in range(1, reference.calls["rename"] + 1):
        out = tmp_path / f"killed at {number}"
        assert killed_at(preload, overtile, "rename", number, line(reference.discs, out))
        seen.look(out)
        ran = overtile.run(*line(reference.discs, out))
        assert ran.code == 0, ran.transcript
        assert_same(out, reference)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_fault_25_repeated_kills_while_writing_never_lose_a_saved_step(
    reference: ReferenceRun, overtile: Command, preload: Preload, tmp_path: Path, call: str
) -> None:
    """One run is killed in its first such call, resumed and killed in its second, and so on until it completes."""
    seen, steps, out = SeenCheckpoints(), [-1], tmp_path / "run"
    for number in range(1, LIMIT):
        if not killed_at(preload, overtile, call, number, line(reference.discs, out)):
            break
        steps.append(seen.look(out))
    print(f"steps kept after each kill: {steps[1:]}")
    assert steps == sorted(steps)
    assert set(steps) == {-1, 0, STEPS}, "no kill struck before, between or after the saves"
    assert seen.look(out) == STEPS
    assert_same(out, reference)
