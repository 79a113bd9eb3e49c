"""Escape control sequences in untrusted text, such as file names, before printing or logging it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace line breaks, terminal escapes and other control characters by ``?``."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
