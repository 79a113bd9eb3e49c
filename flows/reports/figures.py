"""Charts of reports, as SVG for pages and PNG for other uses. No other module imports matplotlib.

No global state of matplotlib (pyplot) is used, and a figure does not depend on time, machine or drawing order. Colours
are those of Okabe and Ito, which are distinguishable with any colour vision; lines also differ by their markers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.reports.html_page import Picture
from pipeline.errors import ConfigError
from pipeline.rendering.text import drawable

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ConfigError(
        f"reports of training and evaluation: expected the library matplotlib, found none ({error}). "
        "Install it: pip install 'overtile[train]'"
    ) from error

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
INK, LIGHT = "#20242c", "#d5d8de"
PNG_DPI = 160
STYLE: Any = {
    "svg.hashsalt": "overtile",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a909b",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "axes.axisbelow": True,
    "xtick.color": "#565c66",
    "ytick.color": "#565c66",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
MAX_NAME_CHARACTERS = 34
INTERVALS = "figures/intervals"
MAX_POINTS = 800
"""Maximum number of points drawn of a curve."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; ``ends`` are the lower and upper ends of an interval at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    ends: Sequence[tuple[float, float]] | None = None


def figure(name: str, alt: str, draw: Callable[[Figure], object], size_in: tuple[float, float] = (5.2, 3.4)) -> Picture:
    """Draw a figure and return it as SVG and PNG.

    Args:
        name: File name without extension.
        alt: Alternative text.
        draw: Called with an empty figure.
        size_in: Width and height in inches.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(size_in, layout="constrained")
        draw(fig)
        svg, png = io.BytesIO(), io.BytesIO()
        fig.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        fig.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    inner = svg.getvalue()
    return Picture(name, alt, png.getvalue(), inner[inner.index(b"<svg") :])  # without the DOCTYPE, which names a URL


def label(name: str) -> str:
    """Format a name for a legend: characters of its font, limited length, and not hidden by a leading underscore."""
    text = drawable(name, system_fonts=False)
    text = text if len(text) <= MAX_NAME_CHARACTERS else f"{text[: MAX_NAME_CHARACTERS - 3]}..."
    text = text.replace("$", r"\$")  # "$" would start a formula
    return f" {text}" if text.startswith("_") else text


def draw_lines(axes: Axes, lines: Sequence[Line], *, marked: bool = True) -> None:
    """Draw lines with colours and markers, bands for intervals, and a legend for several lines."""
    for number, line in enumerate(lines):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        axes.plot(line.x, line.y, color=colour, marker=mark if marked else None, label=label(line.name))
        if line.ends:
            low, high = zip(*line.ends, strict=True)
            axes.fill_between(line.x, low, high, color=colour, alpha=0.13, linewidth=0)
    if len(lines) > 1:
        axes.legend()


# ---- evaluation ------------------------------------------------------------------------------------------------------

Bar = tuple[str, float, tuple[float, float] | None]
"""Name, score and interval (None if there is none)."""


def interval_plot(rows: Sequence[tuple[str, Sequence[Bar]]]) -> Picture:
    """For each score: one row per model, a point with its interval."""

    def draw(fig: Figure) -> None:
        panels = fig.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for axes, (score, bars) in zip(panels, rows, strict=True):
            for row, (_, value, ends) in enumerate(bars):
                colour = COLOURS[row % len(COLOURS)]
                if ends:
                    axes.plot(ends, (row, row), color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
                axes.plot(value, row, MARKS[row % len(MARKS)], color=colour, markersize=7)
                axes.annotate(f"{value:.3f}", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=8)
            axes.set(title=score, ylim=(len(bars) - 0.5, -0.6))
            axes.margins(x=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_yticks(range(len(bars)), [label(bar[0]) for bar in bars])
            axes.grid(visible=False, axis="y")

    most = max(len(bars) for _, bars in rows)
    names = ", ".join(score for score, _ in rows)
    return figure(INTERVALS, f"{names} of each model with intervals", draw, (10.6, max(1.7, 0.9 + 0.45 * most)))


def f1_curve(lines: Sequence[Line]) -> Picture:
    """F1 of objects by the IoU at which an object counts as found."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        draw_lines(axes, lines)
        axes.set(title="Object detection", xlabel="Minimum IoU of a match", ylabel="F1", ylim=(-0.02, 1.02))

    names = ", ".join(line.name for line in lines)
    return figure("figures/f1", f"F1 of objects by minimum IoU, from 0.5 to 0.9: {names}", draw)


