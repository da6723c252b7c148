"""The picture of a text that emerges shows every piece at its place, dark where it stands."""

import xml.etree.ElementTree as ET

import pytest

from manta.errors import UsageError
from manta.report.emerging import Frame, emerging

SVG = "{http://www.w3.org/2000/svg}"
FRAMES = [Frame(2, [(" The", True), (" <cat>", False)]), Frame(3, [(" The", True), (" dog", True), (".", True)])]


def test_pieces_stand_side_by_side_and_tell_what_is_open():
    picture = ET.fromstring(emerging(FRAMES, title="a & b"))
    title, first, second = picture.findall(f"{SVG}text")
    assert "".join(title.itertext()) == "a & b"
    assert "".join(first.itertext()) == " 2 calls   The <cat>"
    assert "".join(second.itertext()) == " 3 calls   The dog."
    label, the, cat = first.findall(f"{SVG}tspan")
    assert the.get("fill") != cat.get("fill") and second[1].get("fill") == second[2].get("fill") == the.get("fill")
    starts = [float(span.get("x", "nan")) for span in (label, the, cat)]
    letter = (starts[2] - starts[1]) / len(" The")
    assert starts[1] - starts[0] == pytest.approx(letter * len(label.text or ""), abs=0.2)


def test_the_widest_line_fits():
    long = Frame(1, [("x" * 300, True)])
    picture = ET.fromstring(emerging([*FRAMES, long], title="t"))
    last = picture.findall(f"{SVG}text")[-1].findall(f"{SVG}tspan")[-1]
    end = float(last.get("x", "nan")) + 300 * 13 * 0.602
    assert end <= float(picture.get("width", "nan")) <= end + 20


def test_nothing_is_no_picture():
    with pytest.raises(UsageError, match="after one call"):
        emerging([], title="t")
