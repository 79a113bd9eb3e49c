"""The compare command.

It exits with 0 only when every slide of both folders was compared, so that a script never draws a conclusion from a
part of the slides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.printable import printable

if TYPE_CHECKING:
    from flows.reports.compare import Compared

app = typer.Typer()

OutFolder = Annotated[Path, typer.Argument(help="Results folder of `overtile segment`.", show_default=False)]


@app.command()
def compare(
    out1: OutFolder,
    out2: OutFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for report.html and slides.csv.")],
) -> None:
    """Compare two results of the same slides.

    Exit codes: 0 every slide of both folders was compared, 3 a slide was not.
    """
    from flows.reports.compare import compare as run
    from flows.reports.compare_html import write_comparison

    comparison = run((out1, out2), _say)
    typer.echo(printable(str(write_comparison(comparison, to))))
    raise typer.Exit(0 if comparison.whole else 3)


def _say(slide: Compared) -> None:
    dice = "" if slide.agreement is None or slide.row.dice is None else f"Dice {slide.row.dice:.4f}"
    typer.echo("  ".join(word for word in (printable(slide.key), dice, printable(slide.note)) if word))
