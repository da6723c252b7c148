"""Weights of tasks: what a change is, who learns it, and that merging gives it back."""

import numpy as np
import pytest
import torch
from torch import nn

from manta.errors import ConfigError, UsageError
from manta.families.restorer import RestorerConfig, RestorerModel, said
from manta.nets.grid import DicConfig, DitConfig, UditConfig
from manta.nets.modulated import ModulationConfig, TaskMap, Tasks, merged, modulate, rank_energy, task_maps

NETS = {
    "dic": DicConfig(width=8, depths=(1, 1, 1, 1, 1)),
    "dit": DitConfig(width=16, depth=1, heads=2),
    "udit": UditConfig(width=16, depths=(1, 1, 1, 1, 1), heads=2),
}


def model(net="dic", **modulation) -> RestorerModel:
    torch.manual_seed(0)
    return RestorerModel(RestorerConfig(tile=16, net=NETS[net], modulation=ModulationConfig(**modulation)))


def with_weights(net: RestorerModel) -> RestorerModel:
    """No weight at zero, so that everything shows."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net.eval()


def states(count=6):
    return torch.randn(count, 256, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["low_rank", "full", "film"])
@torch.no_grad()
def test_merged_equals_unmerged_for_every_task_of_a_mixed_batch(net, kind):
    whole = with_weights(model(net, kind=kind))
    state, task = states(), torch.tensor([0, 1, 4, 1, 2, 3])
    mixed = whole(state, task)
    for row, number in enumerate(task.tolist()):
        alone = state[row : row + 1] + said(merged(whole.net, number).eval(), state[row : row + 1])
        assert torch.allclose(mixed[row : row + 1], alone, atol=1e-5)
        assert torch.allclose(whole(state[row : row + 1], task[row : row + 1]), alone, atol=1e-5)
    assert not list(task_maps(merged(whole.net, 0))) and list(task_maps(whole.net))
    assert not torch.allclose(whole(state[:1], task[:1]), whole(state[:1], task[1:2]), atol=1e-3)


@pytest.mark.parametrize("kind", ["low_rank", "full", "film"])
def test_a_fresh_change_is_none(kind):
    plain, changed = model(kind="none"), model(kind=kind)
    theirs = plain.state_dict()
    own = {name.replace(".base.", "."): value for name, value in changed.state_dict().items()}
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    base = nn.Conv2d(3, 5, 3, padding=1)
    tasks = Tasks(2)
    tasks.tell(torch.tensor([0, 1]))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(TaskMap(base, tasks, ModulationConfig(kind=kind))(x), base(x))


@pytest.mark.parametrize("kind", ["low_rank", "full", "film"])
def test_a_step_of_one_task_leaves_the_changes_of_others_as_they_are_bit_for_bit(kind):
    net = with_weights(model(kind=kind)).train()
    before = [(part, [p.detach().clone() for p in part.own]) for _, part in task_maps(net)]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    (net(states(3), torch.full((3,), 2)) - states(3)).square().mean().backward()
    optimizer.step()
    moved = 0
    for part, old in before:
        for now, then in zip(part.own, old, strict=True):
            others = [0, 1, 3, 4]
            assert torch.equal(now[others], then[others])
            moved += int(not torch.equal(now[2], then[2]))
    assert moved


def test_frozen_weights_are_shared_ones_alone():
    net = model(kind="low_rank", frozen=True)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".up", ".down")) for name in trained)


def test_maps_are_chosen_by_name_and_the_condition_is_left_alone():
    every = {name for name, _ in task_maps(model(kind="full"))}
    assert any(name.endswith("conv1") for name in every) and any("head" in name for name in every)
    assert not [name for name in every if "condition" in name or "modulation" in name]
    some = {name for name, _ in task_maps(model(kind="full", maps=("conv1",)))}
    assert some and some < every and all("conv1" in name for name in some)
    with pytest.raises(ConfigError, match="no map"):
        model(maps=("nothing",))


def test_the_change_of_a_product_has_its_rank_and_energy_says_so():
    net = with_weights(model(kind="low_rank", rank=3))
    found = rank_energy(net, share=1.0)
    assert found and all(1 <= rank <= 3 for ranks in found.values() for rank in ranks)
    _, part = next(task_maps(net))
    change = part.weight_change(1)
    expected = np.einsum("or,rikl->oikl", part.up[1].detach().numpy(), part.down[1].detach().numpy())
    assert np.allclose(change.detach().numpy(), expected, atol=1e-6)
    one = nn.Linear(8, 8, bias=False)
    wrapped = nn.Sequential(TaskMap(one, Tasks(1), ModulationConfig(kind="full")))
    with torch.no_grad():
        values = torch.diag(torch.tensor([3.0, 1.0, 0.1, 0, 0, 0, 0, 0]))
        wrapped[0].change[0] = values  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    assert [rank_energy(wrapped, share)["0"] for share in (0.5, 0.95, 0.9999)] == [[1], [2], [3]]


def test_any_net_can_be_modulated():
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    tasks = modulate(net, ModulationConfig(rank=2), 3)
    tasks.tell(torch.tensor([0, 2]))
    assert net(torch.randn(2, 5, 4)).shape == (2, 5, 2)
    with pytest.raises(AssertionError, match="told its task"):
        net(torch.randn(3, 4))


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError):
        ModulationConfig(rank=0)
    with pytest.raises(ConfigError):
        ModulationConfig(kind="none", frozen=True)
    _, part = next(task_maps(model(kind="film")))
    with pytest.raises(UsageError, match="no weights"):
        part.weight_change(0)
