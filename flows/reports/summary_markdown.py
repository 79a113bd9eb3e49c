"""summary.md: an overview of a batch in Markdown.

Slides that need attention come first, with the command that resumes the batch, then the results. File names and
messages are escaped, so they cannot become markup.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flows.batch.outcome import Outcome
from flows.batch.result_records import Record
from flows.batch.result_rows import ENLARGED_FLAG
from pipeline.printable import printable
from pipeline.slides.bad_tiles import FLAG as MASKED_FLAG

FAR = 3.5
"""Modified z-score above which a slide is an outlier (Iglewicz and Hoaglin 1993)."""
MIN_SLIDES, MAX_NAMES = 5, 10
"""Minimum number of slides for outlier detection, and maximum number of names in a line."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of a summary. ``left_s`` is the estimated time left while the batch runs."""

    title: str
    outcomes: Sequence[Outcome]
    records: Mapping[str, Record]
    seconds: float
    running: bool = False
    left_s: float | None = None
    command: str | None = None

    def markdown(self) -> str:
        """Return the summary as Markdown."""
        parts = (self._headline(), self._attention(), self._slides(), self._classes(), self._outliers(), _FILES)
        return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"

    def _complete(self) -> list[tuple[Outcome, Record]]:
        found = ((outcome, self.records.get(outcome.key)) for outcome in self.outcomes if outcome.is_up_to_date)
        return [(outcome, record) for outcome, record in found if record is not None and record.state == "complete"]

    # ---- headline ----------------------------------------------------------------------------------------------------

    def _headline(self) -> Iterator[str]:
        yield f"# {escape_markdown(self.title)}"
        yield ""
        complete = sum(outcome.is_up_to_date for outcome in self.outcomes)
        others = _counted(outcome.state for outcome in self.outcomes if not outcome.is_up_to_date)
        yield f"**{complete} of {len(self.outcomes)} slides complete**{''.join(f', {other}' for other in others)}."
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        if self.running:
            left = "time left not known yet" if self.left_s is None else f"about {span(self.left_s)} left"
            yield f"Running for {span(self.seconds)}, {left}. Written {now}."
        else:
            yield f"Took {span(self.seconds)}. Written {now}."
        yield from self._throughput()

    def _throughput(self) -> Iterator[str]:
        new = [record for outcome, record in self._complete() if outcome.state == "complete"]
        hours = self.seconds / 3600
        if new and hours:
            tissue_mm2 = sum(record.figures["tissue_mm2"] for record in new)
            rates = f"{len(new) / hours:.3g} per hour, {tissue_mm2 / hours:.3g} mm2 of tissue per hour"
            yield f"Completed in this run: {_slides(len(new))} ({rates})."

    # ---- attention ---------------------------------------------------------------------------------------------------

    def _attention(self) -> list[str]:
        lines = [*self._failures(), *self._masked(), *self._flagged(), *self._warned()]
        return ["## Needs attention", "", *lines] if lines else []

    def _failures(self) -> Iterator[str]:
        groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.stopped:
                groups[outcome.state, _kind(_cause(outcome))].append(outcome)
        for (state, _), group in sorted(groups.items(), key=lambda item: -len(item[1])):
            first = group[0]
            yield f"- **{_slides(len(group))} {state}** at {first.stage}: {escape_markdown(_cause(first))}"
            yield f"  ({_names(outcome.key for outcome in group)})"
        if groups and self.command:
            yield ""
            yield "After the cause is fixed, this command computes only what is missing:"
            yield ""
            yield f"    {printable(self.command)}"
            yield ""

    def _flagged(self) -> Iterator[str]:
        flagged: dict[str, list[str]] = defaultdict(list)
        for outcome, record in self._complete():
            for flag in record.figures["flags"]:
                if flag not in (ENLARGED_FLAG, MASKED_FLAG):  # described by lines of their own
                    flagged[flag].append(outcome.key)
        for flag, keys in flagged.items():
            yield f"- **{_slides(len(keys))} flagged {escape_markdown(flag)}**: {_names(keys)}"

    def _masked(self) -> Iterator[str]:
        for outcome, record in self._complete():
            if tiles := record.figures["masked"]:
                yield f"- {escape_markdown(outcome.key)}: unreadable tiles masked, no objects there: {_names(tiles)}"

    def _warned(self) -> Iterator[str]:
        warned: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for outcome, record in self._complete():
            for warning in record.figures["warnings"]:
                text = warning.removeprefix(f"{outcome.slide}: ")
                warned[_kind(text)].append((outcome.key, text))
        for found in warned.values():
            keys, prefix = [key for key, _ in found], "" if len({text for _, text in found}) == 1 else "for example "
            yield f"- {_slides(len(keys))}: {prefix}{escape_markdown(found[0][1])} ({_names(keys)})"

    # ---- results -----------------------------------------------------------------------------------------------------

    def _slides(self) -> Iterator[str]:
        yield "## Slides"
        yield ""
        yield "| slide | state | objects | per mm2 | tissue mm2 | cause |"
        yield "|---|---|---:|---:|---:|---|"
        for outcome in self.outcomes:
            record = self.records.get(outcome.key)
            figures = record.figures if record and outcome.state != "waiting" else {}
            numbers = [figures.get(name, "") for name in ("objects", "objects_per_mm2", "tissue_mm2")]
            yield _row([outcome.key, outcome.state, *numbers, outcome.cause])

    def _classes(self) -> list[str]:
        rows = [row for _, record in self._complete() for row in record.rows if row.get("class") is not None]
        names = dict.fromkeys(str(row["class"]) for row in rows)
        lines = ["## Classes", "", "| class | slides | objects | per mm2 | tissue mm2 | area mm2 |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for name in names:
            matching = [
                (record, row) for _, record in self._complete() for row in record.rows if row.get("class") == name
            ]
            count, tissue, area = (
                sum(float(row[column] or 0) for _, row in matching) for column in ("count", "tissue_mm2", "area_mm2")
            )
            slides = len({record.key for record, _ in matching})
            density = f"{count / tissue:.1f}" if tissue else ""
            lines.append(_row([name, slides, f"{count:.0f}", density, f"{tissue:.4f}", f"{area:.4f}"]))
        return lines if names else []

    def _outliers(self) -> list[str]:
        densities: dict[str, dict[str, float]] = defaultdict(dict)
        for outcome, record in self._complete():
            if record.rows and record.figures["tissue_mm2"]:
                densities[record.figures["model"]][outcome.key] = record.figures["objects_per_mm2"]
        lines = [line for model, found in densities.items() for line in _far_off(model, found)]
        return ["## Outliers", "", *lines] if lines else []


_FILES = [
    "## Files",
    "",
    "- `results.csv`: one row per slide, region and class; `failures.csv`: incomplete slides with the cause",
    "- `batch.json`: the same data for scripts; `history.jsonl`: log of all runs",
    "- in the folder of each slide: `overview.png`, `objects.parquet`, `objects.geojson.gz`, `slide.ome.zarr`",
]


def _far_off(model: str, density: Mapping[str, float]) -> Iterator[str]:
    """Lines on slides whose density is far from the median of their model, the largest deviation first."""
    for key, score in list(outliers(density).items())[:MAX_NAMES]:
        side = "more" if score > 0 else "fewer"
        yield (
            f"- {escape_markdown(key)}: {density[key]:.1f} objects per mm2, far {side} than the median of "
            f"{statistics.median(density.values()):.1f} ({escape_markdown(model)}, {abs(score):.1f} deviations)"
        )


def outliers(values: Mapping[str, float]) -> dict[str, float]:
    """Find outliers by the modified z-score.

    Args:
        values: Value of each slide.

    Returns:
        Score of each outlier in median absolute deviations, the largest magnitude first. Empty for fewer than
        ``MIN_SLIDES`` values or a deviation of 0.
    """
    if len(values) < MIN_SLIDES:
        return {}
    median = statistics.median(values.values())
    deviation = statistics.median(abs(value - median) for value in values.values())
    scores = {key: 0.6745 * (value - median) / deviation for key, value in values.items()} if deviation else {}
    far = sorted((key for key in scores if abs(scores[key]) > FAR), key=lambda key: -abs(scores[key]))
    return {key: scores[key] for key in far}


def escape_markdown(value: object) -> str:
    """Escape text for Markdown: no markup, links or table columns."""
    text = printable(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")
    return re.sub(r"([|\[*])", r"\\\1", text)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(escape_markdown, cells)) + " |"


def _slides(number: int) -> str:
    return "1 slide" if number == 1 else f"{number} slides"


def _names(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(escape_markdown, names[:MAX_NAMES])) + more


def _counted(states: Iterable[str]) -> Iterator[str]:
    found = list(states)
    return (f"{found.count(state)} {state}" for state in dict.fromkeys(found))


def _cause(outcome: Outcome) -> str:
    return outcome.cause.removeprefix(f"{outcome.slide}: ")


def _kind(text: str) -> str:
    """The part that causes share if they differ only in numbers."""
    return re.sub(r"\d+", "0", text)


def span(seconds: float) -> str:
    """Format a duration: 45 s, 12 min, 7 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
