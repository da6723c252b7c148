"""A picture of a text that emerges: one line a network call, words that stand in ink, words still open in grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from manta.errors import UsageError

_SIZE: Final = 13.0
"""Height of a letter, pixels."""
_LETTER: Final = 0.602 * _SIZE
"""Width of a letter of a monospaced font, pixels."""
_LINE: Final = 22
"""Distance of two lines, pixels."""
_MARGIN: Final = 12
"""Around the picture, pixels."""
_LABEL: Final = 9
"""Letters that the label of a line takes."""


@dataclass(frozen=True)
class Frame:
    """A text after a network call."""

    calls: int
    """Network calls so far."""
    pieces: Sequence[tuple[str, bool]]
    """What each token adds to the text, its white space included, and whether it stands."""


def emerging(frames: Sequence[Frame], *, title: str) -> str:
    """Draw a text as it emerges.

    Args:
        frames: after each network call, in their order.
        title: what is written, above the picture.

    Returns:
        An `<svg>` element with an explicit background, readable wherever it is shown.

    Raises:
        UsageError: there is nothing to draw.
    """
    if not frames:
        raise UsageError("a picture of a text needs the text after one call at least")
    widest = max(sum(len(text) for text, _ in frame.pieces) for frame in frames)
    letters = max(_LABEL + widest, len(title))
    width, height = round(2 * _MARGIN + letters * _LETTER), 2 * _MARGIN + _LINE * (len(frames) + 1)
    lines = [_text(0, title, "#57606a")]
    lines += [_text(row, f"{frame.calls:>2} calls  ", "#8250df", *frame.pieces) for row, frame in enumerate(frames, 1)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{_SIZE:g}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d0d7de"/>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def _text(row: int, label: str, colour: str, *pieces: tuple[str, bool]) -> str:
    """One line: its label, then its pieces, each where its letters belong."""
    y = _MARGIN + _LINE * row + round(_SIZE)
    spans, at = [_span(0, label, colour)], len(label)
    for text, stands in pieces:
        spans.append(_span(at, text, "#1f2328" if stands else "#b6bdc5"))
        at += len(text)
    return f'<text y="{y}" xml:space="preserve">{"".join(spans)}</text>'


def _span(letter: int, text: str, colour: str) -> str:
    return f'<tspan x="{_MARGIN + letter * _LETTER:.1f}" fill="{colour}">{escape(text)}</tspan>'
