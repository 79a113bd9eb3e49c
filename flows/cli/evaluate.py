"""`overtile evaluate`: words in.

The one decision made here: judging needs the libraries of training, so none of it is imported before it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WithBaselines = Annotated[
    bool, typer.Option("--baselines", help="Judge Otsu, and classifiers trained on the other folds, too.")
]
app = typer.Typer()


@app.command()
def evaluate(  # noqa: PLR0913  one parameter an option
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Annotated images.")],
    masks: Annotated[Path, typer.Option("--masks", metavar="DIR", help="Their masks, of the same names.")],
    out: Annotated[Path, typer.Option("--out", metavar="REPORT", help="Folder for what is found.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_FILE...",
            help="Built-in models or files; A+B: their mean; a run over all folds: each image by who held it back.",
        ),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", metavar="CSV", help="Columns image, patient, fold; see README.")
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--folds", metavar="K...", help="Judge images of these folds only.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="data.*: how masks are read; model.tta. Repeatable."),
    ] = None,
    baselines: WithBaselines = False,  # noqa: FBT002  typer's way to declare a flag
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Score models on annotated images, with intervals over patients, and compare them."""
    from flows.reports.evaluate import EvaluateRequest, Source
    from flows.reports.evaluate import evaluate as judge

    source = Source(images, masks, cases)
    judge(EvaluateRequest(source, out, model or (), folds, settings or (), baselines, device))
