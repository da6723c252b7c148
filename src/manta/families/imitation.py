"""What a net is taught that stands in for another: the task, the other's answers, and its states on the way."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.nets.trunk import Trunk
from manta.text import Batch
from manta.types import Loss

Objective = Callable[[Any, Any, torch.Generator], Loss]


@dataclass
class TrunkCall:
    """One call of a trunk, as it went."""

    states: list[Float[Tensor, "b n d"]] = field(default_factory=list)
    """After the operator of each block that is watched, once its output is added to the state."""
    hidden: Float[Tensor, "b n d"] | None = None
    """What the trunk answered."""
    mask: Bool[Tensor, "b n"] | None = None
    """True where an element is real; None: all are."""


class Imitation(ABC):
    """A family's objective, for a net that is made from another, its source, and should answer as that does.

    ``total = task + outputs · apart(answer, answer_source) + states · mean_l |h_l − h_l,source|² / |h_l,source|²``

    h_l is the state once the operator of block l has been added. Both nets are given the same batch and the same draws,
    and each goes on with its own states.

    Args:
        task: the objective of the family; all its randomness comes from the generator.
        source: the other net, frozen.
        trunk_of: the trunk of a net.
        blocks: whose states are compared.
        outputs: weight of the answers.
        states: weight of the states.

    Source: Huang et al., arXiv 2504.21292; the states in proportion to their size, which makes the weight mean the
        same in any net.
    """

    def __init__(
        self,
        task: Objective,
        source: nn.Module,
        trunk_of: Callable[[Any], Trunk],
        blocks: Sequence[int],
        *,
        outputs: float,
        states: float,
    ) -> None:
        self.task, self.source, self.trunk_of, self.blocks = task, source, trunk_of, tuple(blocks)
        self.outputs, self.states = outputs, states

    def __call__(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Loss:
        """Loss with the parts of the task, outputs (how far the answers are apart) and states (share of their size)."""
        draws = generator.get_state()
        with torch.no_grad(), watched(self.trunk_of(self.source), self.blocks) as theirs:
            self.task(self.source, batch, generator)
        generator.set_state(draws)
        with watched(self.trunk_of(model), self.blocks) as ours:
            loss = self.task(model, batch, generator)
        assert len(ours) == len(theirs), "the same draws make the same calls"
        call, told = ours[-1], theirs[-1]  # a call before the last is a first look, which the last one is shown
        assert call.hidden is not None and told.hidden is not None, "a call that has ended"
        real = self.real(model, call, batch)
        outputs = self.apart(model, call.hidden[real], told.hidden[real])
        pairs = zip(call.states, told.states, strict=True)
        states = torch.stack([_error(mine[real], other[real]) for mine, other in pairs]).mean()
        total = loss.total + self.outputs * outputs + self.states * states
        return Loss(total, {**loss.parts, "outputs": outputs.detach(), "states": states.detach()}, loss.count)

    def real(self, model: nn.Module, call: TrunkCall, batch: Any) -> Bool[Tensor, "b n"]:
        """Where the elements of a call are real."""
        assert call.hidden is not None
        return torch.ones(call.hidden.shape[:2], dtype=torch.bool, device=call.hidden.device)

    @abstractmethod
    def apart(self, model: Any, hidden: Float[Tensor, "k d"], source: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """How far two answers are apart, a mean over elements.

        Args:
            model: the net.
            hidden: what its trunk answered.
            source: what the source's answered.
        """


class WordImitation(Imitation):
    """Imitation of a language model, whose answer is a distribution of words: ``apart = KL(p_source ‖ p)`` in nats."""

    def real(self, model: Any, call: TrunkCall, batch: Batch) -> Bool[Tensor, "b n"]:
        """Where a text is; left to right nothing behind it is ever seen, so nothing is masked."""
        return model.shifted(batch)[2] if call.mask is None else call.mask

    def apart(self, model: Any, hidden: Float[Tensor, "k d"], source: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """Nats that the source's words lose when they are told by the other net."""
        return _divergence(cast(Any, self.source).head(source), model.head(hidden))


@contextmanager
def watched(trunk: Trunk, blocks: Sequence[int]) -> Iterator[list[TrunkCall]]:
    """Write down every call of a trunk meanwhile.

    Args:
        trunk: of any family.
        blocks: whose states are kept.
    """
    calls: list[TrunkCall] = []

    def begins(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(TrunkCall(mask=args[1].mask))

    def passes(module: nn.Module, args: tuple[Any, ...], state: Tensor) -> None:
        calls[-1].states.append(state)

    def ends(module: nn.Module, args: tuple[Any, ...], hidden: Tensor) -> None:
        calls[-1].hidden = hidden

    hooks = [trunk.register_forward_pre_hook(begins), trunk.register_forward_hook(ends)]
    exchanges = (trunk.blocks[index].get_submodule("exchanged") for index in blocks)
    hooks += [exchange.register_forward_hook(passes) for exchange in exchanges]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _divergence(source: Float[Tensor, "k v"], logits: Float[Tensor, "k v"]) -> Float[Tensor, ""]:
    """Nats that the words of the source lose when they are told by other logits, mean over elements."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.kl_div(
        logits.log_softmax(-1, dtype=wide), source.log_softmax(-1, dtype=wide), reduction="batchmean", log_target=True
    )


def _error(state: Float[Tensor, "k d"], source: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """Squared distance in proportion to the source's squared size."""
    return (state - source).float().square().mean() / source.float().square().mean().clamp_min(1e-12)
