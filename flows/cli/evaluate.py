"""The evaluate command. It imports the libraries of training only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WithBaselines = Annotated[
    bool, typer.Option("--baselines", help="Also score Otsu and classifiers trained on the other folds.")
]
app = typer.Typer()


@app.command()
def evaluate(  # noqa: PLR0913  one parameter an option
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Folder of annotated images.")],
    masks: Annotated[
        Path, typer.Option("--masks", metavar="DIR", help="Folder of their masks, with the same file names.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="REPORT", help="Folder for the report.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_FILE...",
            help="Built-in models, files or training runs; A+B averages two. Of a run over all folds, each image is "
            "scored by the model that held it back.",
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", metavar="CSV", help="CSV table with columns image, patient and fold, see training.md."),
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--folds", metavar="K...", help="Use images of these folds only.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="section.key=value", help="Override data.* (how masks are read) or model.tta. Repeatable."
        ),
    ] = None,
    baselines: WithBaselines = False,  # noqa: FBT002  typer's way to declare a flag
    within_um: Annotated[
        float,
        typer.Option(
            "--within-um",
            metavar="UM",
            min=0.01,
            help="Match predicted to annotated centres within this distance; 8 px where no resolution is known.",
        ),
    ] = 4.0,
    device: Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda.")] = "cpu",
) -> None:
    """Score and compare models on annotated images.

    The report has confidence intervals over patients.
    """
    from flows.reports.evaluate import EvaluateRequest, Source
    from flows.reports.evaluate import evaluate as run

    source = Source(images, masks, cases)
    run(EvaluateRequest(source, out, model or (), folds, settings or (), baselines, device, within_um))
