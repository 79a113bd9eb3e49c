"""Commands for unattended runs: schedule, status, retry.

`status` and `retry` read and write files of the results folder only, so they work without a server and on any machine
that mounts the folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.batch.deadline import read_clock, read_zone
from flows.batch.history import BatchHistory, note, process_facts
from flows.cli.options import AsJson, ConfigFile, Overrides, ResultsFolder, Until
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.printable import printable

app = typer.Typer()


@app.command()
def status(
    out: ResultsFolder,
    failed: Annotated[bool, typer.Option("--failed", help="Show only slides that need attention.")] = False,  # noqa: FBT002  typer's way to declare a flag
    as_json: AsJson = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Show the state of every slide, the cause and what to do.

    Exit codes are those of `segment`: 0 when all slides are complete.
    """
    from flows.batch.status import NEED_ATTENTION, Status, show

    found = Status.of(out)
    slides = [slide for slide in found.slides if slide.state in NEED_ATTENTION] if failed else found.slides
    if as_json:
        typer.echo(json.dumps(found.as_json(slides), indent=1))
    else:
        show(found, slides, Console())
    raise typer.Exit(found.exit_code())


@app.command()
def retry(
    out: ResultsFolder,
    keys: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Keys of slides that failed.", show_default=False)
    ],
) -> None:
    """Release slides from quarantine.

    A slide that failed in three runs in a row is not tried again until it is released or its plan changes.
    """
    failures = BatchHistory.read(out).failures()
    if unknown := [key for key in keys if key not in failures]:
        known = ", ".join(sorted(failures)[:10]) or "no failed slide"
        raise ConfigError(f"{unknown[0]}: expected the key of a slide that failed in {out}, found {known}")
    note(out, "retry", {"keys": keys, **process_facts()})
    typer.echo(f"the next run tries again: {printable(', '.join(keys))}")


SETTLE_S = 60
"""Default of ``input.settle_s`` for scheduled runs: a slide modified since may still be written and is deferred."""


@app.command()
def schedule(  # noqa: PLR0913  one parameter an option
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder in which slides arrive.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Results folder.", show_default=False)],
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="CRON", help="Run at these times, for example '0 1 * * *'.")
    ] = None,
    every: Annotated[
        float | None, typer.Option("--every", metavar="SECONDS", help="Run every so many seconds.", min=1)
    ] = None,
    watch: Annotated[  # noqa: FBT002  typer's way to declare a flag
        bool, typer.Option("--watch", help="Run whenever slides have arrived and are no longer being written.")
    ] = False,
    timezone: Annotated[
        str | None,
        typer.Option(
            "--timezone", metavar="ZONE", help="Time zone, for example Europe/Berlin. Default: of this machine."
        ),
    ] = None,
    until: Until = None,
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="BLOCK",
            help="Prefect notification block that is called when a run fails or does not start.",
        ),
    ] = None,
    config: ConfigFile = None,
    settings: Overrides = None,
) -> None:
    """Segment new slides of a folder at given times.

    The command serves the schedule until it is stopped; start it again after a reboot.
    """
    overrides = list(settings or ())
    checked = load_config(config, overrides)
    if "settle_s" not in checked.input.model_fields_set:
        overrides.append(f"input.settle_s={SETTLE_S}")
        checked = load_config(config, overrides)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: expected the folder in which slides arrive")
    zone = timezone or _local_zone()
    read_zone(zone)
    words = [str(folder.absolute()), "--out", str(out.absolute())]
    words += [] if config is None else ["--config", str(config.absolute())]
    words += [word for override in overrides for word in ("--set", override)]
    requested = {
        "inputs": (folder.absolute(),),
        "out": out.absolute(),
        "until": None if until is None else read_clock(until),
        "timezone": zone,
        "command": ("overtile", "segment", *words),
    }
    raise typer.Exit(_serve(checked, requested, _Times(cron, every, watch), notify))


@dataclass(frozen=True, slots=True)
class _Times:
    """When scheduled runs start; exactly one is set."""

    cron: str | None
    every_s: float | None
    watch: bool


def _serve(config: RunConfig, requested: dict[str, Any], times: _Times, block: str | None) -> int:
    """Serve the schedule until a signal; return the exit code."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # the journal of an unattended process
    from flows.batch.selection import pin_models
    from flows.prefect_server import Server, used
    from pipeline.inference.ensemble import load_model

    pins = {"model_sha256": load_model(config.model).sha256, "pinned": pin_models(config)}
    server = Server.start(lasting=True)
    from flows.schedule import ScheduleService, serve, when
    from flows.scheduled_run import ScheduledRunRequest

    request = ScheduledRunRequest(config=config, **pins, **requested)
    plan = when(times.cron, times.every_s, request.timezone or "UTC", watch=times.watch)
    with used(server):
        return serve(request, plan, ScheduleService(_say, None if server is None else server.require_alive, block))


def _say(text: str) -> None:
    typer.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {printable(text)}")


def _local_zone() -> str:
    """The name of this machine's time zone; cron times are local times."""
    named = os.environ.get("TZ", "").removeprefix(":")
    _, found, name = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")
    return named or (name if found else "UTC")
