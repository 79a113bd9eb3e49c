"""Parse report pages without the code under test: addresses, scripts, text and tables."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

ADDRESSES = {
    "src",
    "srcset",
    "href",
    "poster",
    "action",
    "formaction",
    "data",
    "background",
    "cite",
    "ping",
    "xlink:href",
}
HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass
class ParsedPage(HTMLParser):
    """A parsed page: tags in order, addresses, scripts, event handlers, styles, text, table rows."""

    tags: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    text: str = ""
    inside: str = ""
    in_cell: bool = False
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, path: Path) -> ParsedPage:
        page = cls()
        page.feed(path.read_text("utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside == "style":
            self.styles.append(data)
        else:
            self.text += data
            if self.in_cell:
                self.rows[-1][-1] += data.strip()


def assert_alone(path: Path) -> ParsedPage:
    """Require a self-contained page: no external reference in it or its SVG pictures, and a single script."""
    page = ParsedPage.of(path)
    assert page.addresses
    assert [address for address in page.addresses if not address.startswith("data:")] == []
    assert page.handlers == []
    assert len(page.scripts) == 1
    assert not re.search(r"url\(|@import", "".join(page.styles))
    assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    for address in page.addresses:
        kind, _, content = address.partition(";base64,")
        if kind == "data:image/svg+xml":
            drawn = base64.b64decode(content).decode()
            assert not re.search(r'href="(?!#)|url\((?!#)|<script|<image|<!DOCTYPE|\son\w+=', drawn)
    return page
