"""Figures as SVG text for `manta.report.page`: matplotlib draws them, and is loaded only when one is drawn.

Text and axes take the colour of the page around them, so that one figure serves a light and a dark scheme; ids that
matplotlib gives are made unique, so that one page can hold many figures.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from manta.errors import UsageError

Curve = tuple[Sequence[float], Sequence[float]]
"""Two sequences of one length: x and y of a series, or the lower and upper ends of its band at every x."""

_INK: Final = "#010203"
"""Stands for the page's own colour until the SVG is written."""
_COLOURS: Final = ("#3b82d6", "#e0861a", "#2a9d78", "#d6457f", "#8a63d2", "#a08a1e", "#2aa6b8", "#8a8f98")
"""Colours that are told apart on white and on near black, in order of use."""
_MARKERS: Final = "os^Dv<>P"
"""Marks of a scatter plot, so that series are told apart without colours too."""


def lines(
    series: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Mapping[str, Curve] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw curves.

    Args:
        series: name → (x, y); values that are not finite leave a gap.
        title: above the figure.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        bands: name of a series → (low, high), shaded behind its curve.
        log_x: logarithmic x; values ≤ 0 are left out.
        log_y: logarithmic y; values ≤ 0 are left out.

    Returns:
        An `<svg>` element.

    Raises:
        UsageError: nothing to draw, lengths that differ, a band without a series; or matplotlib is not installed.
    """
    bands = bands or {}
    _check(series, bands)
    figure, axes = _axes(title, x_label, y_label, log_x, log_y)
    handles = []
    for i, (name, (x, y)) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        style = "-" if i < len(_COLOURS) else "--"
        handles += axes.plot(x, y, style, color=colour, linewidth=1.8, marker="o" if len(x) < 30 else "", markersize=3)
        if name in bands:
            axes.fill_between(x, *bands[name], color=colour, alpha=0.18, linewidth=0)
    _legend(axes, handles, series)
    return _svg(figure, title)


def scatter(
    series: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Mapping[str, Curve] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    joined: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Draw points, or trajectories through points.

    Args:
        series: name → (x, y).
        title: above the figure.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        bands: name of a series → (low, high), drawn as vertical error bars.
        log_x: logarithmic x; values ≤ 0 are left out.
        log_y: logarithmic y; values ≤ 0 are left out.
        joined: join the points of a series in their order.
        labels: name of a series → a short text beside each of its points.

    Returns:
        An `<svg>` element.

    Raises:
        UsageError: nothing to draw, lengths that differ, a band or labels without a series; or matplotlib is not
            installed.
    """
    bands, labels = bands or {}, labels or {}
    _check(series, {**bands, **{name: (texts, texts) for name, texts in labels.items()}})
    figure, axes = _axes(title, x_label, y_label, log_x, log_y)
    handles = []
    for i, (name, (x, y)) in enumerate(series.items()):
        colour, mark = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        style = {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.2}
        handles += axes.plot(x, y, linestyle="-" if joined else "", **style)
        if name in bands:
            axes.vlines(x, *bands[name], color=colour, alpha=0.6, linewidth=1.2)
        for text, *point in zip(labels.get(name, ()), x, y, strict=False):
            axes.annotate(_plain(text), point, xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=colour)
    _legend(axes, handles, series)
    return _svg(figure, title)


def heat(
    values: Sequence[Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[str] | None = None,
    y_ticks: Sequence[str] | None = None,
) -> str:
    """Draw a matrix as colours with their scale; the first row is at the top.

    Args:
        values: rows of one length; values that are not finite stay empty.
        title: above the figure.
        x_label: what a column is.
        y_label: what a row is.
        x_ticks: name of each column; numbers without them.
        y_ticks: name of each row; numbers without them.

    Returns:
        An `<svg>` element.

    Raises:
        UsageError: no values, rows of different lengths, ticks that do not fit; or matplotlib is not installed.
    """
    widths = {len(row) for row in values}
    if len(widths) != 1 or 0 in widths:
        raise UsageError(f"a heat map takes rows of one length, received rows of {sorted(widths) or 'nothing'}")
    for ticks, size, what in ((x_ticks, max(widths), "columns"), (y_ticks, len(values), "rows")):
        if ticks is not None and len(ticks) != size:
            raise UsageError(f"a heat map of {size} {what} takes as many names for them, received {len(ticks)}")
    figure, axes = _axes(title, x_label, y_label, False, False)
    axes.grid(False)
    # Cells are drawn as polygons: an image would be a bitmap inside the SVG.
    finite = [[value if math.isfinite(value) else math.nan for value in row] for row in values]
    mesh = axes.pcolormesh(finite, cmap="viridis", edgecolors="none", linewidth=0)
    axes.invert_yaxis()
    for ticks, axis in ((x_ticks, axes.xaxis), (y_ticks, axes.yaxis)):
        if ticks is not None:
            kept = range(0, len(ticks), math.ceil(len(ticks) / 24))
            axis.set_ticks([i + 0.5 for i in kept], [_plain(ticks[i]) for i in kept])
    if x_ticks is not None and sum(map(len, x_ticks)) > 50:
        axes.tick_params(axis="x", rotation=60)
    scale = figure.colorbar(mesh, ax=axes)
    scale.ax.tick_params(colors=_INK, labelsize=8)
    scale.outline.set_edgecolor(_INK)
    scale.solids.set_rasterized(False)
    return _svg(figure, title)


def _check(series: Mapping[str, Curve], beside: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]) -> None:
    if not any(len(x) for x, _ in series.values()):
        raise UsageError("a plot takes at least one series with a point, received none")
    for name, (x, y) in series.items():
        if len(x) != len(y):
            raise UsageError(f"series {name!r} has {len(x)} values of x and {len(y)} of y")
    for name, pair in beside.items():
        if name not in series:
            raise UsageError(f"a band or labels are given for {name!r}, but no such series")
        if {len(part) for part in pair} != {len(series[name][0])}:
            raise UsageError(f"what goes with the {len(series[name][0])} points of {name!r} has another length")


def require() -> None:
    """Check that plots can be drawn, before long work whose result they are to show.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError('plots need matplotlib; install it with: pip install "manta[eval]"') from error


def _axes(title: str, x_label: str, y_label: str, log_x: bool, log_y: bool) -> tuple[Any, Any]:
    require()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(title), color=_INK, fontsize=11)
    axes.set_xlabel(_plain(x_label), color=_INK)
    axes.set_ylabel(_plain(y_label), color=_INK)
    for log, name, axis in ((log_x, "x", axes.xaxis), (log_y, "y", axes.yaxis)):
        if log:
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.tick_params(colors=_INK, labelsize=8, which="both")
    axes.grid(alpha=0.25, linewidth=0.6, color=_INK)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _legend(axes: Any, handles: Sequence[Any], names: Iterable[str]) -> None:
    # A leading underscore would hide an entry.
    shown = [" " + _plain(name) if name.startswith("_") else _plain(name) for name in names]
    if len(shown) > 1:
        axes.legend(handles, shown, fontsize=8, labelcolor=_INK, frameon=False)


def _plain(text: str) -> str:
    """A dollar sign is a dollar sign: nothing in a title is read as a formula."""
    return text.replace("$", r"\$")


def _svg(figure: Any, title: str) -> str:
    import matplotlib

    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "manta"}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Ids are kept where something refers to them, with the figure's own prefix.
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(re.findall(r"#([\w.-]+)\)", text)) | set(re.findall(r'href="#([\w.-]+)"', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)([\w.-]+)', rf"\g<1>{prefix}-\g<2>", text)
    text = text.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()
