"""summary.md: the batch on a page, as one reads it in the morning.

The one decision made here: what needs somebody comes first, with the command that helps; then what there is. All of it
is text: names of files are shown and never obeyed.
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
"""Modified z-scores beyond this are worth a look (Iglewicz and Hoaglin 1993)."""
FEWEST, MOST = 5, 10
"""Slides among which an outlier can be told, and how many names a line shows."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a summary is made of. ``left_s`` is the estimate of the time left while the batch runs."""

    title: str
    outcomes: Sequence[Outcome]
    records: Mapping[str, Record]
    seconds: float
    running: bool = False
    left_s: float | None = None
    command: str | None = None

    def markdown(self) -> str:
        """The page."""
        parts = (self._headline(), self._attention(), self._slides(), self._classes(), self._outliers(), _FILES)
        return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"

    def _complete(self) -> list[tuple[Outcome, Record]]:
        found = ((outcome, self.records.get(outcome.key)) for outcome in self.outcomes if outcome.is_up_to_date)
        return [(outcome, record) for outcome, record in found if record is not None and record.state == "complete"]

    # ---- the first lines ---------------------------------------------------------------------------------------------

    def _headline(self) -> Iterator[str]:
        yield f"# {plain(self.title)}"
        yield ""
        complete = sum(outcome.is_up_to_date for outcome in self.outcomes)
        others = _counted(outcome.state for outcome in self.outcomes if not outcome.is_up_to_date)
        yield f"**{complete} of {len(self.outcomes)} slides complete**{''.join(f', {other}' for other in others)}."
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        if self.running:
            left = "too early to tell how long" if self.left_s is None else f"about {span(self.left_s)} left"
            yield f"Still running when this was written, {now}: for {span(self.seconds)}, {left}."
        else:
            yield f"Took {span(self.seconds)}. Written {now}."
        yield from self._throughput()

    def _throughput(self) -> Iterator[str]:
        new = [record for outcome, record in self._complete() if outcome.state == "complete"]
        hours = self.seconds / 3600
        if new and hours:
            tissue_mm2 = sum(record.figures["tissue_mm2"] for record in new)
            yield f"In this run {_slides(len(new))}: {len(new) / hours:.3g} and {tissue_mm2 / hours:.3g} mm2 an hour."

    # ---- what needs somebody -----------------------------------------------------------------------------------------

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
            yield f"- **{_slides(len(group))} {state}** at {first.stage}: {plain(_cause(first))}"
            yield f"  ({_names(outcome.key for outcome in group)})"
        if groups and self.command:
            yield ""
            yield "With the cause removed, this does what is missing and nothing else:"
            yield ""
            yield f"    {printable(self.command)}"
            yield ""

    def _flagged(self) -> Iterator[str]:
        flagged: dict[str, list[str]] = defaultdict(list)
        for outcome, record in self._complete():
            for flag in record.figures["flags"]:
                if flag not in (ENLARGED_FLAG, MASKED_FLAG):  # more is said of these
                    flagged[flag].append(outcome.key)
        for flag, keys in flagged.items():
            yield f"- **{_slides(len(keys))} flagged {plain(flag)}**: {_names(keys)}"

    def _masked(self) -> Iterator[str]:
        for outcome, record in self._complete():
            if tiles := record.figures["masked"]:
                yield f"- {plain(outcome.key)}: not decoded and masked, nothing is found there: {_names(tiles)}"

    def _warned(self) -> Iterator[str]:
        warned: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for outcome, record in self._complete():
            for warning in record.figures["warnings"]:
                text = warning.removeprefix(f"{outcome.slide}: ")
                warned[_kind(text)].append((outcome.key, text))
        for found in warned.values():
            keys, like = [key for key, _ in found], "" if len({text for _, text in found}) == 1 else "such as "
            yield f"- {_slides(len(keys))}: {like}{plain(found[0][1])} ({_names(keys)})"

    # ---- what there is -----------------------------------------------------------------------------------------------

    def _slides(self) -> Iterator[str]:
        yield "## Slides"
        yield ""
        yield "| slide | state | objects | per mm2 | tissue mm2 | cause |"
        yield "|---|---|---:|---:|---:|---|"
        for outcome in self.outcomes:
            record = self.records.get(outcome.key)
            known = record.figures if record and outcome.state != "waiting" else {}
            numbers = [known.get(name, "") for name in ("objects", "objects_per_mm2", "tissue_mm2")]
            yield _row([outcome.key, outcome.state, *numbers, outcome.cause])

    def _classes(self) -> list[str]:
        rows = [row for _, record in self._complete() for row in record.rows if row.get("class") is not None]
        names = dict.fromkeys(str(row["class"]) for row in rows)
        lines = ["## Classes", "", "| class | slides | objects | per mm2 | tissue mm2 | area mm2 |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for name in names:
            mine = [(record, row) for _, record in self._complete() for row in record.rows if row.get("class") == name]
            count, tissue, area = (
                sum(float(row[column] or 0) for _, row in mine) for column in ("count", "tissue_mm2", "area_mm2")
            )
            slides = len({record.key for record, _ in mine})
            density = f"{count / tissue:.1f}" if tissue else ""
            lines.append(_row([name, slides, f"{count:.0f}", density, f"{tissue:.4f}", f"{area:.4f}"]))
        return lines if names else []

    def _outliers(self) -> list[str]:
        densities: dict[str, dict[str, float]] = defaultdict(dict)
        for outcome, record in self._complete():
            if record.rows and record.figures["tissue_mm2"]:
                densities[record.figures["model"]][outcome.key] = record.figures["objects_per_mm2"]
        lines = [line for model, found in densities.items() for line in _far_off(model, found)]
        return ["## Worth a look", "", *lines] if lines else []


_FILES = [
    "## Files",
    "",
    "- `results.csv`: one row for each slide, region and class; `failures.csv`: what is missing and why",
    "- `batch.json`: all of this for scripts; `history.jsonl`: who ran what and when",
    "- below each slide's name: `overview.png`, `objects.parquet`, `objects.geojson.gz`, `slide.ome.zarr`",
]


def _far_off(model: str, density: Mapping[str, float]) -> Iterator[str]:
    """Lines on slides of one model whose density is far from the median; the farthest first."""
    for key, score in list(outliers(density).items())[:MOST]:
        side = "more" if score > 0 else "fewer"
        yield (
            f"- {plain(key)}: {density[key]:.1f} objects per mm2, far {side} than the median of "
            f"{statistics.median(density.values()):.1f} ({plain(model)}, {abs(score):.1f} deviations)"
        )


def outliers(values: Mapping[str, float]) -> dict[str, float]:
    """What is far from the median, in median absolute deviations, the farthest first; none where there are too few."""
    if len(values) < FEWEST:
        return {}
    median = statistics.median(values.values())
    deviation = statistics.median(abs(value - median) for value in values.values())
    scores = {key: 0.6745 * (value - median) / deviation for key, value in values.items()} if deviation else {}
    far = sorted((key for key in scores if abs(scores[key]) > FAR), key=lambda key: -abs(scores[key]))
    return {key: scores[key] for key in far}


def plain(value: object) -> str:
    """Text that stays text in Markdown: no markup, no link, no column."""
    text = printable(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")
    return re.sub(r"([|\[*])", r"\\\1", text)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def _slides(number: int) -> str:
    return "1 slide" if number == 1 else f"{number} slides"


def _names(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(map(plain, names[:MOST])) + more


def _counted(states: Iterable[str]) -> Iterator[str]:
    found = list(states)
    return (f"{found.count(state)} {state}" for state in dict.fromkeys(found))


def _cause(outcome: Outcome) -> str:
    return outcome.cause.removeprefix(f"{outcome.slide}: ")


def _kind(text: str) -> str:
    """What causes have in common that differ in numbers only."""
    return re.sub(r"\d+", "0", text)


def span(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 7 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
