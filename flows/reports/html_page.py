"""A report as one file: a template filled in, with its style, script and pictures inside. The only room of jinja2.

The one decision made here: the page forbids itself the network. Its first line of content is a policy that the browser
enforces: nothing is fetched, only pictures that lie in the page are shown, and only the one script that came with the
template runs, known by its hash. What others named (images, models, patients) is escaped by the template, always.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.storage.atomic_files import write_bytes

TEMPLATES = Path(__file__).parents[1] / "templates"
PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: its file without extension, what it shows in words, and its bytes; ``svg`` where it has one.

    ``jpeg`` holds one that is shown in a page only.
    """

    name: str
    alt: str
    png: bytes
    svg: bytes | None = None
    jpeg: bytes | None = None

    @property
    def uri(self) -> str:
        """The picture itself, as the address of an image."""
        kind, content = ("svg+xml", self.svg) if self.svg else ("jpeg", self.jpeg) if self.jpeg else ("png", self.png)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page (HTML) of a template in ``templates`` filled with content. Raises jinja2's error for what is missing."""
    script = (TEMPLATES / "report.js").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inside = {
        "style": Markup((TEMPLATES / "report.css").read_text("utf-8")),  # noqa: S704  a file of our own
        "script": Markup(script),  # noqa: S704  a file of our own
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }
    return fill(template, {**content, **inside})


def fill(template: str, content: Mapping[str, Any]) -> str:
    """The same for a page that is served, with its style and script beside it."""
    return _environment().get_template(template).render(content)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "count": count, "short": short}
    return environment


def write_document(folder: Path, page: str, pictures: Iterable[Picture]) -> Path:
    """Write each picture as a PNG below ``folder``, then ``report.html``; return its path."""
    for picture in pictures:
        write_bytes(folder / f"{picture.name}.png", picture.png)
    write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


# ---- how numbers are written -----------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """A score, or a dash where there is none."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """Three figures, or all of them before the decimal point."""
    return count(value) if value >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share in words' company: 87 %."""
    return "\u2013" if value is None else f"{100 * value:.0f}\u00a0%"


def count(value: float) -> str:
    """A whole number, its thousands apart."""
    return f"{value:,.0f}".replace(",", "\u202f")
