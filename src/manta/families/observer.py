"""Who watches a text being written, and may steer it: the families' loops ask, diagnosis and traces answer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.families.prompted import Memory
from manta.flow import SolverState
from manta.flow.solvers import Field


@dataclass(frozen=True)
class Beginning:
    """Where the writing of a batch begins."""

    memory: Memory
    """The encoded prompts."""
    tokens: Int64[Tensor, "b n"]
    """Words that are given, the mask token where the model writes."""
    mask: Bool[Tensor, "b n"]
    """True on each row's canvas; all of it for an autoregressive model, whose texts end where they end."""
    generators: tuple[torch.Generator, ...] = ()
    """One a request, of what is drawn on the way."""
    state: Float[Tensor, "b m c"] | None = None
    """Of a flow: the state at `t`."""
    t: float = 0.0
    """Of a flow: the time it begins at."""
    nfe: int = 0
    """Network calls that the state has taken."""
    code: Float[Tensor, "b k"] | None = None
    """Of a flow: the adaptive condition; None where none is told."""


class Observer:
    """Sees a batch as it is written, one network call after the other; what it returns is what goes on.

    Each method leaves everything as it is until a subclass says otherwise. `page` is the family's own: it holds the
    words, and may be changed in place. A Manta-LM calls all of them, `before` and `moved` where a step of its flow is
    made; masked and aligned models call `logits` and `settled`, and block-causal ones too, of the text up to the end of
    the block that is written, of which alone logits are told and words may be changed; an autoregressive one, which has
    no page, `logits` alone.
    """

    def field(self, field: Field, page: Any, cond: Any) -> Field:
        """The policy that a flow will follow on a page, and what it is conditioned on; it may be wrapped.

        What wraps it hands on the `aux` of its estimates, which the words are read from.
        """
        return field

    def before(self, k: int, page: Any, state: Tensor | None) -> Tensor | None:
        """Before step k of a flow, counted from 0 in each round: its state."""
        return state

    def logits(self, logits: Float[Tensor, "b n v"], settled: Int64[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """What words are chosen from, and the words that stand, the mask token elsewhere."""
        return logits

    def moved(self, reached: SolverState) -> None:
        """What a flow's step has reached."""

    def settled(self, page: Any) -> None:
        """The page after its words were settled."""
