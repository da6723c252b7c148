"""Groups of times, factors, rounding that compensates, and whole maps fitted to inputs whose drift is known."""

from typing import Any

import pytest
import torch
from torch import nn

from manta.errors import ConfigError
from manta.nets.integers import IntegerConv2d, IntegerEmbedding, IntegerLinear, unpack
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorContext, line
from manta.quantisation import Quantising, edges_between, fitted, merged_times, observed, quantised
from manta.quantisation.grouping import channel_sizes, groups_of
from manta.quantisation.rounding import compensated_integers, nearest_integers, weight_scales

TIMES = 50


class Drifting(nn.Module):
    """A linear map, told the time."""

    told_time = True

    def __init__(self, inner=128, outer=96):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(inner, outer)

    def forward(self, x, t):
        return self.map(x)


def drifting(time, rows=256, seed=0):
    """Inputs of which eight channels move with the time, from 0 to 16 or to −16."""
    generator = torch.Generator().manual_seed(1000 * seed + int(time * TIMES))
    x = torch.randn(rows, 128, generator=generator)
    x[:, :4] += 16 * time
    x[:, 4:8] -= 16 * time
    return x


@pytest.fixture(scope="module")
def net():
    return Drifting().eval()


@pytest.fixture(scope="module")
def seen(net):
    def work():
        for index in range(TIMES):
            time = index / TIMES
            net(drifting(time).view(16, 16, -1), torch.full((16,), time))

    return observed(net, work)


def error(net, how, seen):
    """Of the outputs over all times, on inputs that were not seen; relative to their variance."""
    new = quantised(net, fitted(net, seen, how))
    apart, variance = 0.0, 0.0
    with torch.no_grad():
        for index in range(TIMES):
            time = index / TIMES
            x = drifting(time, seed=1)
            wanted = net(x, None)
            apart += float((new(x, torch.full((len(x),), time)) - wanted).square().mean())
            variance += float((wanted - wanted.mean(0)).square().mean())
    return apart / variance


def test_neighbours_that_are_nearest_become_a_group():
    centres = torch.tensor([[0.0], [0.1], [5.0], [5.1], [5.2], [9.0]])
    assert merged_times(centres, 3) == [0, 2, 5]
    assert merged_times(centres, 1) == [0]
    assert merged_times(centres, 10) == [0, 1, 2, 3, 4, 5]
    assert groups_of([0, 2, 5], 6) == [0, 0, 1, 1, 1, 2]
    assert edges_between([0.0, 0.1, 0.3, 0.4, 0.5, 0.9], [0, 2, 5]) == pytest.approx([0.2, 0.7])


def test_only_neighbours_are_put_together():
    assert merged_times(torch.tensor([[0.0], [5.0], [0.0]]), 2) in ([0, 1], [0, 2])


def test_sizes_of_channels_follow_the_exponential_rule():
    sizes = torch.tensor([[1.0, 4.0], [3.0, 4.0], [3.0, 0.0]])
    first = 0.5 * (0.5 * 1 + 0.5 * 3) + 0.5 * 3
    second = 0.5 * (0.5 * 4 + 0.5 * 4) + 0.5 * 0
    assert channel_sizes(sizes, 0.5).tolist() == pytest.approx([1.0, second / first])


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_compensate_err_less_where_inputs_go_together(bits):
    torch.manual_seed(0)
    weight = torch.randn(32, 48)
    rows = torch.randn(400, 12) @ torch.randn(12, 48) + 0.1 * torch.randn(400, 48)
    second = rows.mT @ rows / len(rows)
    scale = weight_scales(weight, bits, second.diagonal())
    plain, better = nearest_integers(weight, scale, bits), compensated_integers(weight, scale, bits, second)
    assert better.abs().max() <= 2 ** (bits - 1) - 1

    def apart(integers):
        return float((rows @ (integers * scale[:, None] - weight).mT).square().mean())

    assert apart(better) < 0.4 * apart(plain)


def test_rounding_that_compensates_is_plain_where_inputs_have_nothing_to_do_with_each_other():
    torch.manual_seed(0)
    weight, scale = torch.randn(8, 16), torch.full((8,), 0.3)
    assert torch.equal(compensated_integers(weight, scale, 4, torch.eye(16)), nearest_integers(weight, scale, 4))


def test_groups_of_times_follow_a_drift(net, seen):
    """The calibration of the design: shifts in five groups halve the error of one, and cut the naive one to a third."""
    only = {"spread": 0.0, "clip": False}
    naive = error(net, Quantising(groups=1, shift=False, **only), seen)
    one = error(net, Quantising(groups=1, **only), seen)
    five = error(net, Quantising(groups=5, **only), seen)
    assert five < 0.5 * one and five < 0.3 * naive
    assert error(net, Quantising(groups=10, **only), seen) < five
    assert error(net, Quantising(groups="auto"), seen) < five


