"""One self-contained HTML page: sections, paragraphs, tables, figures and code, all escaped, no script, no request."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment

from manta.errors import UsageError

_NUMBER: Final = re.compile(
    r"^[<>≈]?\s*[−+-]?\d[\d\s,.]*(e[−+-]?\d+)?\s*(%|s|ms|nats|bits)?(\s*[±\[(].*)?$", re.IGNORECASE
)
"""What a column of figures looks like: such cells are set flush right."""


class Page:
    """Collect the parts of a report in reading order and write them as one HTML file.

    All text is escaped. The page carries its style, follows the reader's light or dark scheme, holds no script, and its
    security policy keeps a browser from loading anything else.

    Args:
        title: heading and name of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._sections: list[str] = []
        self._parts: list[dict[str, Any]] = []

    def section(self, title: str) -> None:
        """Begin a section; the page's contents list it."""
        self._sections.append(title)
        self._parts.append({"kind": "section", "number": len(self._sections), "title": title})

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._parts.append({"kind": "text", "text": paragraph})

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
        """Add a table; cells that are figures are set flush right.

        Args:
            header: name of each column.
            rows: cells, one row each, as many as there are columns.
            caption: said below it.

        Raises:
            UsageError: a row has more or fewer cells than there are columns.
        """
        for number, row in enumerate(rows, 1):
            if len(row) != len(header):
                raise UsageError(f"row {number} of a table has {len(row)} cells, its header {len(header)}")
        self._parts.append({"kind": "table", "header": header, "rows": rows, "caption": caption})

    def figure(self, svg: str, caption: str) -> None:
        """Add a drawing.

        Args:
            svg: an SVG element as `manta.report.plots` returns it; it is put into the page as it is.
            caption: said below it.

        Raises:
            UsageError: `svg` is no SVG element.
        """
        if not svg.lstrip().startswith("<svg"):
            raise UsageError(f"a figure is an SVG element that begins with <svg, received {svg[:40]!r}")
        self._parts.append({"kind": "figure", "svg": svg, "caption": caption})

    def code(self, text: str) -> None:
        """Add lines that are shown as they are, such as a command."""
        self._parts.append({"kind": "code", "text": text})

    def html(self) -> str:
        """Return the whole page."""
        environment = Environment(autoescape=True, keep_trailing_newline=True)
        environment.tests["flush_right"] = _NUMBER.match
        template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        return template.render(title=self.title, sections=self._sections, parts=self._parts)
