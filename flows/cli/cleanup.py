"""Commands that free disk space: prune and delete.

They ask for no confirmation, so that they can run from a crontab; `--dry-run` shows what they would remove.
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

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be removed, and its size, without removing it.")
]


@app.command()
def prune(
    out: ResultsFolder,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Prune slides that have been complete for longer than this, for example 30d, 12h or 2w.",
        ),
    ],
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="PARTS",
            help="Parts to keep, separated by commas: tables, overview, geojson, labels, probability, tissue, image.",
        ),
    ],
    dry_run: DryRun = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Remove parts of complete results.

    The results stay complete: no run computes the removed parts again. Exit code 3: a slide was left alone.
    """
    from flows.batch.cleanup import prune as run
    from flows.batch.cleanup import read_age
    from pipeline.runs.prune import read_parts

    _print(run(out, read_age(older_than), read_parts(keep), dry=dry_run), dry_run)


@app.command()
def delete(
    out: ResultsFolder,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of the slides.", show_default=False)],
    dry_run: DryRun = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Delete the results of slides.

    The next run computes them again if the slides are still in its input. Exit code 3: a slide was left alone.
    """
    from flows.batch.cleanup import delete as run

    _print(run(out, keys, dry=dry_run), dry_run)


def _print(results: Iterable[CleanupResult], dry: bool) -> None:  # noqa: FBT001  typer's flag
    """Print the result of each slide and the total size. Exit code 3: a slide was left alone."""
    removed: list[CleanupResult] = []
    alone: list[CleanupResult] = []
    for result in results:
        (alone if result.state == "left alone" else removed).append(result)
        size = "" if result.state == "left alone" else f"{result.bytes / 1e6:.1f} MB"
        words = (result.state, printable(result.key), size, ", ".join(result.parts), printable(result.cause))
        typer.echo("  ".join(word for word in words if word))
    verb = "would be removed" if dry else "removed"
    size_mb = sum(result.bytes for result in removed) / 1e6
    typer.echo(f"{size_mb:.1f} MB of {len(removed)} slides {verb}; {len(alone)} left alone")
    raise typer.Exit(3 if alone else 0)
