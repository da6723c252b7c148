"""A net is built for weights of the names and sizes that are stored, and for no others."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from manta.errors import ConfigError
from manta.families.stored import MAX_SIZE, built


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of a shape."""

    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a net with a map for each block."""

    dim: int = 2
    depth: int = 2
    depths: tuple[int, ...] = (1, 1)
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    named: bool = True


def net_of(shape: Shape) -> nn.Module:
    return nn.ModuleList(nn.Linear(shape.dim, shape.inner.width, bias=False) for _ in range(shape.depth))


SIZES = {"0.weight": (3, 2), "1.weight": [3, 2]}


def test_what_fits_is_built_with_weights_that_can_be_filled():
    net = built(net_of, Shape(), SIZES)
    assert all(parameter.device.type == "cpu" for parameter in net.parameters()) and len(list(net.parameters())) == 2
    net.load_state_dict({name: torch.ones(3, 2) for name in SIZES})


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"0.weight": (3, 2)}, r"depth is 2"),
        ({**SIZES, "2.weight": (3, 2)}, r"2\.weight \(1 weights differ\)"),
        ({"0.weight": (3, 2), "2.weight": (3, 2)}, r"1\.weight \(2 weights differ\)"),
        ({"0.weight": (2, 3), "1.weight": (3, 2)}, r"0\.weight \(1 weights differ\)"),
    ],
)
def test_weights_of_other_names_or_sizes_are_refused(sizes, said):
    with pytest.raises(ConfigError, match=said):
        built(net_of, Shape(), sizes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": MAX_SIZE + 1}, "dim is"),
        ({"dim": -MAX_SIZE - 1}, "dim is"),
        ({"depth": 3}, "depth is 3"),
        ({"inner": Inner(width=MAX_SIZE + 1)}, "width is"),
        ({"several": (Inner(), Inner(width=10**12))}, "width is"),
        ({"depths": (1, MAX_SIZE + 1)}, "1 is"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(changes, said):
    built_for: list[Any] = []

    def never(shape: Shape) -> nn.Module:
        built_for.append(shape)
        return net_of(shape)

    with pytest.raises(ConfigError, match=said):
        built(never, Shape(**changes), SIZES)
    assert not built_for


def test_the_largest_size_is_no_mistake_by_itself():
    def small(shape: Shape) -> nn.Module:
        return net_of(Shape())

    assert built(small, Shape(dim=MAX_SIZE), SIZES) is not None
    with pytest.raises(ConfigError, match="differ"):
        built(lambda shape: nn.Linear(1, 1), Shape(), SIZES)
