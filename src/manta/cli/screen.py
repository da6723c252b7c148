"""What is redrawn in place on a terminal: one line, never wider than the screen, so that it can be wiped whole."""

import os
import unicodedata
from typing import TextIO

WIPE = "\r\x1b[K"
"""Back to the beginning of the line, and all of it wiped."""
UNKNOWN = 80
"""Columns of a terminal that does not say."""


def in_place(text: str, stream: TextIO, *, beside: int = 0) -> str:
    """What replaces the line of a terminal by a text, cut to one line of its screen.

    Args:
        text: what is shown; line breaks count as spaces.
        stream: the terminal.
        beside: columns that something else takes behind it.
    """
    return WIPE + cut(text, max(1, columns_of(stream) - 1 - beside))


def columns_of(stream: TextIO) -> int:
    """Columns of a terminal, as it is by now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN
    except (OSError, ValueError):
        return UNKNOWN


def cut(text: str, columns: int) -> str:
    """A text on one line of so many columns, an ellipsis where something is left out.

    Args:
        text: any; characters of East Asian scripts take two columns, marks none.
        columns: at least 1.
    """
    line = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    if sum(map(_width, line)) <= columns:
        return line
    kept, used = "", 1
    for letter in line:
        used += _width(letter)
        if used > columns:
            break
        kept += letter
    return kept + "…"


def _width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
