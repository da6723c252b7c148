"""Blocks and neurons of a smaller net are those that the loss needs most; controls are what they say."""

import copy
from typing import Any

import pytest
import torch

from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel, NextToken
from manta.families.batching import to_batch
from manta.families.inheritance import choose_blocks, choose_neurons, mean_loss, only, skip_losses, thinned
from manta.runtime import make_generator

SHAPE: dict[str, Any] = {"vocab_size": 32, "dim": 16, "heads": 2, "depth": 4, "prompt_depth": 1}
SHAPE |= {"max_prompt": 4, "max_text": 16}
HIDDEN = 12


@pytest.fixture(scope="module")
def net() -> AutoregressiveModel:
    """Trained a little on rows that count up, which needs no more than the last word."""
    torch.manual_seed(0)
    found = AutoregressiveModel(AutoregressiveConfig(**SHAPE, hidden=HIDDEN))
    with torch.no_grad():
        for block in blocks_of(found):
            for part in (block.operator.out, block.mlp.out):
                part.weight.normal_(std=0.02)
    score, optimizer = batches(), torch.optim.Adam(found.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        score(found).backward()
        optimizer.step()
    return found.requires_grad_(False)


def blocks_of(net: Any) -> list[Any]:
    return list(net.trunk.blocks)


def batches():
    """The losses of one batch after the other, the same whenever they begin."""
    generator, task = make_generator(0), NextToken()

    def score(net):
        first = torch.randint(4, 20, (8,), generator=generator).tolist()
        return task(net, to_batch([[]] * 8, [[n + i for i in range(8)] for n in first]), generator).total

    return score


def trunk_of(net):
    return net.trunk


def test_a_block_that_does_nothing_goes_first(net):
    judged = copy.deepcopy(net)
    silent = blocks_of(judged)[2]
    with torch.no_grad():
        for part in (silent.operator.out, silent.mlp.out, silent.cross.out):
            part.weight.zero_()
    losses = skip_losses(judged, judged.trunk, range(4), batches, 3)
    whole = mean_loss(judged, batches, 3)
    assert losses[2] == pytest.approx(whole, abs=1e-6)
    assert min(losses[i] - whole for i in (0, 1, 3)) != 0
    kept = choose_blocks(judged, judged.trunk, 3, "skip", batches, 3, make_generator(0))
    assert kept == (0, 1, 3) or losses[min(losses, key=losses.__getitem__)] < whole
    assert len(judged.trunk.blocks) == 4


def test_blocks_are_left_out_one_by_one(net):
    """Each time the one without which the loss is least, by hand."""
    kept = list(range(4))
    for _ in range(2):
        losses = {}
        for index in kept:
            rest = [other for other in kept if other != index]
            with only(net.trunk, rest):
                losses[index] = mean_loss(net, batches, 2)
        kept.remove(min(losses, key=losses.__getitem__))
    assert choose_blocks(net, net.trunk, 2, "skip", batches, 2, make_generator(0)) == tuple(kept)


def test_controls_are_what_they_say(net):
    chosen = {
        how: choose_blocks(net, net.trunk, 2, how, batches, 1, make_generator(3))
        for how in ("first", "last", "ends", "even", "random")
    }
    assert chosen["first"] == (0, 1) and chosen["last"] == (2, 3)
    assert chosen["ends"] == (0, 3) == chosen["even"]
    assert len(set(chosen["random"])) == 2 and chosen["random"] == tuple(sorted(chosen["random"]))
    assert choose_blocks(net, net.trunk, 3, "ends", batches, 1, make_generator(0)) == (0, 1, 3)


@pytest.mark.parametrize("how", ["taylor", "l2"])
def test_neurons_that_do_nothing_go_first(net, how):
    judged = copy.deepcopy(net)
    dead = [1, 5, 6]
    with torch.no_grad():
        for network in judged.trunk.networks:
            network.out.weight[:, dead] = 0
            network.gate_up.weight[dead] = 0
            network.gate_up.weight[[index + HIDDEN for index in dead]] = 0
    before = {name: value.clone() for name, value in judged.state_dict().items()}
    kept = choose_neurons(judged, judged.trunk, HIDDEN - 3, how, batches, 5, make_generator(0))
    for found in kept:
        assert found.tolist() == [index for index in range(HIDDEN) if index not in dead]
    assert all(torch.equal(value, before[name]) for name, value in judged.state_dict().items())
    assert not any(network.out._forward_pre_hooks for network in judged.trunk.networks)
    small = thinned(judged, trunk_of, range(4), kept)
    assert mean_loss(small, batches, 3) == pytest.approx(mean_loss(judged, batches, 3), abs=1e-5)


def test_the_slope_of_a_mask_by_hand(net):
    """`taylor` ranks neurons by |∂L/∂m|, summed over batches."""
    kept = choose_neurons(net, net.trunk, 4, "taylor", batches, 2, make_generator(0))
    score, sums = batches(), torch.zeros(4, HIDDEN)
    for _ in range(2):
        masks = [torch.ones(HIDDEN, requires_grad=True) for _ in range(4)]
        hooks = [
            network.out.register_forward_pre_hook(lambda module, args, own=mask: (args[0] * own,))
            for network, mask in zip(net.trunk.networks, masks, strict=True)
        ]
        for index, slope in enumerate(torch.autograd.grad(score(net), masks)):
            sums[index] += slope.abs()
        for hook in hooks:
            hook.remove()
    assert [found.tolist() for found in kept] == [row.topk(4).indices.sort().values.tolist() for row in sums]


def test_a_learned_mask_is_better_than_chance_before_any_training(net):
    losses = {}
    for how in ("learned", "random"):
        kept = choose_neurons(net, net.trunk, 4, how, batches, 60, make_generator(1))
        losses[how] = mean_loss(thinned(net, trunk_of, range(4), kept), batches, 5)
    assert losses["learned"] < losses["random"]


def test_a_part_of_a_net_has_its_shape_and_weights(net):
    kept = [torch.tensor([0, 3, 7])] * 2
    small: Any = thinned(net, trunk_of, (1, 3), kept)
    shape = AutoregressiveConfig(**{**SHAPE, "depth": 2}, hidden=3)
    AutoregressiveModel(shape).load_state_dict(small.state_dict())
    own, theirs = small.trunk.networks[1], net.trunk.networks[3]
    assert torch.equal(own.out.weight, theirs.out.weight[:, [0, 3, 7]])
    assert torch.equal(own.gate_up.weight, theirs.gate_up.weight[[0, 3, 7, HIDDEN, HIDDEN + 3, HIDDEN + 7]])
    assert len(net.trunk.blocks) == 4


def test_a_mean_is_over_its_batches(net):
    score = batches()
    values = [float(score(net)) for _ in range(4)]
    assert mean_loss(net, batches, 4) == pytest.approx(sum(values) / 4, rel=1e-6)


def test_what_is_drawn_is_drawn_by_the_generator(net, no_global_draws):
    with no_global_draws():
        blocks = choose_blocks(net, net.trunk, 2, "random", batches, 1, make_generator(5))
        found = choose_neurons(net, net.trunk, 5, "random", batches, 1, make_generator(6))
    assert blocks == tuple(sorted(torch.randperm(4, generator=make_generator(5))[:2].tolist()))
    generator = make_generator(6)
    for kept in found:
        assert kept.tolist() == sorted(torch.randperm(HIDDEN, generator=generator)[:5].tolist())
    assert choose_blocks(net, net.trunk, 3, "even", batches, 1, make_generator(0)) == (0, 2, 3)
    assert choose_blocks(net, net.trunk, 1, "last", batches, 1, make_generator(0)) == (3,)


def test_the_largest_neurons_by_hand(net):
    found = choose_neurons(net, net.trunk, 5, "l2", batches, 1, make_generator(0))
    for kept, network in zip(found, net.trunk.networks, strict=True):
        gate_up, out = network.gate_up.weight, network.out.weight
        sizes = [
            float(gate_up[i].square().sum() + gate_up[HIDDEN + i].square().sum() + out[:, i].square().sum())
            for i in range(HIDDEN)
        ]
        assert kept.tolist() == sorted(sorted(range(HIDDEN), key=lambda i: -sizes[i])[:5])


def test_a_learned_mask_by_hand(net):
    """The scores of `taylor`, standardised, then Adam at 0.05 through the sigmoid, on the same batches once more."""
    found = choose_neurons(net, net.trunk, 4, "learned", batches, 3, make_generator(0))
    networks, scores = net.trunk.networks, [torch.zeros(HIDDEN) for _ in range(4)]

    def losses_with(masks):
        return [
            network.out.register_forward_pre_hook(lambda module, args, own=own: (args[0] * own(),))
            for network, own in zip(networks, masks, strict=True)
        ]

    score, ones = batches(), [torch.ones(HIDDEN, requires_grad=True) for _ in range(4)]
    hooks = losses_with([lambda own=own: own for own in ones])
    for _ in range(3):
        for index, slope in enumerate(torch.autograd.grad(score(net), ones)):
            scores[index] = scores[index] + slope.abs()
    for hook in hooks:
        hook.remove()
    learned = [((each - each.mean()) / each.std()).requires_grad_() for each in scores]

    def mask(own):
        soft, hard = torch.sigmoid(own), torch.zeros(HIDDEN)
        hard[own.topk(4).indices] = 1
        return hard + (soft - soft.detach())

    score, optimizer = batches(), torch.optim.Adam(learned, lr=0.05)
    hooks = losses_with([lambda own=own: mask(own) for own in learned])
    for _ in range(3):
        optimizer.zero_grad()
        score(net).backward(inputs=learned)
        optimizer.step()
    for hook in hooks:
        hook.remove()
    for kept, own in zip(found, learned, strict=True):
        assert kept.tolist() == sorted(own.detach().topk(4).indices.tolist())


def test_blocks_alone_are_left_out_where_no_neurons_are_named(net):
    small: Any = thinned(net, trunk_of, (1, 3), None)
    assert len(small.trunk.blocks) == 2
    for own, theirs in zip(blocks_of(small), (blocks_of(net)[1], blocks_of(net)[3]), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in own.state_dict().items())
    assert small.trunk.networks[0].out.weight.data_ptr() != net.trunk.networks[1].out.weight.data_ptr()


def test_a_mean_loss_is_that_of_some_batches_begun_anew():
    net = AutoregressiveModel(AutoregressiveConfig(**SHAPE))

    def numbers():
        told = iter((1.0, 2.0, 6.0, 99.0))
        return lambda _: torch.tensor(next(told))

    assert (mean_loss(net, numbers, 3), mean_loss(net, numbers, 2), mean_loss(net, numbers, 1)) == (3.0, 1.5, 1.0)
