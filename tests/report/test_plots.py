"""Plots draw what they are given, as SVG that a page can hold beside others."""

import itertools
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from manta.errors import UsageError
from manta.report import Page, heat, lines, plots, scatter

from .test_page import check_self_contained

NAMES: dict[str, Any] = {"title": "T", "x_label": "x", "y_label": "y"}
AN = ([1.0, 2.0, 4.0], [3.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def needs_matplotlib():
    pytest.importorskip("matplotlib")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_names_titles_and_labels_are_shown_as_they_are():
    title = "cost in $ & <more $x$>"
    for svg in (
        lines({"_hidden": AN, "b": AN}, title=title, x_label="a_1", y_label="%"),
        scatter({"_hidden": AN, "b": AN}, title=title, x_label="a_1", y_label="%"),
    ):
        found = [text.strip() for text in texts(svg)]
        assert {title, "a_1", "%", "_hidden", "b"} <= set(found)
    assert title in texts(heat([[1.0]], title=title, x_label="x", y_label="y"))


def test_curves_have_the_shape_of_their_series():
    """Of a straight line, every mark lies on one line in the figure, too; the largest y is nearest to the top."""
    svg = lines({"a": ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])}, **NAMES)
    marks = re.findall(r'<use href="#[\w.-]+" x="([\d.]+)" y="([\d.]+)" style="fill: #3b82d6', svg)
    (x0, y0), *_, (x3, y3) = points = [(float(x), float(y)) for x, y in marks]
    assert len(points) == 4
    assert x0 < x3
    assert y0 > y3
    for i, (x, y) in enumerate(points):
        assert x == pytest.approx(x0 + i / 3 * (x3 - x0), abs=1e-3)
        assert y == pytest.approx(y0 + i / 3 * (y3 - y0), abs=1e-3)


def test_a_logarithmic_axis_sets_doublings_equally_far_apart():
    svg = lines({"a": ([1.0, 2.0, 4.0, 8.0], [1.0] * 4)}, log_x=True, **NAMES)
    places = [float(x) for x in re.findall(r'<use href="#[\w.-]+" x="([\d.]+)" y="[\d.]+" style="fill: #3b82d6', svg)]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=1e-3)


def test_bands_joined_points_and_labels_are_drawn():
    plain = scatter({"a": AN, "b": AN}, **NAMES)
    band = {"a": ([0.0] * 3, [4.0] * 3)}
    assert len(scatter({"a": AN, "b": AN}, bands=band, **NAMES)) > len(plain)
    assert scatter({"a": AN}, joined=True, **NAMES) != scatter({"a": AN}, **NAMES)
    assert {"p", "q", "$r"} <= set(texts(scatter({"a": AN}, labels={"a": ["p", "q", "$r"]}, **NAMES)))
    assert "fill-opacity: 0.18" in lines({"a": AN}, bands=band, **NAMES)


def test_a_heat_map_has_a_cell_a_value_the_first_row_on_top():
    svg = heat([[0.0, 0.0, 1.0], [0.0, 0.0, math.nan]], x_ticks=["p", "q", "r"], y_ticks=["u", "v"], **NAMES)
    assert {"p", "q", "r", "u", "v"} <= set(texts(svg))
    assert "<image" not in svg
    places = {
        element.text: float(element.attrib["y"])
        for element in ElementTree.fromstring(svg).iter()
        if element.tag.endswith("text") and element.text in ("u", "v")
    }
    assert places["u"] < places["v"]


def test_figures_of_one_page_share_no_id_and_take_its_colour():
    page = Page("x")
    for y in ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]):
        page.figure(lines({"a": ([1.0, 2.0, 3.0], y)}, **NAMES), "c")
    html = page.html()
    check_self_contained(html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(|href=")#([\w.-]+)', html):
        assert reference in ids
    assert "currentColor" in html
    assert "#010203" not in html


def test_the_same_figure_is_the_same_text():
    assert lines({"a": AN}, **NAMES) == lines({"a": AN}, **NAMES)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: lines({}, **NAMES), "at least one series"),
        (lambda: lines({"a": ([], [])}, **NAMES), "at least one series"),
        (lambda: lines({"a": ([1.0], [1.0, 2.0])}, **NAMES), "1 values of x and 2 of y"),
        (lambda: lines({"a": AN}, bands={"b": AN}, **NAMES), "no such series"),
        (lambda: scatter({"a": AN}, labels={"a": ["p"]}, **NAMES), "another length"),
        (lambda: heat([[1.0], [1.0, 2.0]], **NAMES), "rows of one length"),
        (lambda: heat([], **NAMES), "rows of one length"),
        (lambda: heat([[1.0, 2.0]], x_ticks=["a"], **NAMES), "2 columns"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, words):
    with pytest.raises(UsageError, match=words):
        draw()


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r'pip install "manta\[eval\]"'):
        lines({"a": AN}, **NAMES)
    with pytest.raises(UsageError, match="matplotlib"):
        plots.require()
