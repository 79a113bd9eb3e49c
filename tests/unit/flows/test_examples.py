"""The examples in ``configs/``: Prefect, systemd and compose accept them, and they open no port."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import skip_or_fail
from tests.support.commands import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / name).read_text("utf-8")))


def test_deployment_example_is_a_scheduled_run_that_never_overlaps() -> None:
    from prefect.client.schemas.objects import ConcurrencyOptions
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint

    from flows.scheduled_run import ScheduledRunRequest, night

    (found,) = read("prefect.yaml")["deployments"]
    assert load_flow_from_entrypoint(found["entrypoint"]) is night
    ScheduledRunRequest.model_validate(found["parameters"]["request"])
    assert found["concurrency_limit"].pop("limit") == 1
    assert ConcurrencyOptions.model_validate(found["concurrency_limit"]).collision_strategy == "CANCEL_NEW"
    assert [CronSchedule.model_validate(one).timezone for one in found["schedules"]] == ["Europe/Berlin"]
    assert found["pull"] == [], "no code is fetched from anywhere"


def test_automation_examples_match_those_of_a_schedule(tmp_path: Path) -> None:
    """Paths in notifications are not interpreted as templates."""
    from uuid import uuid4

    from prefect.events.schemas.automations import AutomationCore, EventTrigger
    from prefect.server.utilities.user_templates import render_user_template_sync, validate_user_template

    from flows.notifications import automations

    found = [AutomationCore.model_validate(one) for one in read("automations.yaml")["automations"]]
    own = automations(uuid4(), uuid4(), tmp_path / "it's {{ flow_run }} {% raw %} }}")
    for example, made in zip(found, own, strict=False):
        assert isinstance(example.trigger, EventTrigger)
        assert isinstance(made.trigger, EventTrigger)
        for name in ("posture", "after", "expect", "within", "for_each", "match"):
            assert getattr(example.trigger, name) == getattr(made.trigger, name), (example.name, name)
        for template in (made.actions[0].subject, made.actions[0].body):  # type: ignore[union-attr]  # it sends
            validate_user_template(template)
    assert len(found) == len(own) + 1, "a schedule itself looks for crashed runs"
    text = render_user_template_sync(own[0].actions[0].subject, {"flow_run": "seen"})  # type: ignore[union-attr]
    assert text == "overtile: it's {{ flow_run }} {% raw %} }}: a scheduled run failed"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not (systemd := shutil.which("systemd-analyze")):
        skip_or_fail("no systemd here to look at the unit")
    unit = (CONFIGS / "overtile.service").read_text("utf-8")
    (tmp_path / "overtile.service").write_text(unit.replace("/opt/overtile/bin/overtile", sys.executable))
    done = subprocess.run([str(systemd), "verify", tmp_path / "overtile.service"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_command_line_of_the_unit_is_valid() -> None:
    import typer

    from flows.cli.main import app

    unit = (CONFIGS / "overtile.service").read_text("utf-8").replace("\\\n", "")
    line = re.search(r"^ExecStart=\S+ (.*)$", unit, re.M)
    assert line is not None
    options = {option for one in _parameters(typer.main.get_command(app), "schedule") for option in one}
    assert {word for word in line[1].split() if word.startswith("--")} <= options


def _parameters(command: Any, name: str) -> list[list[str]]:
    return [one.opts for one in command.commands[name].params]


def test_compose_file_opens_no_port_and_has_valid_settings() -> None:
    from prefect import settings

    services = read("compose.yaml")["services"]
    ports = [port for one in services.values() for port in one.get("ports", ())]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    server = services["server"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?"), "it does not start without"
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    assert server["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert all("healthcheck" in services[name] for name in ("database", "server"))
    assert all(
        ":" in one["image"] and not one["image"].endswith("latest") for one in services.values() if "image" in one
    )
    named = {key for one in services.values() for key in one.get("environment", {}) if key.startswith("PREFECT_")}
    assert [name for name in sorted(named) if not hasattr(settings, name)] == []


def test_container_copies_what_the_wheel_needs() -> None:
    """And no more is sent to the builder; the worker of the compose file is this image."""
    text = (CONFIGS / "Containerfile").read_text("utf-8")
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.M)]
    names = {name for words in copied for name in words}
    assert [name for name in sorted(names) if not (REPOSITORY / name).exists()] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    needed = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]}
    assert needed | {"pyproject.toml", "constraints.txt", *project["project"]["license-files"]} <= names
    sent = re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text("utf-8"), re.M)
    assert set(sent) == names
    worker = read("compose.yaml")["services"]["worker"]
    assert (CONFIGS / worker["build"]["context"] / worker["build"]["dockerfile"]).samefile(CONFIGS / "Containerfile")
    assert worker["entrypoint"] == [], "its command is not overtile's"
    assert f":{project['project']['version']}" in worker["image"]


def test_workflow_runs_ci_run() -> None:
    """One command, pinned to the interpreter that was tested, with no right to write."""
    found = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = found["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert found["permissions"] == {"contents": "read"}
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111


def test_hooks_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    entries = " ".join(hook["entry"] for repository in hooks for hook in repository["hooks"] if "entry" in hook)
    lint = (REPOSITORY / "Makefile").read_text("utf-8").split("\nlint:")[1].split("\n\n")[0]
    for tool in re.findall(r"\$\(BIN\)/(\w+(?: check| format --check)?)", lint):
        assert tool == "python" or f".venv/bin/{tool}" in entries, tool


@pytest.mark.parametrize(
    "name", ["prefect.yaml", "automations.yaml", "compose.yaml", "overtile.service", "Containerfile"]
)
def test_example_states_its_usage(name: str) -> None:
    assert (CONFIGS / name).read_text("utf-8").startswith("# ")
