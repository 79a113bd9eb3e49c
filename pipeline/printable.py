"""Text that came from outside, made fit for terminals and logs.

The one decision made here: names of files are data. Whatever they hold, they are shown and never obeyed.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Text without line breaks, terminal escapes and other control characters: safe on a terminal and in a log."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
