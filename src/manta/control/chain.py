"""The adjoint of a chain of token commitments, and where a hard commitment leaves none.

A chain's state is "b n v": the weight of every token at every position, one-hot where it is committed. Each step is a
policy, `logits = policy(state)`, and a commitment, `state = commit(logits, state)`. The logits are the controls: what
the step decides with. How it commits (`hard_commit`, `straight_through_commit`, `relaxed_commit`) settles whether a
gradient can come back to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from manta.control.adjoint import Adjoint, TerminalCost, position_norms, pull_back, terminal_gradient
from manta.errors import UsageError


@dataclass(frozen=True)
class ChainStep:
    """One step of a chain. Both parts must answer alike when asked again, so noise is drawn beforehand."""

    policy: Callable[[Tensor], Tensor]
    """`policy(state) -> logits`, both "b n v". A net that reads embeddings is given `state @ embedding`."""
    commit: Callable[[Tensor, Tensor], Tensor]
    """`commit(logits, state) -> state`, for example `where(chosen, hard_commit(logits), state)`."""


def hard_commit(logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n v"]:
    """Commit to the likeliest token, one-hot: no gradient passes, as in sampling with masks or from left to right."""
    return functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)


def relaxed_commit(logits: Float[Tensor, "b n v"], temperature: float = 1.0) -> Float[Tensor, "b n v"]:
    """Keep the softmax weights, so that a readout is an expectation: `softmax(logits / temperature)`."""
    return torch.softmax(logits / temperature, dim=-1)


def straight_through_commit(logits: Float[Tensor, "b n v"], temperature: float = 1.0) -> Float[Tensor, "b n v"]:
    """Commit hard, with the derivative of `relaxed_commit`: a surrogate, not the derivative of what was run.

    Source: Bengio et al. 2013 (arXiv 1308.3432).
    """
    soft = relaxed_commit(logits, temperature)
    return hard_commit(logits) + (soft - soft.detach())


def chain_adjoint(
    steps: Sequence[ChainStep],
    state: Float[Tensor, "b n v"],
    terminal: TerminalCost | Float[Tensor, "probes b n v"],
    *,
    known: Bool[Tensor, "b n"] | None = None,
) -> Adjoint:
    """Measure the adjoint of a chain: what reaches the states and the logits of each step.

        lambda_k = (d commit / d state + d commit / d logits  d policy / d state)^T lambda_{k+1}
        dC / d logits_k = (d commit / d logits)^T lambda_{k+1}

    A gradient is absent (nan) where no path of operations leads back from the end. That is told apart from a
    gradient that has vanished numerically by sending a nan along the same way: it stays nan through any product,
    whatever it is multiplied with, and does not pass `where`, `argmax`, comparisons and `detach`.

    Args:
        steps: the steps in their order.
        state: weights before the first step.
        terminal: a cost of the last weights, or probes in its place.
        known: True at positions that are given; they are left out of the figures.

    Returns:
        The adjoint, with the times k / N. Controls of which nothing is kept (logits of positions that a step does not
        commit) are absent too: `share_without_gradient` counts them.

    Raises:
        UsageError: without steps, or if a step gives another state when it is asked again.
    """
    if not steps:
        raise UsageError("a chain has one step or more, got none")
    states = [state.detach()]
    with torch.enable_grad():  # as they are asked again: other kernels would round otherwise
        for step in steps:
            now = states[-1].clone().requires_grad_()
            states.append(step.commit(step.policy(now), now).detach())
    adjoint = terminal_gradient(terminal, states[-1])
    present = _present_at_end(terminal, states[-1])
    norms, control_norms = [_norms(adjoint, present)], []
    with torch.autograd.set_detect_anomaly(False):
        for step, now, after in zip(reversed(steps), states[-2::-1], states[:0:-1], strict=True):
            made = _Made.by(step, now)
            if not torch.allclose(made.committed, after, rtol=1e-3, atol=1e-4):
                raise UsageError("a step gave another state when it was asked again; draw its noise beforehand")
            mark = torch.where(present, torch.nan, 0.0)[..., None].expand_as(now).to(now)
            decided, present = (gradient.isnan().any(-1) for gradient in made.back(mark))
            pulled = [made.back(probe) for probe in adjoint]
            at_logits, adjoint = (torch.stack(gradients) for gradients in zip(*pulled, strict=True))
            control_norms.append(_norms(at_logits, decided))
            norms.append(_norms(adjoint, present))
    return Adjoint(
        times=torch.linspace(0, 1, len(states), dtype=torch.float64),
        states=torch.stack(norms[::-1], dim=1),
        controls=torch.stack(control_norms[::-1], dim=1),
        counted=torch.ones_like(present) if known is None else ~known,
        start=adjoint.masked_fill(~present[..., None], torch.nan),
    )


@dataclass(frozen=True)
class _Made:
    """A step with its graph, cut between policy and commitment, so that the logits have a gradient of their own."""

    state: Tensor
    logits: Tensor
    control: Tensor
    """The logits again, as a leaf."""
    committed: Tensor

    @classmethod
    def by(cls, step: ChainStep, state: Tensor) -> "_Made":
        state = state.detach().requires_grad_()
        with torch.enable_grad():
            logits = step.policy(state)
            control = logits.detach().requires_grad_()
            return cls(state=state, logits=logits, control=control, committed=step.commit(control, state))

    def back(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to the logits and to the state, 0 where nothing leads."""
        at_control, kept = pull_back([self.committed], [self.control, self.state], [cotangent])
        at_control = torch.zeros_like(self.control) if at_control is None else at_control
        (carried,) = pull_back([self.logits], [self.state], [at_control])
        linked = [gradient for gradient in (kept, carried) if gradient is not None]
        return at_control, sum(linked, torch.zeros_like(self.state))


def _present_at_end(terminal: TerminalCost | Tensor, state: Tensor) -> Tensor:
    """True where the cost reads the last weights, "b n"; with probes, where one of them is not 0."""
    if isinstance(terminal, Tensor):
        return (terminal != 0).any(-1).any(0)
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        cost = terminal(leaf)
    (marked,) = torch.autograd.grad(cost, leaf, torch.full_like(cost, torch.nan))
    return marked.isnan().any(-1)


def _norms(gradient: Tensor, present: Tensor) -> Tensor:
    """Norm over the tokens, "probes b n"; nan where no path leads there."""
    return position_norms(gradient).masked_fill(~present, torch.nan)
