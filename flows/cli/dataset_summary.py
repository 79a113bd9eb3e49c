"""Print the summary of a training data set: images, classes and remarks."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.annotations.dataset_checks import DatasetSummary
from pipeline.printable import printable
from unet_core.training.dataset_spec import moments

MOST_SHOWN = 20


def show_summary(summary: DatasetSummary, console: Console) -> None:
    """Print images, classes and remarks."""
    console.print(_case_table(summary))
    if len(summary.cases) > MOST_SHOWN:
        console.print(f"  and {len(summary.cases) - MOST_SHOWN} more images", highlight=False)
    console.print(_class_table(summary))
    for remark in summary.remarks:
        console.print(f"  note: {escape(printable(remark))}", soft_wrap=True, highlight=False)


def _case_table(summary: DatasetSummary) -> Table:
    dotted = ["dots"] * any(summary.dots)
    table = Table("image", "px", "type", "um/px", "mean", "std", "objects", *dotted, "% of px")
    for case in summary.cases[:MOST_SHOWN]:
        mean, std = (" ".join(f"{value:.2f}" for value in values) for values in moments([case.counted]))
        size = f"{case.shape_yx[1]} x {case.shape_yx[0]}"
        mpp = f"{case.mpp:.3g}" if case.mpp else ""
        share = f"{100 * sum(case.class_px[1:]) / case.counted.pixels:.1f}"
        kind, objects = str(case.counted.dtype), str(case.counted.objects)
        dots = [str(sum(case.dots))] * any(summary.dots)
        table.add_row(escape(printable(case.name)), size, kind, mpp, mean, std, objects, *dots, share)
    return table


def _class_table(summary: DatasetSummary) -> Table:
    title = f"{len(summary.cases)} images of {summary.patients} patients"
    dotted = ["dots"] * any(summary.dots)
    table = Table("class", "px", "% of px", *dotted, "images", title=title, title_justify="left")
    for number, name in enumerate(("background", *summary.class_names)):
        holding = sum(case.holds(number) for case in summary.cases)
        dots = ["" if number == 0 else str(summary.dots[number - 1])] * any(summary.dots)
        share = f"{100 * summary.frequencies[number]:.2f}"
        table.add_row(escape(printable(name)), str(summary.class_px[number]), share, *dots, str(holding))
    return table
