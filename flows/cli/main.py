"""The `overtile` command: options, exit codes, signals.

Heavy libraries are imported inside the command that needs them, so that help and usage errors take a fraction of a
second.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.batch.array_job import ArrayJob
from flows.batch.deadline import read_clock
from flows.cli.cleanup import app as cleanup_app
from flows.cli.compare import app as compare_app
from flows.cli.evaluate import app as evaluate_app
from flows.cli.model import app as model_app
from flows.cli.options import ConfigFile, Overrides, ResultPath, Until
from flows.cli.results import app as results_app
from flows.cli.schedule import app as schedule_app
from flows.cli.train import app as train_app
from pipeline.errors import ConfigError, OvertileError, ServerError
from pipeline.printable import printable

if TYPE_CHECKING:
    from flows.batch.batch import Batch, BatchRequest
    from flows.prefect_server import Server

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "PREFECT_API_REQUEST_TIMEOUT": "20",
}
"""Defaults for unset variables: no telemetry, no console log of Prefect, and short waits for its server.

An unreachable server costs 14 s a call instead of 70 s, a locked database 90 s instead of five minutes.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(model_app, name="model")
app.add_typer(train_app)
app.add_typer(evaluate_app)
app.add_typer(schedule_app)
app.add_typer(results_app)
app.add_typer(cleanup_app)
app.add_typer(compare_app)

Inputs = Annotated[
    list[Path], typer.Argument(metavar="SLIDE_OR_FOLDER...", help="Slides or folders of slides.", show_default=False)
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="OUT", help="Results folder; holds one folder per slide.", show_default=False)
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME_OR_FILE",
        help="Built-in model or .safetensors file. Repeat it to average the probabilities of several models.",
    ),
]
Mpp = Annotated[
    str | None,
    typer.Option(
        "--mpp",
        metavar="X|native",
        help="Resolution of the slides in um per pixel, or 'native': no resampling. Default: as stored in the slide.",
    ),
]
Cases = Annotated[
    Path | None,
    typer.Option("--cases", metavar="CSV", help="CSV table that selects, orders and configures slides, see cases.md."),
]
Force = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="[KEY]",
        help="Replace this slide's complete result if its plan has changed; without KEY, every slide's. Repeatable.",
    ),
]


