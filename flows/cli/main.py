"""The command line: words in, exit code out.

The one decision made here: heavy libraries are imported inside the command that needs them, so that help, usage errors
and refusals cost a fraction of a second.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import signal
import sys
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
from flows.cli.cleanup import app as tidy_app
from flows.cli.compare import app as compare_app
from flows.cli.evaluate import app as evaluate_app
from flows.cli.model import app as model_app
from flows.cli.options import ConfigFile, Overrides, ResultPath, Until
from flows.cli.results import app as look_app
from flows.cli.schedule import app as night_app
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
"""Set unless the user did: nothing leaves this machine, one voice on the terminal, and a server that is gone is waited
for 14 s at each word, not 70, one whose database is locked 90 s and not five minutes: it keeps no ledger."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(model_app, name="model")
app.add_typer(train_app)
app.add_typer(evaluate_app)
app.add_typer(night_app)
app.add_typer(look_app)
app.add_typer(tidy_app)
app.add_typer(compare_app)

Inputs = Annotated[
    list[Path], typer.Argument(metavar="SLIDE_OR_FOLDER...", help="Slides, or folders of slides.", show_default=False)
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="OUT", help="Folder for the results, one folder a slide.", show_default=False)
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="NAME_OR_FILE", help="Built-in model or .safetensors file. Of several, the mean probability."
    ),
]
Mpp = Annotated[
    str | None,
    typer.Option("--mpp", metavar="X|native", help="Micrometres per pixel of the slides, or 'native': no resampling."),
]
Cases = Annotated[
    Path | None,
    typer.Option("--cases", metavar="CSV", help="Table that names, orders and tells apart the slides; see README."),
]
Force = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="[KEY]",
        help="Give up this slide's complete result if its plan changed. Bare: every slide's.",
    ),
]


@app.callback(invoke_without_command=True)
def version(
    asked: Annotated[bool, typer.Option("--version", help="Say which version this is, and stop.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Segment whole-slide images exactly."""
    if asked:
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
        Path | None, typer.Option("--redact", metavar="FILE", help="Tell ids, not names; FILE says which is which.")
    ] = None,
    array: Annotated[
        str | None,
        typer.Option("--array", metavar="i/n", help="Take every n-th slide only, from the i-th: one job of n."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price it in hours, disk and memory, and stop.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Segment slides. Run the same command again to resume, or to add new slides."""
    from pipeline.config import load_config

    overrides = list(settings or ())
    overrides += [f"model.weights={json.dumps(model if len(model) > 1 else model[0])}"] if model else []
    overrides += [f"input.mpp={mpp}"] if mpp is not None else []
    overrides += [f"outputs.redact={json.dumps(str(redact))}"] if redact is not None else []
    overrides += [f"input.cases={json.dumps(str(cases))}"] if cases is not None else []
    checked = load_config(config, overrides)  # before the second that the rest takes to import
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

    server = Server.start(apart=request.share is not None)  # it boots while the rest is imported and planned
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
    """Print the table of slides and the line that sums up; the exit code."""
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
        said = f"{outcome.key}: {outcome.state} at {outcome.stage}: {outcome.cause}"
        if outcome.state in ("resumable", "deferred"):
            console.print(f"note: {escape(printable(said))}", soft_wrap=True, highlight=False)
        elif not outcome.is_up_to_date:
            _complain(said)
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
    """Check every file of every complete slide against its manifest. Exit 3 when one is damaged."""
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
        _complain(
            f"{damaged_slides} slides are damaged. Run the same segment command again: it makes just those files again"
        )
        raise typer.Exit(3)


@app.command()
def doctor() -> None:
    """Say what this machine offers, and whether overtile can work on it."""
    from flows.cli.doctor import examine

    raise typer.Exit(examine(Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to put slide and results.")] = Path(
        "demo-result"
    ),
) -> None:
    """Segment real tissue that ships with scikit-image, and prove the result."""
    from flows.cli.demo import run_demo

    raise typer.Exit(run_demo(out, _segment))


ALL = "*"
MANY = ("--model", "--folds")
"""Options of ``evaluate`` that take several words."""
EXIT_SIGNAL = 128
"""Plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM."""

Refusal: Any = typer.BadParameter.__mro__[2]
"""click's ClickException, which typer ships under a name of its own."""


def _bare_force(arguments: list[str]) -> list[str]:
    """``--force`` without a key means every slide: what follows it is an option, or nothing."""
    pairs = zip(arguments, [*arguments, "-"][1:], strict=True)
    return [
        part
        for here, after in pairs
        for part in ([here, ALL] if here == "--force" and after.startswith("-") else [here])
    ]


def _one_by_one(arguments: list[str]) -> list[str]:
    """``--model a b`` and ``--folds 0 1`` of ``evaluate`` mean each: the option is said again before each word."""
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
    """Politely the first time; the second Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_SIGNAL + signal.SIGINT))
    raise _Stopped(number)


def main() -> None:
    """Entry point of the ``overtile`` command: run it and exit with an honest code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    logging.raiseExceptions = False  # a log that a server does not take is not worth a line on the terminal
    atexit.register(gc.freeze)  # the interpreter ends without a last collection of all it imported: a second
    arguments = _one_by_one(_bare_force(sys.argv[1:]))
    sys.exit(_guarded(lambda: app(arguments, standalone_mode=False)))


def _guarded(run: Callable[[], object]) -> int:
    """Run a command; every refusal becomes one line on stderr and its exit code."""
    try:
        answer = run()
    except OvertileError as error:
        return _complain(str(error), code=error.exit_code)
    except Refusal as error:
        error.show()
        return 2
    except _Stopped as stopped:
        return _complain("stopped. Run the same command again to go on", code=stopped.exit_code)
    return answer if isinstance(answer, int) else 0


def _complain(text: str, code: int = 1) -> int:
    sys.stderr.write(f"error: {printable(text)}\n")
    return code
