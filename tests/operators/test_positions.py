"""Places of words and patches: the numbers of the paper, and where a circle fails."""

import math
from typing import Any

import pytest
import torch

from manta.errors import ConfigError
from manta.operators.positions import (
    PositionsConfig,
    Row,
    circle,
    closest,
    distance_spread,
    places,
    places_of_blocks,
    score_spread,
    scores_of_places,
)

CIRCLE = PositionsConfig(kind="circle")


def distance(kind, row) -> float:
    return distance_spread(places(PositionsConfig(kind=kind), row), row.of_image)


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 4), (16, 16)])
def test_the_distances_of_the_paper_come_out(before, after):
    row = Row(before, 3, 3, after)
    assert distance("line", row) == pytest.approx(20 / 9)
    assert 0.64 <= distance("axial", row) <= 0.681
    assert distance("unordered", row) == pytest.approx(0, abs=1e-12)
    assert 0.45 < distance("mrope", row) < 0.64


def test_on_a_circle_every_word_is_as_far_from_one_patch_as_from_another():
    colliding = []
    for rows in range(1, 17):
        for columns in range(1, 17):
            row = Row(3, rows, columns, 2)
            found = places(CIRCLE, row)
            assert distance_spread(found, row.of_image) < 1e-6
            if closest(found[row.of_image]) < 1e-5:
                colliding.append((rows, columns))
    assert colliding == [(7, 3)]


def test_circles_come_near_each_other_as_measured():
    assert [round(closest(circle(n, n, CIRCLE)), 4) for n in (7, 8, 14)] == [0.0642, 0.0040, 0.0002]


def test_equal_distances_do_not_make_equal_scores():
    row, sections = Row(0, 14, 14, 1), (16, 24, 24)
    found: dict[tuple[Any, float], float] = {}
    kinds: tuple[Any, ...] = ("circle", "mrope")
    for kind in kinds:
        where = places(PositionsConfig(kind=kind), row)
        for base in (1e4, 1e6):
            found[kind, base] = score_spread(where[-1], where[:-1], sections, base)
    assert found["circle", 1e4] == pytest.approx(0.099, abs=5e-4)
    assert found["circle", 1e6] == pytest.approx(0.089, abs=5e-4)
    assert found["mrope", 1e4] == pytest.approx(0.018, abs=5e-4)
    assert found["mrope", 1e6] == pytest.approx(0.001, abs=5e-4)


def test_scores_are_those_of_turned_channels_of_ones():
    from manta.operators.rotary import rotary_tables, rotate

    where = places(PositionsConfig(kind="line"), Row(4, 0, 0))
    turned = rotate(torch.ones(4, 8, dtype=torch.float64), rotary_tables(where, 8, 100.0))
    expected = turned[3] @ turned[:3].T / 8
    assert torch.allclose(scores_of_places(where[3], where[:3], (4,), 100.0), expected)


def test_words_behind_an_image_go_on_beyond_it():
    ends: dict[Any, int] = {"line": 8, "axial": 5, "mrope": 5, "unordered": 3}
    for kind, end in ends.items():
        found = places(PositionsConfig(kind=kind), Row(2, 2, 3, 2))
        assert found[1].eq(1).all() and found[-2].eq(end).all() and found[-1].eq(end + 1).all(), kind
    found = places(CIRCLE, Row(2, 2, 3, 2))
    assert found[-2, 0] == pytest.approx(float(found[2:-2].max()) + 1)
    assert torch.equal(places(CIRCLE, Row(3, 0, 0, 2))[:, 0], torch.arange(5.0, dtype=torch.float64))


def test_the_ways_to_mix_layers():
    row = Row(2, 3, 3)
    own, other = places(CIRCLE, row), places(PositionsConfig(kind="mrope"), row)
    expected: dict[Any, Any] = {
        "always": [own] * 4,
        "alternating": [own, other, own, other],
        "first_half": [own, own, other, other],
        "second_half": [other, other, own, own],
    }
    for layers, wanted in expected.items():
        found = places_of_blocks(PositionsConfig(kind="circle", layers=layers), row, 4)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_radius_and_angle_are_as_said():
    for config, radius in ((CIRCLE, 10.0), (PositionsConfig(kind="circle", radius=0.0, scale=2.0), 8.0)):
        assert torch.allclose(circle(5, 4, config).norm(dim=1), torch.tensor(radius, dtype=torch.float64))
    even = circle(2, 2, PositionsConfig(kind="circle", alpha=0.0))
    steps = torch.cdist(even, even.roll(-1, 0)).diagonal()
    assert torch.allclose(steps, torch.tensor(10 * math.sqrt(2), dtype=torch.float64))
    assert circle(1, 1, CIRCLE).shape == (1, 3) and circle(0, 0, CIRCLE).shape == (0, 3)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 2.0}, {"radius": -1.0}, {"scale": 0.0}, {"layers": "alternating", "kind": "axial"}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        PositionsConfig(**{"kind": "circle", **wrong})