def test_what_is_seen_has_ranges_by_time_and_rows(seen):
    looked = seen["map"]
    assert looked.timed and len(looked.times) == TIMES and looked.most_places == 16
    first, last = looked.moments[0.0], looked.moments[looked.times[-1]]
    assert first.high[:4].max() < 6 < last.low[:4].min() and last.high[4:8].max() < -6 < first.low[4:8].min()
    assert 0 < len(first.sample) <= 48


def test_full_factors_are_refused_where_four_bits_would_lose_by_them():
    """Six static channels far larger than the others: to divide by all of their size costs the weights their bits."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"map": nn.Linear(128, 64)})
    sizes = torch.ones(128)
    sizes[:6] = 60.0
    rows = torch.randn(2, 600, 128) * sizes
    seen = observed(net, lambda: net["map"](rows))

    def error(**how: Any) -> float:
        return fitted(net, seen, Quantising(bits=4, compensated=False, clip=False, **how))["map"].error or 0.0

    assert error(spread=1.0) > 2 * error(spread=0.0)
    assert error() <= error(spread=0.0)


def test_a_map_behind_no_clock_has_one_group_and_padding_is_not_seen():
    torch.manual_seed(0)
    trunk: Any = Trunk(32, 1, (AttentionConfig(),), heads=2).eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    x, mask = torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.bool)
    x[1, 3:], mask[1, 3:] = 1e6, False
    seen = observed(trunk, lambda: trunk(x, OperatorContext(line(6, torch.device("cpu")), mask)))
    assert set(seen) == {f"blocks.0.{name}" for name in ("operator.qkv", "operator.out", "mlp.gate_up", "mlp.out")}
    assert all(moment.high.max() < 1e3 for looked in seen.values() for moment in looked.moments.values())
    found = fitted(trunk, seen, Quantising())
    assert {each.spec.groups for each in found.values()} == {1} and not any(e.spec.folded for e in found.values())
    new = quantised(trunk, found)
    context = OperatorContext(line(3, torch.device("cpu")))
    with torch.no_grad():
        one, other = new(x[1:, :3], context), trunk(x[1:, :3], context)
    assert 0 < (one - other).norm() / other.norm() < 0.05
    assert isinstance(trunk.blocks[0].mlp.out, nn.Linear)  # the net itself stays


class Telling(nn.Module):
    """A table that words are told by, a convolution and a map that sees one row a request."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.conv, self.one = nn.Embedding(40, 16), nn.Conv2d(4, 16, 3, padding=1), nn.Linear(16, 16)
        self._shared = (self.table,)

    def forward(self, tokens, grid):
        hidden = self.conv(grid).flatten(2).transpose(1, 2) + self.table(tokens)
        return hidden + self.one(hidden.mean(1))[:, None]


@pytest.mark.parametrize(
    "how", [Quantising(), Quantising(bits=4), Quantising(bits=4, once=4), Quantising(inputs="float")]
)
def test_tables_convolutions_and_maps_of_one_row(how):
    net = Telling().eval()
    tokens, grid = torch.randint(0, 40, (8, 36)), torch.randn(8, 4, 6, 6)
    found = fitted(net, observed(net, lambda: net(tokens, grid)), how)
    kinds = {name: (each.spec.bits, each.spec.inputs) for name, each in found.items()}
    if how.inputs == "float":
        assert kinds == {"table": (8, "dynamic"), "conv": (8, "float"), "one": (8, "float")}
    else:
        assert kinds == {"table": (8, "dynamic"), "conv": (how.bits, "static"), "one": (how.once, "dynamic")}
    new: Any = quantised(net, found)
    assert isinstance(new.table, IntegerEmbedding) and isinstance(new.conv, IntegerConv2d)
    assert isinstance(new.one, IntegerLinear) and new._shared[0] is new.table and net._shared[0] is net.table
    with torch.no_grad():
        one, other = new(tokens, grid), net(tokens, grid)
    assert 0 < (one - other).norm() / other.norm() < (0.1 if how.bits == 4 else 0.02)
    if how.bits == 4:
        assert new.conv.weight.shape == (16, 18) and unpack(new.conv.weight, 36).abs().max() == 7


def test_nets_without_maps_and_maps_of_several_are_refused():
    with pytest.raises(ConfigError, match="no map"):
        fitted(nn.LayerNorm(8), {}, Quantising())
    net: Any = nn.ModuleDict({"map": nn.Linear(8, 8)})
    net["map"].stacked_maps = True
    with pytest.raises(ConfigError, match="merge"):
        fitted(net, {}, Quantising())
