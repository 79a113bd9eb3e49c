"""A training that SIGKILL strikes in the very system calls that change its checkpoints goes on as if it had not.

The faults strike the installed command below Python (tests/support/faults/preload.c). After every kill the files in
the run's folder are read without the code under test: each is the one before or the one after, whole.
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
"""What changes a checkpoint's file, or makes it last."""
RESUME, MODELS = "resume.safetensors", ("last.safetensors", "best.safetensors")
LIMIT = 30
"""More changes than such a run makes."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def line(discs: Discs, out: Path) -> list[str]:
    """A training of few steps; the last of what is said twice counts."""
    return words(discs, out, "--steps", str(STEPS), "--set", f"stopping.every={EVERY}", "--set", "schedule.warmup=1")


def digest(path: Path) -> tuple[str, str]:
    """Of what a checkpoint says of itself and of its tensors; raises when it is not whole."""
    with safe_open(path, framework="pt") as file:
        said = json.dumps(dict(file.metadata()), sort_keys=True)
        held = hashlib.sha256()
        for name in sorted(file.keys()):
            held.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return said, held.hexdigest()


@dataclass
class Seen:
    """What checkpoints there have been, over all kills: of one step and stage there is ever only one."""

    content: dict[tuple[str, str], str] = field(default_factory=dict)

    def look(self, folder: Path) -> int:
        """Read all that is there; return the step that is kept, -1 where nothing is kept yet."""
        for name in MODELS:
            if (folder / name).exists():
                said, held = digest(folder / name)
                assert self.content.setdefault((name, said), held) == held, f"{name} is neither the old nor the new"
        if not (folder / RESUME).exists():
            return -1
        step = int(state(folder)[0]["position"]["step"])
        _, held = digest(folder / RESUME)
        assert self.content.setdefault((RESUME, str(step)), held) == held, f"{RESUME} mixes two steps"
        return step


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody struck, and how often it made each call on a checkpoint."""

    discs: Discs
    out: Path
    calls: dict[str, int]


@pytest.fixture(scope="module")
def undisturbed(overtile: Command, preload: Preload, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    discs = write_discs(folder)
    counting, counters = preload.under(overtile, *(Rule(call, ".safetensors", 0) for call in CALLS))
    ran = counting.run(*line(discs, folder / "run"))
    assert ran.code == 0, ran.said
    calls = dict(zip(CALLS, map(times, counters), strict=True))
    assert calls["rename"] == calls["fsync"] == 11, calls
    assert calls["write"] >= 11, calls
    return Undisturbed(discs, folder / "run", calls)


def killed_at(preload: Preload, command: Command, call: str, number: int, words: list[str]) -> bool:
    """Whether SIGKILL struck the command in its n-th such call on a checkpoint; else it ended well."""
    striking, _ = preload.under(command, Rule(call, ".safetensors", "kill", number, number))
    ran = striking.run(*words)
    assert ran.code in (0, -signal.SIGKILL), ran.said
    return ran.code != 0


def assert_same(out: Path, undisturbed: Undisturbed) -> None:
    """Losses, weights, optimiser and chance are those of the undisturbed run, and the models are its bytes."""
    assert_equal_runs(out, undisturbed.out)
    assert not list(out.rglob("*.partial"))


def test_fault_25_killed_at_each_rename_it_keeps_one_of_two_checkpoints_and_goes_on(
    undisturbed: Undisturbed, overtile: Command, preload: Preload, tmp_path: Path
) -> None:
    seen = Seen()
    assert seen.look(undisturbed.out) == STEPS
    for number in range(1, undisturbed.calls["rename"] + 1):
        out = tmp_path / f"killed at {number}"
        assert killed_at(preload, overtile, "rename", number, line(undisturbed.discs, out))
        seen.look(out)
        ran = overtile.run(*line(undisturbed.discs, out))
        assert ran.code == 0, ran.said
        assert_same(out, undisturbed)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_fault_25_killed_again_and_again_while_it_writes_it_never_falls_back(
    undisturbed: Undisturbed, overtile: Command, preload: Preload, tmp_path: Path, call: str
) -> None:
    """One run, struck in its first such call, gone on with and struck in its second, and so on until it ends."""
    seen, steps, out = Seen(), [-1], tmp_path / "run"
    for number in range(1, LIMIT):
        if not killed_at(preload, overtile, call, number, line(undisturbed.discs, out)):
            break
        steps.append(seen.look(out))
    print(f"steps kept after each kill: {steps[1:]}")
    assert steps == sorted(steps)
    assert set(steps) == {-1, 0, STEPS}, "no kill struck before, between or after the saves"
    assert seen.look(out) == STEPS
    assert_same(out, undisturbed)
