"""Which blocks and neurons of a trained net a smaller one begins with.

Blocks are judged by what the loss becomes without them, neurons of the pointwise networks by a mask that is learned on
the frozen net. Nothing of a smaller net is trained here.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.families.prompted import PromptedModel
from manta.nets.blocks import SwiGLU
from manta.nets.trunk import Trunk

Layers = Literal["skip", "ends", "first", "last", "even", "random"]
"""How blocks are chosen."""
Neurons = Literal["learned", "taylor", "l2", "random"]
"""How neurons are chosen."""
Score = Callable[[PromptedModel], Tensor]
"""Loss of a net on the next batch, open to gradients; it begins anew whenever it is made."""
MASK_RATE = 0.05
"""Step size of a learned mask, whose scores begin with a spread of 1."""


@contextmanager
def only(trunk: Trunk, blocks: Sequence[int]) -> Iterator[None]:
    """A trunk of some of its blocks meanwhile.

    Args:
        trunk: of any net.
        blocks: that stay.
    """
    whole = trunk.blocks
    trunk.blocks = nn.ModuleList(whole[index] for index in blocks)
    try:
        yield
    finally:
        trunk.blocks = whole


@torch.no_grad()
def mean_loss(net: PromptedModel, scores: Callable[[], Score], num: int) -> float:
    """Mean loss on some batches, the same for all nets.

    Args:
        net: a net.
        scores: makes what tells the loss of one batch after the other.
        num: batches.
    """
    score = scores()
    return sum(float(score(net)) for _ in range(num)) / num


def skip_losses(
    net: PromptedModel, trunk: Trunk, blocks: Sequence[int], scores: Callable[[], Score], num: int
) -> dict[int, float]:
    """What the loss becomes when one of some blocks is left out, block by block.

    Args:
        net: a trained net.
        trunk: its trunk.
        blocks: that are there.
        scores: see `mean_loss`.
        num: batches.
    """
    found = {}
    for index in blocks:
        with only(trunk, [other for other in blocks if other != index]):
            found[index] = mean_loss(net, scores, num)
    return found


def choose_blocks(
    net: PromptedModel,
    trunk: Trunk,
    depth: int,
    how: Layers,
    scores: Callable[[], Score],
    num: int,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """The blocks that a net of some depth begins with, in their order.

    `skip` leaves out one block after the other, each time the one without which the loss is least. `ends` keeps the
    last block and the first ones, which matter most in large language models; `first`, `last`, `even` and `random` are
    controls.

    Args:
        net: a trained net.
        trunk: its trunk.
        depth: blocks to keep, at most as many as there are.
        how: as above.
        scores: see `mean_loss`.
        num: batches.
        generator: of `random`.

    Source: Tang et al., "Rethinking Optimization and Architecture for Tiny Language Models", arXiv 2402.02791.
    """
    whole = len(trunk.blocks)
    match how:
        case "first":
            return tuple(range(depth))
        case "last":
            return tuple(range(whole - depth, whole))
        case "ends":
            return (*range(depth - 1), whole - 1)
        case "even":
            return tuple(int(place) for place in torch.linspace(0, whole - 1, depth).round())
        case "random":
            return tuple(sorted(torch.randperm(whole, generator=generator)[:depth].tolist()))
        case "skip":
            kept = list(range(whole))
            while len(kept) > depth:
                losses = skip_losses(net, trunk, kept, scores, num)
                kept.remove(min(losses, key=losses.__getitem__))
            return tuple(kept)


def choose_neurons(
    net: PromptedModel,
    trunk: Trunk,
    hidden: int,
    how: Neurons,
    scores: Callable[[], Score],
    steps: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """The neurons that pointwise networks of some width begin with: for each block their numbers, ascending.

    ``a ← m ⊙ a``,  a the hidden values of a block's network,  m its mask

    random    any
    l2        the largest ``|W_g,i|² + |W_u,i|² + |W_o,i|²``
    taylor    the largest mean of ``|∂L/∂m_i|``: how much the loss would change without a neuron
    learned   m is 1 for the `hidden` neurons of highest score and 0 for the others; the scores begin as those of
              `taylor`, standardised, and are trained through the sigmoid (straight through), the net being frozen

    Args:
        net: a trained net; its weights are not changed.
        trunk: its trunk.
        hidden: neurons to keep, at most as many as there are.
        how: as above.
        scores: see `mean_loss`.
        steps: batches that `taylor` looks at and `learned` is trained on.
        generator: of `random`.

    Source: as for `choose_blocks`; the mask as top-k with a straight-through sigmoid is our reading.
    """
    networks = trunk.networks
    wide = [network.hidden for network in networks]
    if how == "random":
        return [torch.randperm(size, generator=generator)[:hidden].sort().values for size in wide]
    if how == "l2":
        rows = [torch.cat([*n.gate_up.weight.detach().chunk(2), n.out.weight.detach().mT], 1) for n in networks]
        return [_highest(row.square().sum(1), hidden) for row in rows]
    importance = [torch.zeros(size, device=n.out.weight.device) for size, n in zip(wide, networks, strict=True)]
    with _masked(networks, importance) as masks:
        score = scores()
        for _ in range(steps):
            for found, slope in zip(importance, torch.autograd.grad(score(net), masks()), strict=True):
                found += slope.abs()
    if how == "taylor":
        return [_highest(found, hidden) for found in importance]
    learned = [nn.Parameter((found - found.mean()) / found.std().clamp_min(1e-12)) for found in importance]
    optimizer, score = torch.optim.Adam(learned, lr=MASK_RATE), scores()
    with _masked(networks, learned, hidden):
        for _ in range(steps):
            optimizer.zero_grad()
            score(net).backward(inputs=learned)
            optimizer.step()
    return [_highest(found.detach(), hidden) for found in learned]


def _highest(scores: Float[Tensor, "n"], count: int) -> Tensor:
    return scores.topk(count).indices.sort().values.cpu()


@contextmanager
def _masked(
    networks: Sequence[SwiGLU], scores: Sequence[Tensor], hidden: int | None = None
) -> Iterator[Callable[[], list[Tensor]]]:
    """Multiply the hidden values of pointwise networks by masks meanwhile; yields those of the present call.

    Args:
        networks: `SwiGLU` of each block.
        scores: of the neurons of each.
        hidden: neurons that a mask lets pass; None: all of them, so that its gradient tells what each is worth.
    """
    present: dict[int, Tensor] = {}

    def masking(index: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def mask(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            own = scores[index]
            if hidden is None:
                present.setdefault(index, torch.ones_like(own).requires_grad_())
                return (args[0] * present[index],)
            soft, hard = own.sigmoid(), torch.zeros_like(own)
            hard[own.topk(hidden).indices] = 1
            return (args[0] * (hard + soft - soft.detach()),)

        return mask

    def masks() -> list[Tensor]:
        found = [present[index] for index in range(len(networks))]
        present.clear()
        return found

    hooks = [network.out.register_forward_pre_hook(masking(index)) for index, network in enumerate(networks)]
    try:
        yield masks
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def thinned(
    net: PromptedModel, trunk_of: Callable[[Any], Trunk], blocks: Sequence[int], neurons: Sequence[Tensor] | None
) -> PromptedModel:
    """A copy of a net with some of its blocks, and some neurons of their pointwise networks.

    Args:
        net: not changed.
        trunk_of: the trunk of a net.
        blocks: that stay, in order.
        neurons: for each of these blocks those that stay; None: all.
    """
    found = copy.deepcopy(net)
    trunk = trunk_of(found)
    trunk.blocks = nn.ModuleList(trunk.blocks[index] for index in blocks)
    if neurons is None:
        return found
    for network, kept in zip(trunk.networks, neurons, strict=True):
        gate, up = (part[kept] for part in network.gate_up.weight.chunk(2))
        network.gate_up.weight = nn.Parameter(torch.cat([gate, up]))
        network.out.weight = nn.Parameter(network.out.weight[:, kept].contiguous())
        network.hidden = len(kept)
    return found
