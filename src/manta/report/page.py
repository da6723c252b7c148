"""One self-contained HTML page: sections, paragraphs, tables, figures and code, all escaped, no script, no request."""

import re
from collections.abc import Sequence
from html import escape
from typing import Final

from manta.errors import UsageError

_NUMBER: Final = re.compile(
    r"^[<>≈]?\s*[−+-]?\d[\d\s,.]*(e[−+-]?\d+)?\s*(%|s|ms|nats|bits)?(\s*[±\[(].*)?$", re.IGNORECASE
)
"""What a column of figures looks like: such cells are set flush right."""

_STYLE: Final = """
:root { color-scheme: light dark;
  --ink: #1c2024; --soft: #5b6570; --paper: #ffffff; --rule: #d8dde3; --shade: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa4ae; --paper: #15181b; --rule: #343a41; --shade: #1e2226; }
}
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
nav ol { margin: 0; padding-left: 1.2rem; } a { color: inherit; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
caption, figcaption { caption-side: bottom; padding-top: .4rem; color: var(--soft); font-size: .85rem; }
caption { text-align: left; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { background: var(--shade); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
svg text { font-family: inherit !important; }
pre { overflow-x: auto; padding: .7rem; background: var(--shade); border: 1px solid var(--rule); font-size: .85rem; }
"""


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
        self._parts: list[str] = []

    def section(self, title: str) -> None:
        """Begin a section; the page's contents list it."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{escape(title)}</h2>')

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(paragraph)}</p>")

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
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
        body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="scroll"><table>{below}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )

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
        self._parts.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")

    def code(self, text: str) -> None:
        """Add lines that are shown as they are, such as a command."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def html(self) -> str:
        """Return the whole page."""
        entries = (f'<li><a href="#section-{i}">{escape(name)}</a></li>' for i, name in enumerate(self._sections, 1))
        contents = f"<nav><ol>{''.join(entries)}</ol></nav>" if len(self._sections) > 1 else ""
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        parts = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(self.title)}</h1>\n{contents}\n{parts}\n</body>\n</html>\n"
        )


def _cell(text: str) -> str:
    kind = ' class="number"' if _NUMBER.match(text) else ""
    return f"<td{kind}>{escape(text)}</td>"
