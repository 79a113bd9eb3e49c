"""Commands for what runs unattended: when, how it stands, and what to try again.

The one decision made here: status and retry work on OUT alone, from its files, so they answer without a server and on
any machine that sees the folder. What is scheduled is asked for in the words of ``segment``.
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
from flows.batch.history import BatchHistory, doer, note
from flows.cli.options import AsJson, ConfigFile, Overrides, ResultsFolder, Until
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.printable import printable

app = typer.Typer()


@app.command()
def status(
    out: ResultsFolder,
    failed: Annotated[bool, typer.Option("--failed", help="Only slides that need somebody.")] = False,  # noqa: FBT002  typer's way to declare a flag
    as_json: AsJson = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Say what became of every slide, why, and what to do. Ends as segment would: 0 when every slide is complete."""
    from flows.batch.status import NEED_SOMEBODY, Status, show

    found = Status.of(out)
    slides = [slide for slide in found.slides if slide.state in NEED_SOMEBODY] if failed else found.slides
    if as_json:
        typer.echo(json.dumps(found.as_json(slides), indent=1))
    else:
        show(found, slides, Console())
    raise typer.Exit(found.exit_code())


@app.command()
def retry(
    out: ResultsFolder,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Slides that failed.", show_default=False)],
) -> None:
    """Let the next run try slides again that were quarantined because they failed three times."""
    strikes = BatchHistory.read(out).strikes()
    if unknown := [key for key in keys if key not in strikes]:
        known = ", ".join(sorted(strikes)[:10]) or "none did"
        raise ConfigError(f"{unknown[0]}: expected the key of a slide that failed in {out}, found among them: {known}")
    note(out, "retry", {"keys": keys, **doer()})
    typer.echo(f"tried again in the next run: {printable(', '.join(keys))}")


SETTLE_S = 60
"""Nobody watches: a slide changed less than so many seconds ago may still be written, and waits for the next night."""


@app.command()
def schedule(  # noqa: PLR0913  one parameter an option
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that slides arrive in.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for the results.", show_default=False)],
    cron: Annotated[str | None, typer.Option("--cron", metavar="CRON", help="When, such as '0 1 * * *'.")] = None,
    every: Annotated[
        float | None, typer.Option("--every", metavar="SECONDS", help="How often, instead.", min=1)
    ] = None,
    watch: Annotated[  # noqa: FBT002  typer's way to declare a flag
        bool, typer.Option("--watch", help="Whenever slides have arrived and rested, instead.")
    ] = False,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", metavar="ZONE", help="Such as Europe/Berlin; else this machine's."),
    ] = None,
    until: Until = None,
    notify: Annotated[
        str | None,
        typer.Option("--notify", metavar="BLOCK", help="Prefect's block to write to when a night fails or is missing."),
    ] = None,
    config: ConfigFile = None,
    settings: Overrides = None,
) -> None:
    """Segment what is new in a folder every night. Runs until it is stopped; start it again after a reboot."""
    overrides = list(settings or ())
    checked = load_config(config, overrides)
    if "settle_s" not in checked.input.model_fields_set:
        overrides.append(f"input.settle_s={SETTLE_S}")
        checked = load_config(config, overrides)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: expected the one that slides arrive in")
    zone = timezone or _local_zone()
    read_zone(zone)
    words = [str(folder.absolute()), "--out", str(out.absolute())]
    words += [] if config is None else ["--config", str(config.absolute())]
    words += [word for override in overrides for word in ("--set", override)]
    asked = {
        "inputs": (folder.absolute(),),
        "out": out.absolute(),
        "until": None if until is None else read_clock(until),
        "timezone": zone,
        "command": ("overtile", "segment", *words),
    }
    raise typer.Exit(_serve(checked, asked, _Times(cron, every, watch), notify))


@dataclass(frozen=True, slots=True)
class _Times:
    """When nights are asked for."""

    cron: str | None
    every_s: float | None
    watch: bool


def _serve(config: RunConfig, asked: dict[str, Any], times: _Times, block: str | None) -> int:
    """Serve the nights asked for at these times until a signal; the exit code."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # nobody watches, a journal does
    from flows.batch.selection import pin_models
    from flows.prefect_server import Server, used
    from pipeline.inference.ensemble import load_model

    pins = {"model_sha256": load_model(config.model).sha256, "pinned": pin_models(config)}
    server = Server.start(lasting=True)
    from flows.schedule import ScheduleService, serve, when
    from flows.scheduled_run import ScheduledRunRequest

    request = ScheduledRunRequest(config=config, **pins, **asked)
    plan = when(times.cron, times.every_s, request.timezone or "UTC", watch=times.watch)
    with used(server):
        return serve(request, plan, ScheduleService(_say, None if server is None else server.require_alive, block))


def _say(text: str) -> None:
    typer.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {printable(text)}")


def _local_zone() -> str:
    """The name of this machine's time zone: cron's times are those of the clock on its wall."""
    named = os.environ.get("TZ", "").removeprefix(":")
    _, found, name = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")
    return named or (name if found else "UTC")
