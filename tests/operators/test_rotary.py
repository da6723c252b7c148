"""Rotary positions: lengths are kept and inner products see differences only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import ConfigError
from manta.operators.rotary import rotary_tables, rotate

position = st.floats(-50, 50, allow_nan=False)


def turned(x: torch.Tensor, p: float) -> torch.Tensor:
    return turned_along(x, [p])


def turned_along(x: torch.Tensor, place: list[float]) -> torch.Tensor:
    return rotate(x[None], rotary_tables(torch.tensor([place], dtype=torch.float64), x.shape[-1]))[0]


@given(i=position, j=position, shift=position, half=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_inner_products_depend_on_the_difference_of_positions(i, j, shift, half):
    generator = torch.Generator().manual_seed(half)
    q, k = torch.randn(2, 2 * half, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(turned(q, i) @ turned(k, j), turned(q, i + shift) @ turned(k, j + shift))
    torch.testing.assert_close(turned(q, i).norm(), q.norm())
    torch.testing.assert_close(turned(q, 0.0), q)


def test_channel_pairs_turn_at_their_own_rates():
    p, base = 0.7, 1000.0
    x = torch.zeros(3, 6, dtype=torch.float64)
    x[range(3), range(3)] = 1
    for k, row in enumerate(x):
        angle = torch.tensor(p * base ** (-2 * k / 6), dtype=torch.float64)
        expected = torch.zeros(6, dtype=torch.float64)
        expected[k], expected[k + 3] = angle.cos(), angle.sin()
        torch.testing.assert_close(turned(row, p), expected)


@given(i=st.tuples(position, position), j=st.tuples(position, position), shift=st.tuples(position, position))
@settings(max_examples=30, deadline=None)
def test_on_a_grid_inner_products_depend_on_the_differences_along_both_axes(i, j, shift):
    q, k = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = [[a + b for a, b in zip(place, shift, strict=True)] for place in (i, j)]
    torch.testing.assert_close(
        turned_along(q, list(i)) @ turned_along(k, list(j)), turned_along(q, moved[0]) @ turned_along(k, moved[1])
    )


def test_the_pairs_are_dealt_to_the_axes_in_turn_and_keep_their_rates():
    x = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both, first, second = (turned_along(x, place) for place in ([0.7, -1.3], [0.7, 0.0], [0.0, -1.3]))
    for axis, alone, whole in ((0, first, turned(x, 0.7)), (1, second, turned(x, -1.3))):
        own = [k for k in range(10) if k % 5 % 2 == axis]
        others = [k for k in range(10) if k not in own]
        assert torch.equal(both[own], alone[own]) and torch.equal(alone[own], whole[own])
        assert torch.equal(alone[others], x[others])


def test_a_head_too_narrow_for_the_axes_is_refused():
    with pytest.raises(ConfigError, match="width 2 cannot turn along 2 axes"):
        rotary_tables(torch.rand(4, 2), 2)


def test_tables_follow_the_shape_of_coordinates():
    shared, per_row = torch.arange(4.0)[:, None], torch.rand(3, 4, 1)
    assert rotary_tables(shared, 6).cos.shape == (4, 6)
    assert rotary_tables(per_row, 6).sin.shape == (3, 4, 6)
    torch.testing.assert_close(rotary_tables(per_row, 6).cos[1], rotary_tables(per_row[1], 6).cos)
