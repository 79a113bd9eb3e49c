"""Commands that make room: parts of results that are old enough, and whole results.

The one decision made here: nothing is asked back. ``--dry-run`` says what would go and how many bytes that is; without
it the command does what it says, so that it can stand in a crontab.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ResultsFolder
from pipeline.printable import printable

if TYPE_CHECKING:
    from flows.batch.cleanup import CleanupResult

app = typer.Typer()

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go and how much it is, and stop.")]


@app.command()
def prune(
    out: ResultsFolder,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Of slides complete for so long, such as 30d, 12h or 2w.")
    ],
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="PARTS",
            help="What stays, with commas: tables, overview, geojson, labels, probability, tissue, image.",
        ),
    ],
    dry_run: DryRun = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Give up parts of complete results to make room. They stay complete: nothing is computed again because of it."""
    from flows.batch.cleanup import prune as run
    from flows.batch.cleanup import read_age
    from pipeline.runs.prune import read_parts

    _say(run(out, read_age(older_than), read_parts(keep), dry=dry_run), dry_run)


@app.command()
def delete(
    out: ResultsFolder,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Slides.", show_default=False)],
    dry_run: DryRun = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Take slides' results away. One that is still in the input is computed again by the next run over it."""
    from flows.batch.cleanup import delete as run

    _say(run(out, keys, dry=dry_run), dry_run)


def _say(told: Iterable[CleanupResult], dry: bool) -> None:  # noqa: FBT001  typer's flag
    """Print what became of each slide and how much that is; ends with 3 when one was left alone."""
    went: list[CleanupResult] = []
    alone: list[CleanupResult] = []
    for one in told:
        (alone if one.state == "left alone" else went).append(one)
        size = "" if one.state == "left alone" else f"{one.bytes / 1e6:.1f} MB"
        words = (one.state, printable(one.key), size, ", ".join(one.parts), printable(one.cause))
        typer.echo("  ".join(word for word in words if word))
    would = "would go" if dry else "went"
    typer.echo(f"{sum(one.bytes for one in went) / 1e6:.1f} MB of {len(went)} slides {would}; {len(alone)} left alone")
    raise typer.Exit(3 if alone else 0)
