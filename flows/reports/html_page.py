"""Render HTML pages from jinja2 templates. No other module imports jinja2.

A report is one file with its style, script and pictures inside. A content security policy at its top forbids network
access: only pictures inside the page are shown, and only the template's script runs, identified by its hash. Names of
images, models and patients are always escaped.
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
    """A picture: file name without extension, alternative text and content.

    ``png`` is the file content, ``svg`` a vector version shown in the page, ``jpeg`` a picture that is only shown in a
    page.
    """

    name: str
    alt: str
    png: bytes
    svg: bytes | None = None
    jpeg: bytes | None = None

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        kind, content = ("svg+xml", self.svg) if self.svg else ("jpeg", self.jpeg) if self.jpeg else ("png", self.png)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(template: str, content: Mapping[str, Any]) -> str:
    """Render a report template with embedded style, script and content security policy.

    Args:
        template: File name in ``templates``.
        content: Variables of the template.

    Raises:
        jinja2.UndefinedError: If the template uses a missing variable.
    """
    script = (TEMPLATES / "report.js").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inside = {
        "style": Markup((TEMPLATES / "report.css").read_text("utf-8")),  # noqa: S704  a file of this package
        "script": Markup(script),  # noqa: S704  a file of this package
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }
    return fill(template, {**content, **inside})


def fill(template: str, content: Mapping[str, Any]) -> str:
    """Render a template of a served page, whose style and script are separate files."""
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
    """Write ``report.html`` and the PNG of each picture below ``folder``; return the path of the page."""
    for picture in pictures:
        write_bytes(folder / f"{picture.name}.png", picture.png)
    write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


# ---- number formats --------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """Format a score; a dash if there is none."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """Format with three significant digits, or as an integer from 100."""
    return count(value) if value >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Format a fraction as a percentage: 87 %."""
    return "\u2013" if value is None else f"{100 * value:.0f}\u00a0%"


def count(value: float) -> str:
    """Format an integer with separated thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")