def reliability_plot(lines: Sequence[Line], pixels: Mapping[str, Sequence[int]]) -> Picture:
    """Observed fraction by predicted probability, above a histogram of the number of pixels."""

    def draw(fig: Figure) -> None:
        above, below = fig.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        above.plot((0, 1), (0, 1), color="#8a909b", linewidth=1, linestyle=(0, (4, 3)))
        draw_lines(above, lines)
        above.set(title="Calibration", ylabel="Observed fraction", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        above.text(0.72, 0.6, "perfect", color="#565c66", fontsize=8, transform=above.transAxes)
        width = 0.08 / len(pixels)
        for number, counts in enumerate(pixels.values()):
            positions = 0.05 + 0.1 * np.arange(len(counts)) + width * (number - (len(pixels) - 1) / 2)
            below.bar(positions, np.maximum(counts, 0.5), width, color=COLOURS[number % len(COLOURS)])
        below.set(xlabel="Predicted probability", ylabel="Pixels", yscale="log", ylim=(0.8, None))

    names = ", ".join(line.name for line in lines)
    return figure("figures/reliability", f"Observed fraction of the class by predicted probability: {names}", draw)


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricCurves:
    """Metrics of a training run: training values by step, validation scores by step, best step and duration."""

    steps: Sequence[int]
    loss: Sequence[float]
    rate: Sequence[float]
    norms: Mapping[str, Sequence[float]]
    validation_steps: Sequence[int]
    scores: Mapping[str, Sequence[float]]
    best_step: int
    seconds: float


def loss_curve(name: str, history: MetricCurves) -> Picture:
    """Training loss with its running mean, and validation loss."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        every = subsampling(history.steps)
        axes.plot(history.steps[every], history.loss[every], color=LIGHT, linewidth=0.8)
        lines = [Line("training, running mean", history.steps[every], running_mean(history.loss)[every])]
        if "loss" in history.scores:
            lines.append(Line("validation", history.validation_steps, history.scores["loss"]))
        draw_lines(axes, lines[:1], marked=False)
        for line in lines[1:]:
            axes.plot(line.x, line.y, color=COLOURS[1], marker=MARKS[1], label=line.name)
        axes.legend()
        _mark_best(axes, history)
        axes.set(title="Loss", xlabel="Step", ylabel="Loss")
        axes.set_ylim(0, _loss_limit(history))

    return figure(name, "Training and validation loss by step", draw)


def _loss_limit(history: MetricCurves) -> float | None:
    """Upper end of the loss axis, so that a few large values at the start do not flatten the rest."""
    seen = [*running_mean(history.loss), *history.scores.get("loss", ())[1:]]
    return 1.15 * max(seen) if seen else None


def subsampling(values: Sequence[float]) -> slice:
    """Return the slice of the values that are drawn; it includes the last one."""
    return slice((len(values) - 1) % (step := -(-len(values) // MAX_POINTS) or 1), None, step)


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over a window of preceding values: a twentieth of all values, at most 50."""
    over = max(1, min(50, len(values) // 20))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(0, stops - over)
    means: list[float] = ((sums[stops] - sums[starts]) / (stops - starts)).tolist()
    return means


def score_curve(name: str, history: MetricCurves) -> Picture:
    """Validation scores by step."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        named = {"dice": "Dice", "iou": "IoU", "f1_50": "F1 of objects at IoU 0.5"}
        draw_lines(axes, [Line(title, history.validation_steps, history.scores[key]) for key, title in named.items()])
        _mark_best(axes, history)
        axes.set(title="Validation, threshold 0.5", xlabel="Step", ylabel="Score", ylim=(-0.02, 1.02))

    return figure(name, "Validation Dice, IoU and F1 by step", draw)


def rate_curve(name: str, history: MetricCurves) -> Picture:
    """Learning rate by step."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        every = subsampling(history.steps)
        draw_lines(axes, [Line("rate", history.steps[every], history.rate[every])], marked=False)
        axes.set(title="Learning rate", xlabel="Step", ylabel="Rate", ylim=(0, None))

    return figure(name, "Learning rate by step", draw)


def norm_curves(name: str, history: MetricCurves) -> Picture:
    """Running mean of the gradient norm of each level, shaded from the first level to the last."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        every = subsampling(history.steps)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(history.norms)))
        for shade, (level, values) in zip(shades, history.norms.items(), strict=True):
            means = np.maximum(running_mean(values)[every], 1e-12)
            axes.plot(history.steps[every], means, color=shade, linewidth=1.2, label=label(level))
        axes.legend(ncols=2 if len(history.norms) > 8 else 1, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set(title="Gradient norm by level", xlabel="Step", ylabel="Norm, running mean", yscale="log")

    return figure(name, "Gradient norm of each level by step", draw, (10.6, 3.4))


def skip_bars(name: str, flows: Sequence[tuple[str, float, float]]) -> Picture:
    """Gradient norm through each skip connection and from the level below.

    Args:
        name: File name without extension.
        flows: Name, norm through the skip connection, norm from below.
    """

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        positions, width = np.arange(len(flows)), 0.38
        axes.bar(positions - width / 2, [flow[1] for flow in flows], width, color=COLOURS[0], label="skip connection")
        axes.bar(
            positions + width / 2, [flow[2] for flow in flows], width, color=COLOURS[5], label="level below", hatch="//"
        )
        axes.set_xticks(positions, [flow[0] for flow in flows], rotation=45 if len(flows) > 6 else 0)
        axes.grid(visible=False, axis="x")
        axes.legend()
        axes.set(title="Gradient at skip connections", ylabel="Gradient norm")
        axes.set_ylim(0, 1.3 * max(max(flow[1:]) for flow in flows) or 1.0)

    return figure(name, "Gradient norm through each skip connection and from the level below", draw)


def threshold_curve(name: str, lines: Sequence[Line], chosen: float) -> Picture:
    """Scores by threshold, with the selected threshold."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        draw_lines(axes, lines)
        axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(title=f"Threshold (selected: {chosen:g})", xlabel="Threshold", ylabel="Score", ylim=(-0.02, 1.02))

    return figure(name, f"Scores by threshold; selected: {chosen:g}", draw)


def _mark_best(axes: Axes, history: MetricCurves) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.axvline(history.best_step, color=INK, linewidth=1, linestyle=(0, (4, 3)))


# ---- maps ------------------------------------------------------------------------------------------------------------


def viridis(values_YX: NDArray[Any]) -> NDArray[np.uint8]:
    """Map values 0..1 to viridis colours (y, x, 3): dark blue for 0, yellow for 1."""
    coloured = matplotlib.colormaps["viridis"](np.asarray(values_YX).clip(0, 1), bytes=True)
    return np.ascontiguousarray(np.asarray(coloured, np.uint8)[..., :3])
