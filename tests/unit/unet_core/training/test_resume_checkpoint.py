"""A run killed at any point resumes with identical results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.unet_core.training_runs import assert_equal_runs, lines, material, recipe, run, state
from unet_core.data.map_targets import NO_MAPS
from unet_core.errors import RecipeError
from unet_core.model_file import checkpoint
from unet_core.model_file.checkpoint import load
from unet_core.training import resume_checkpoint
from unet_core.training.resume_checkpoint import continued
from unet_core.training.train_state import TrainState


class Killed(BaseException):
    """An exception that no code of overtile catches."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, recipe())
    return folder


def dying(real: Callable[..., Any], at: int, *, before: bool) -> Callable[..., Any]:
    """Wrap a function so that its n-th call raises Killed before or after its work."""
    calls = iter(range(1, 10**6))

    def called(*given: Any) -> Any:
        dies = next(calls) == at
        if dies and before:
            raise Killed
        answer = real(*given)
        if dies:
            raise Killed
        return answer

    return called


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, *, before: bool) -> Iterator[None]:
    """Kill a run in this block before or after a step."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "step", dying(TrainState.step, step, before=before))
        with pytest.raises(Killed):
            yield


def test_runs_are_equal_for_equal_seeds_only(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "again", recipe())
    assert_equal_runs(tmp_path / "again", undisturbed)
    run(tmp_path / "other", recipe(compute={"seed": 1}))
    assert lines(tmp_path / "other")[1]["loss"] != lines(undisturbed)[1]["loss"]


def test_fault_25_a_run_killed_before_or_after_each_write_resumes_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function writes every atomic file: state and models at three steps and at the end."""
    given = recipe(schedule={"steps": 4}, stopping={"every": 2}, compute={"seed": 12})
    run(tmp_path / "undisturbed", given)
    watch = state(tmp_path / "undisturbed")[0]["position"]["watch"]
    assert watch["best_step"] == 2, "the best model is one that no later step writes again"
    for at in range(1, 100):
        folder = tmp_path / f"killed at {at}"
        with monkeypatch.context() as patch:
            called = dying(checkpoint.write_atomically, at, before=True)
            patch.setattr(checkpoint, "write_atomically", called)
            patch.setattr(resume_checkpoint, "write_atomically", called)
            try:
                run(folder, given)
            except Killed:
                pass
            else:
                break
        run(folder, given)
        assert_equal_runs(folder, tmp_path / "undisturbed")
    assert at > 10, "fewer files were written than there are"


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_killed_inside_an_epoch_resumes_identically(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with killed_at(monkeypatch, step, before=False):
        run(tmp_path, recipe())
    run(tmp_path, recipe())
    assert_equal_runs(tmp_path, undisturbed)


def test_a_run_killed_repeatedly_resumes_identically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run is killed and resumed again, after 0, 0, 3 and 6 steps."""
    given = recipe(schedule={"steps": 11})
    run(tmp_path / "undisturbed", given)
    for steps in (2, 2, 5, 4):
        with killed_at(monkeypatch, steps, before=False):
            run(tmp_path / "killed", given)
    run(tmp_path / "killed", given)
    assert_equal_runs(tmp_path / "killed", tmp_path / "undisturbed")


def test_log_lines_beyond_the_last_save_are_cut_off(undisturbed: Path, tmp_path: Path) -> None:
    steps = [line["step"] for line in lines(undisturbed) if "loss" in line]
    assert steps == list(range(1, 8))
    validations = [line["step"] for line in lines(undisturbed) if "validation" in line]
    assert validations == [0, 3, 6, 7]


def test_the_resume_state_is_complete(undisturbed: Path) -> None:
    content, tensors = state(undisturbed)
    assert content["position"]["step"] == 7
    assert content["position"]["done"]
    kinds = {name.partition("/")[0] for name in tensors}
    assert kinds == {"model", "average", "optimiser", "chance"}
    assert {name for name in tensors if name.startswith("chance")} == {"chance/cpu", "chance/tiles"}
    assert {name.rpartition("/")[2] for name in tensors if name.startswith("optimiser")} == {
        *("step", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_every_optimiser_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    given = recipe(optimiser={"kind": kind, "rate": 1e-3})
    run(tmp_path / "whole", given)
    with killed_at(monkeypatch, 5, before=False):
        run(tmp_path / "killed", given)
    run(tmp_path / "killed", given)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_another_configuration_is_rejected_by_its_differences(undisturbed: Path) -> None:
    before = state(undisturbed)[0]
    with pytest.raises(RecipeError, match=r"started with recipe\.optimiser\.rate 0\.002, now 0\.1.*another --out"):
        run(undisturbed, recipe(optimiser={"rate": 0.1}))
    with pytest.raises(RecipeError, match=r"held back"):
        run(undisturbed, recipe(), material(2, 2))
    assert state(undisturbed)[0] == before


def test_a_finished_run_stays_unchanged(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.safetensors")}
    assert run(undisturbed, recipe()).done
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.safetensors")} == before


def test_a_damaged_state_and_a_shortened_log_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(monkeypatch, 5, before=True):
        run(tmp_path, recipe())
    record = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(record[:10])
    with pytest.raises(RecipeError, match=r"metrics\.jsonl: expected \d+ bytes or more up to step 3, found 10"):
        run(tmp_path, recipe())
    (tmp_path / "resume.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(RecipeError, match=r"resume\.safetensors: damaged"):
        run(tmp_path, recipe())


@pytest.mark.parametrize("network", [{"preset": "unet++", "growth": 1}, {"preset": "attention", "depth": 2}])
def test_every_architecture_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, Any]) -> None:
    """Running means of batch norm are part of the state."""
    given = recipe(
        network={**network, "depth": network.get("depth"), "width": 2, "dropout": 0.5},
        schedule={"steps": 4, "warmup": 2},
        stopping={"every": 2},
    )
    run(tmp_path / "undisturbed", given)
    with killed_at(monkeypatch, 4, before=True):
        run(tmp_path / "run", given)
    run(tmp_path / "run", given)
    assert_equal_runs(tmp_path / "run", tmp_path / "undisturbed")


def test_used_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run keeps its used minutes, on a clock that advances when read."""
    ticks = count(0.0, 0.02)
    monkeypatch.setattr("unet_core.training.trainer.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    given = recipe(schedule={"steps": None, "minutes": 0.03}, maps={"names": []})
    with killed_at(monkeypatch, 7, before=True):
        run(tmp_path, given)
    with (tmp_path / "resume.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kept = json.loads(header["__metadata__"]["overtile-training"])["position"]
    assert kept["step"] == 6
    ended = run(tmp_path, given)
    assert 0 < kept["seconds"] < ended.seconds
    assert ended.seconds == pytest.approx(0.03 * 60, abs=0.2)
    steps = [line["step"] for line in lines(tmp_path) if "loss" in line]
    assert steps == list(range(1, ended.step + 1))


# ---- settings of later versions --------------------------------------------------------------------------------------


def test_a_run_without_maps_and_average_is_stored_as_before_them() -> None:
    stored = recipe(maps={"names": []}, optimiser={"average": 0.0}).model_dump(mode="json")
    assert "maps" not in stored
    assert "average" not in stored["optimiser"]


def test_a_run_that_starts_from_a_model_is_the_same_run_as_before_maps(tmp_path: Path) -> None:
    """Its stored configuration has no maps, so one that adds them would be refused as another run."""
    run(tmp_path / "first", recipe(maps={"names": []}))
    given = recipe(network={"start": str(tmp_path / "first" / "last.safetensors")}, optimiser={"average": 0.0})
    run(tmp_path / "second", given.model_copy(update={"maps": NO_MAPS}))
    assert "maps" not in state(tmp_path / "second")[0]["asked"]["recipe"]
    run(tmp_path / "second", continued(tmp_path / "second", given))  # not refused


def test_settings_of_dots_are_stored_without_maps_too() -> None:
    assert recipe(maps={"names": [], "dot_px": 5.0}).model_dump()["maps"]["dot_px"] == 5.0


def test_a_run_that_was_started_without_maps_continues_without_them(tmp_path: Path) -> None:
    """The defaults have changed since it was started; what the user states is not overruled."""
    before = recipe(maps={"names": []}, optimiser={"average": 0.0})
    run(tmp_path, before)
    now = recipe()
    assert now.maps.names
    assert now.optimiser.average
    assert continued(tmp_path, now).model_dump() == before.model_dump()
    stated = recipe(maps={"names": ["centre"]}, optimiser={"average": 0.5})
    assert continued(tmp_path, stated) == stated
    with pytest.raises(RecipeError, match="holds another run"):
        run(tmp_path, continued(tmp_path, stated))


def test_a_run_with_maps_keeps_its_settings(tmp_path: Path) -> None:
    now = recipe()
    assert continued(tmp_path, now) == now  # nothing is stored yet
    run(tmp_path, now)
    assert continued(tmp_path, now) == now


def test_the_saved_model_is_the_exponential_mean_of_the_steps(tmp_path: Path) -> None:
    """The weights after each step are those of a run of so many steps: a constant rate does not depend on the end."""
    schedule = {"kind": "constant", "warmup": 0}
    decay, steps = 0.6, 4
    latest = []
    for length in range(1, steps + 1):
        given = recipe(schedule={**schedule, "steps": length}, optimiser={"average": 0.0})
        run(tmp_path / f"{length}", given)
        latest.append(load(tmp_path / f"{length}" / "last.safetensors").state_dict())
    run(tmp_path / "mean", recipe(schedule={**schedule, "steps": steps}, optimiser={"average": decay}))
    mean = load(tmp_path / "mean" / "last.safetensors").state_dict()
    for name, tensor in mean.items():
        if not tensor.is_floating_point():
            continue  # the number of batches that batch norm has seen
        expected = latest[0][name]
        for one in latest[1:]:
            expected = decay * expected + (1 - decay) * one[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
