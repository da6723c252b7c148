"""Integers beside the usual maps: changes of tasks, depthwise convolutions, and maps with other weights or outputs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from manta.errors import ConfigError
from manta.nets.grid import UditConfig
from manta.nets.grid.udit import NearNetwork
from manta.nets.integer_nets import with_integers
from manta.nets.integer_tensor import IntegerTensor
from manta.nets.integers import IntegerConv2d, IntegerMap, IntegerSpec, count_parameters
from manta.nets.modulated import ModulationConfig, merged, modulate, task_maps
from manta.quantisation import Quantising, fitted, observed, quantised


@pytest.mark.parametrize("axis", [1, 2])
def test_a_tensor_of_integers_is_within_half_a_step_of_each_place(axis):
    torch.manual_seed(0)
    values = torch.randn(3, 5, 7) * torch.logspace(-2, 2, 5)[:, None]
    tensor = IntegerTensor((3, 5, 7), axis)
    tensor.fill(values)
    step = values.abs().amax(3 - axis, keepdim=True) / 127
    for entry in range(3):
        assert ((tensor[entry] - values[entry]).abs() <= 0.5001 * step[entry]).all()
    assert tensor.weight_scale.numel() == 3 * values.shape[axis]
    assert count_parameters(tensor) == 3 * 5 * 7


class Two(nn.Module):
    """A convolution and a linear map, which tasks change."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.map = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 10)
        self.tasks = modulate(self, ModulationConfig(kind=kind, rank=2), 3)  # pyright: ignore[reportArgumentType]
        for _, part in task_maps(self):
            for own in part.own:
                own.data = 0.2 * torch.randn(own.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(self.conv(x).flatten(2).transpose(1, 2))


def states(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 6, 5, 5, generator=torch.Generator().manual_seed(1))


def made(kind: str, **how: Any) -> tuple[Two, Any]:
    """A net, and the same in integers."""
    net, x = Two(kind).eval(), states()

    def work() -> None:
        for turn in range(3):
            net.tasks.tell((torch.arange(12) + turn) % 3)
            net(x)

    return net, quantised(net, fitted(net, observed(net, work), Quantising(**how)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["low_rank", "full", "film"])
@pytest.mark.parametrize("how", [{}, {"bits": 4}, {"inputs": "dynamic"}, {"inputs": "float"}])
def test_merged_integers_say_what_the_net_of_the_task_says(kind, how):
    net, new = made(kind, **how)
    assert all(isinstance(part.base, IntegerMap) for _, part in task_maps(new))
    x = states()
    for task in range(3):
        wanted, found = merged(net, task)(x), merged(new, task)(x)
        apart = (found - wanted).norm() / wanted.norm()
        assert 0 < apart < (0.12 if how.get("bits") == 4 else 0.02)
        new.tasks.tell(torch.full((12,), task))  # side by side, as in training
        assert (new(x) - wanted).norm() / wanted.norm() < (0.12 if how.get("bits") == 4 else 0.02)
    one, other = merged(new, 0)(x), merged(new, 1)(x)
    assert (one - other).norm() > 0.1 * one.norm()


@torch.no_grad()
def test_what_tasks_change_is_stored_in_eight_bits():
    net, new = made("low_rank", bits=4)
    stored = {name: value.dtype for name, value in new.state_dict().items()}
    assert stored["conv.up.integers"] == stored["map.down.integers"] == torch.int8
    assert stored["conv.base.weight"] == torch.uint8
    assert count_parameters(new) == count_parameters(net) - 10 - 8  # biases are no weights
    one = merged(new, 0)
    assert one.conv.spec.bits == one.map.spec.bits == 8  # pyright: ignore


@torch.no_grad()
def test_a_changed_map_has_its_shift_in_the_bias():
    """With inputs that are shifted, W z belongs to the bias, and so does the change of it."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"map": nn.Linear(16, 8)})
    rows = torch.randn(4, 50, 16) + 10
    new: Any = quantised(net, fitted(net, observed(net, lambda: net["map"](rows)), Quantising()))
    assert new["map"].spec.shift
    change = 0.3 * torch.randn(8, 16)
    wanted = F.linear(rows, net["map"].weight + change, net["map"].bias)  # pyright: ignore
    found = new["map"].changed(change)(rows)
    assert (found - wanted).norm() < 0.01 * (wanted - wanted.mean((0, 1))).norm()
    scale, shift = torch.randn(8), torch.randn(8)
    torch.testing.assert_close(new["map"].rescaled(scale, shift)(rows), new["map"](rows) * scale + shift)


@torch.no_grad()
def test_depthwise_convolutions_are_of_integers_and_take_inputs_as_they_are():
    torch.manual_seed(0)
    net = nn.ModuleDict({"near": nn.Conv2d(8, 8, 5, padding=2, groups=8), "map": nn.Conv2d(8, 8, 1)})
    x = torch.randn(4, 8, 6, 6)
    seen = observed(net, lambda: net["map"](net["near"](x)))
    for how in (Quantising(), Quantising(bits=4), Quantising(inputs="dynamic"), Quantising(inputs="float")):
        found = fitted(net, seen, how)
        assert found["near"].spec == IntegerSpec(inputs="float")
        new = quantised(net, found)
        assert isinstance(new.get_submodule("near"), IntegerConv2d)
        wanted, said = net["near"](x), new.get_submodule("near")(x)
        assert 0 < (said - wanted).norm() < 0.01 * wanted.norm()
    with pytest.raises(ConfigError):
        with_integers(net, {"near": IntegerSpec()})


@torch.no_grad()
@pytest.mark.parametrize("near", [True, False])
def test_a_network_whose_maps_are_merged_says_the_same_and_has_one_of_each(near):
    torch.manual_seed(0)
    config = UditConfig(near=near)
    net, x = NearNetwork(6, config).eval(), torch.randn(2, 6, 7, 5)
    wanted = net(x)
    net.merge()
    assert not net.stacked_maps and len(net.kernels) == near
    torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)
    again = NearNetwork(6, config.merged)
    again.load_state_dict(net.state_dict())  # of the shape that it says
    assert torch.equal(again(x), net(x))


def test_kernels_that_cannot_be_are_refused():
    for wrong in ((), (4,), (3, 5), (33,), (-1,)):
        with pytest.raises(ConfigError, match="odd"):
            UditConfig(kernels=wrong)
    assert UditConfig(kernels=(7, 3)).merged == UditConfig(kernels=(7,), stacked=False)