@app.callback(invoke_without_command=True)
def version(
    requested: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Segment whole-slide images with a U-Net.

    The result of tiles equals one forward pass over the whole slide. An interrupted run is resumed by the same command.
    """
    if requested:
        typer.echo(f"overtile {metadata.version('overtile')}")
        raise typer.Exit


@app.command()
def segment(  # noqa: PLR0913  one parameter an option
    inputs: Inputs,
    out: OutFolder,
    config: ConfigFile = None,
    model: ModelNames = None,
    settings: Overrides = None,
    mpp: Mpp = None,
    cases: Cases = None,
    force: Force = None,
    until: Until = None,
    redact: Annotated[
        Path | None,
        typer.Option("--redact", metavar="FILE", help="Replace slide names by pseudonyms; FILE keeps the mapping."),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option("--array", metavar="i/n", help="Process every n-th slide, starting with the i-th, as job i of n."),
    ] = None,
    dry_run: Annotated[  # noqa: FBT002  typer's way to declare a flag
        bool, typer.Option("--dry-run", help="Estimate run time, disk space and memory without segmenting.")
    ] = False,
) -> None:
    """Segment slides, or resume a run.

    Run the same command again to resume or to process new slides; complete results are left unchanged. Exit codes:
    0 all slides are complete, 2 invalid request, 3 some slides are not complete, 4 none is, 74 disk error, 75 locked.
    """
    from pipeline.config import load_config

    overrides = list(settings or ())
    overrides += [f"model.weights={json.dumps(model if len(model) > 1 else model[0])}"] if model else []
    overrides += [f"input.mpp={mpp}"] if mpp is not None else []
    overrides += [f"outputs.redact={json.dumps(str(redact))}"] if redact is not None else []
    overrides += [f"input.cases={json.dumps(str(cases))}"] if cases is not None else []
    checked = load_config(config, overrides)  # before imports that take a second
    share = None if array is None else ArrayJob.read(array)
    from flows.batch.batch import BatchRequest

    keys = tuple(key for key in force or () if key != ALL)
    request = BatchRequest(
        inputs=tuple(inputs),
        out=out,
        config=checked,
        force=keys,
        force_all=ALL in (force or ()),
        until=None if until is None else read_clock(until),
        share=share,
    )
    raise typer.Exit(_dry_run(request) if dry_run else _segment(request))


def _segment(request: BatchRequest) -> int:
    from flows.prefect_server import Server

    server = Server.start(apart=request.share is not None)  # it starts while modules are imported and slides planned
    from flows.batch.batch import plan_batch, settle
    from flows.batch.group_permissions import shared_with_group
    from flows.reports.batch_files import write_batch_files

    with shared_with_group(request):
        batch = plan_batch(request)
        if settle(batch):
            write_batch_files(batch)
        else:
            batch = _work(batch, server)
        return _report(batch)


def _work(batch: Batch, server: Server | None) -> Batch:
    from flows.cli.segment_progress import SegmentProgress
    from flows.prefect_server import used

    console = Console()
    from flows.batch.scheduler import make_executor
    from flows.batch_run import PlannedBatch
    from flows.segment import IncompleteError, run_flow

    try:
        with make_executor(batch) as executor, used(server), SegmentProgress(console) as display:
            return run_flow(PlannedBatch(batch, executor, display))
    except IncompleteError as incomplete:
        return incomplete.batch
    except ServerError as lost:
        if any(outcome.state == "waiting" for outcome in batch.outcomes):
            raise
        console.print(f"note: {escape(printable(str(lost)))}", soft_wrap=True, highlight=False)
        return batch


def _dry_run(request: BatchRequest) -> int:
    from flows.batch.dry_run import dry_run

    return dry_run(request, Console())


def _report(batch: Batch) -> int:
    """Print the table of slides and the totals; return the exit code."""
    from flows.batch.result_records import slide_record
    from pipeline.runs.slide_run import slide_root
    from pipeline.storage.slide_store import SlideStore

    table = Table(Column("slide", overflow="fold"), "state", "objects", "per mm2", "tissue mm2", "blocks computed", "s")
    for outcome in batch.outcomes:
        record = slide_record(SlideStore(slide_root(batch.request.out, outcome.key))) if outcome.is_up_to_date else {}
        numbers = [str(record.get(name, "")) for name in ("objects", "objects_per_mm2", "tissue_mm2")]
        colour = "green" if outcome.is_up_to_date else "red"
        blocks = sum(outcome.computed.values())
        table.add_row(
            escape(printable(outcome.key)),
            f"[{colour}]{outcome.state}[/]",
            *numbers,
            str(blocks),
            f"{outcome.seconds:.0f}",
        )
    console = Console()
    console.print(table)
    for outcome in batch.outcomes:
        for notice in outcome.notices:
            console.print(f"note: {escape(printable(notice))}", soft_wrap=True, highlight=False)
        message = f"{outcome.key}: {outcome.state} at {outcome.stage}: {outcome.cause}"
        if outcome.state in ("resumable", "deferred"):
            console.print(f"note: {escape(printable(message))}", soft_wrap=True, highlight=False)
        elif not outcome.is_up_to_date:
            _print_error(message)
    blocks = sum(sum(outcome.computed.values()) for outcome in batch.outcomes)
    calls = sum(outcome.network_calls for outcome in batch.outcomes)
    complete = sum(outcome.is_up_to_date for outcome in batch.outcomes)
    console.print(
        f"{complete} of {len(batch.outcomes)} slides complete; {blocks} blocks computed, {calls} network calls"
    )
    console.print(f"results: {escape(printable(str(batch.request.out)))}", soft_wrap=True, highlight=False)
    return batch.exit_code()


@app.command()
def verify(path: ResultPath) -> None:
    """Check every file of complete results against its manifest.

    Exit codes: 0 all files are intact, 3 a slide is damaged.
    """
    from flows.batch.result_records import slide_stores
    from pipeline.runs.verify import verify_slide

    stores = list(slide_stores(path))
    if not stores:
        raise ConfigError(f"{path} holds no results: expected a folder that 'overtile segment' wrote")
    damaged_slides = 0
    for store in stores:
        damaged = verify_slide(store)
        name = printable(str(store.root))
        if damaged is None:
            typer.echo(f"incomplete  {name}")
            continue
        typer.echo(f"{'DAMAGED   ' if damaged else 'sound     '}  {name}")
        damaged_slides += bool(damaged)
        for fault in damaged:
            typer.echo(f"    {fault.path}: {fault.reason}")
    if damaged_slides:
        _print_error(
            f"{damaged_slides} slides are damaged. Run the same segment command again: it rewrites only damaged files"
        )
        raise typer.Exit(3)


@app.command()
def doctor() -> None:
    """Show versions, memory, devices and models.

    Exit codes: 0 overtile can run on this machine, 1 it cannot.
    """
    from flows.cli.doctor import examine

    raise typer.Exit(examine(Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the slide and its results.")] = Path(
        "demo-result"
    ),
) -> None:
    """Segment a sample slide and verify the result.

    The tissue ships with scikit-image. The result is compared with a single forward pass.
    """
    from flows.cli.demo import run_demo

    raise typer.Exit(run_demo(out, _segment))


ALL = "*"
MANY = ("--model", "--folds")
"""Options of ``evaluate`` that take several values."""
EXIT_SIGNAL = 128
"""Exit code offset of signals: 130 after Ctrl-C, 143 after SIGTERM."""

UsageException: Any = typer.BadParameter.__mro__[2]
"""click's ClickException, which typer bundles under a private name."""


def _expand_bare_force(arguments: list[str]) -> list[str]:
    """Add ``*`` after a ``--force`` without a key, that is one followed by an option or by nothing."""
    pairs = zip(arguments, [*arguments, "-"][1:], strict=True)
    return [
        part
        for here, after in pairs
        for part in ([here, ALL] if here == "--force" and after.startswith("-") else [here])
    ]


def _repeat_options(arguments: list[str]) -> list[str]:
    """Repeat ``--model`` and ``--folds`` of ``evaluate`` before each of their values, as typer expects."""
    if arguments[:1] != ["evaluate"]:
        return arguments
    spread: list[str] = []
    option = ""
    for part in arguments:
        if part.startswith("-"):
            option = part
        elif option in MANY and spread[-1] != option:
            spread.append(option)
        spread.append(part)
    return spread


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived; the exit code says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = EXIT_SIGNAL + number


def _stop(number: int, _frame: FrameType | None) -> None:
    """First signal: clean shutdown. A Ctrl-C after it: exit at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_SIGNAL + signal.SIGINT))
    raise _Stopped(number)


def main() -> None:
    """Run the ``overtile`` command and exit with its code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    # rasterio hides this warning with catch_warnings, which does not hold when several threads trace outlines
    warnings.filterwarnings("ignore", "Dataset has no geotransform")
    logging.raiseExceptions = False  # no traceback on the terminal when a server rejects a log record
    atexit.register(gc.freeze)  # skip the garbage collection at exit, which takes a second
    arguments = _repeat_options(_expand_bare_force(sys.argv[1:]))
    sys.exit(_guarded(lambda: app(arguments, standalone_mode=False)))


def _guarded(run: Callable[[], object]) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr."""
    try:
        result = run()
    except OvertileError as error:
        return _print_error(str(error), code=error.exit_code)
    except UsageException as error:
        error.show()
        return 2
    except _Stopped as stopped:
        return _print_error("stopped. Run the same command again to go on", code=stopped.exit_code)
    return result if isinstance(result, int) else 0


def _print_error(text: str, code: int = 1) -> int:
    sys.stderr.write(f"error: {printable(text)}\n")
    return code
