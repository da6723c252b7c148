"""A page shows what it was given as text, whatever it holds, and asks for nothing else."""

from html.parser import HTMLParser

import pytest

from manta.errors import UsageError
from manta.report import Page

EMPTY = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def check_self_contained(page: str) -> Reader:
    """No script, and nothing that a browser would load."""
    found = Reader(page)
    assert not {tag for tag, _ in found.seen} & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in found.seen:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#"), f"{tag} loads {attributes[name]}"
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in page
    assert "@import" not in page
    return found


def full_page() -> Page:
    page = Page("A <b> & its page")
    page.section("One & <two>")
    page.text("<script>alert(1)</script>")
    page.table(["figure <i>", "of"], [["1.5 ± 0.2", "<td>"], ["−3e-2", "12 words"]], caption="a & b")
    page.section("Two")
    page.figure('<svg xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>', "<drawn>")
    page.code("manta compare 'a b' > x")
    return page


def test_a_page_is_well_formed_self_contained_and_escaped():
    page = full_page().html()
    found = check_self_contained(page)
    for text in (
        "A <b> & its page",
        "<script>alert(1)</script>",
        "<td>",
        "a & b",
        "<drawn>",
        "manta compare 'a b' > x",
    ):
        assert text in found.words
    assert [attributes.get("id") for tag, attributes in found.seen if tag == "h2"] == ["section-1", "section-2"]


def test_figures_are_set_right_and_words_left():
    page = full_page().html()
    assert '<td class="number">1.5 ± 0.2</td>' in page
    assert '<td class="number">−3e-2</td>' in page
    assert "<td>12 words</td>" in page


def test_parts_stand_in_their_order():
    page = full_page().html()
    places = [page.index(text) for text in ("One &amp;", "alert(1)", "a &amp; b", "<svg", "manta compare")]
    assert places[1:] == sorted(places[1:])


def test_a_row_of_another_width_and_a_figure_that_is_none_are_errors():
    page = Page("x")
    with pytest.raises(UsageError, match="row 2 of a table has 1 cells, its header 2"):
        page.table(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(UsageError, match="begins with <svg"):
        page.figure("<script>", "no")
