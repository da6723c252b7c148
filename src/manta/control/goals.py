"""Steering toward a goal while sampling: a differentiable goal bends a field, or tilts the logits words are chosen by.

A goal is a callable that gives the logarithm of how likely it is met, one number per request.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.flow.path import expand_time
from manta.flow.solvers import Field
from manta.types import Estimate

StateGoal = Callable[..., Tensor]
"""`goal(state, t, *, cond, self_cond) -> "b"`: log-likelihood of the goal given the noised state, differentiable."""
TokenGoal = Callable[[Tensor], Tensor]
"""`goal(weights "b n v") -> "b"`: log-likelihood of the goal given symbol probabilities, differentiable."""


def goal_guided(field: Field, goal: StateGoal, strength: float, *, cap: float = 10.0) -> Field:
    """Bend a field toward data that meet a goal.

        clean = clean_hat + strength (1 - t)^2 / t  grad log p(goal | state_t)

    At strength 1 and with the exact posterior of the goal it is the exact field of the data that meet it (Bayes' rule
    and Tweedie's formula for the linear path); above 1 the goal counts more than it should.

    Args:
        field: estimate of the clean state.
        goal: log-likelihood of the goal given the state; a classifier of noised states, or one of the readout.
        strength: 0 or more; 0 returns the field itself.
        cap: most that (1 - t)^2 / t may be, which has no bound at t = 0.

    Returns:
        A field; the goal counts as one network call beside its own.

    Raises:
        UsageError: for a negative strength.

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233). Not to be confused with `manta.flow.guided`, by a prompt.
    """
    if strength < 0:
        raise UsageError(f"a strength of guidance is 0 or more, received {strength}")
    if strength == 0:
        return field

    def bent(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Estimate:
        estimate = Estimate.of(field(state, t, cond=cond, self_cond=self_cond))
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            met = goal(leaf, t, cond=cond, self_cond=self_cond)
            (uphill,) = torch.autograd.grad(met.sum(), leaf)
        at = expand_time(t, state)
        factor = ((1 - at).square() / at.clamp_min(torch.finfo(state.dtype).tiny)).clamp_max(cap)
        return replace(estimate, clean=estimate.clean + strength * factor * uphill, nfe=estimate.nfe + 1)

    return bent


def guide_logits(
    logits: Float[Tensor, "b n v"],
    symbols: Int64[Tensor, "b n"],
    known: Bool[Tensor, "b n"],
    goal: TokenGoal,
    strength: float,
) -> Float[Tensor, "b n v"]:
    """Tilt logits toward a goal of the whole text.

        logits + strength d goal(weights) / d logits,    weights = one-hot where known, softmax(logits) elsewhere

    It serves every decoder that chooses words by logits: of a masked model all open positions at once, from left to
    right the next one. A goal that is met already has no gradient and changes nothing.

    Args:
        logits: of the open positions; those of known ones are not read.
        symbols: which stand at known positions; read there alone.
        known: True where a word stands.
        goal: log-likelihood of the goal given symbol probabilities.
        strength: in nats: of a goal that rests on one position alone, what it adds at most.

    Source: gradient steering as in FUDGE (Yang and Klein 2021, arXiv 2104.05218) and classifier guidance of discrete
    diffusion, here with a first-order tilt.
    """
    certain = F.one_hot(symbols, logits.shape[-1]).to(logits)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        met = goal(torch.where(known[..., None], certain, leaf.softmax(-1)))
        (uphill,) = torch.autograd.grad(met.sum(), leaf)
    return logits + strength * uphill


def keyword_goal(phrase: Sequence[int], mask: Bool[Tensor, "b n"] | None = None) -> TokenGoal:
    """The goal that a phrase occurs somewhere, positions taken as independent.

        log P = log(1 - prod_i (1 - prod_j weights[i + j, phrase_j]))

    Args:
        phrase: its symbols, at least one.
        mask: True where the phrase may lie; everywhere if left out.

    Raises:
        UsageError: for an empty phrase.
    """
    if not phrase:
        raise UsageError("a keyword has at least one symbol, received none")

    def goal(weights: Tensor) -> Tensor:
        room = weights.shape[1] - len(phrase) + 1
        if room < 1:
            return (weights.sum(dim=(1, 2)) * 0).sub(torch.inf)
        said = torch.stack([weights[:, j : j + room, symbol] for j, symbol in enumerate(phrase)]).prod(0)
        if mask is not None:
            inside = torch.stack([mask[:, j : j + room] for j in range(len(phrase))]).all(0)
            said = said * inside.to(said)
        # Near 1 the complement would lose its gradient to rounding, near 0 its logarithm.
        nowhere = torch.log1p(-said.clamp(max=1 - 1e-6)).sum(1)
        return torch.log(-torch.expm1(nowhere.clamp(max=-1e-30)))

    return goal


def classifier_goal(
    weight: Float[Tensor, "v k"], bias: Float[Tensor, "k"], label: int, mask: Bool[Tensor, "b n"] | None = None
) -> TokenGoal:
    """The goal that a linear classifier of a text's words, such as one of sentiment, says a label.

        log P = log softmax(mean_i weights_i @ weight + bias)[label]

    Args:
        weight: what a symbol says for each of k labels.
        bias: what is said for them without a text.
        label: the label asked for, in [0, k).
        mask: True where the text lies; everywhere if left out.

    Raises:
        UsageError: for a label that the classifier does not know.
    """
    if weight.shape[1] != len(bias) or not 0 <= label < len(bias):
        raise UsageError(
            f"the classifier knows labels 0 to {len(bias) - 1}, its weight has {weight.shape[1]}, received {label}"
        )

    def goal(weights: Tensor) -> Tensor:
        said = weights @ weight.to(weights)
        inside = torch.ones_like(said[..., :1]) if mask is None else mask[..., None].to(said)
        mean = (said * inside).sum(1) / inside.sum(1).clamp_min(1)
        return F.log_softmax(mean + bias.to(mean), -1)[:, label]

    return goal


def length_goal(
    target: float, empty: Sequence[int], mask: Bool[Tensor, "b n"] | None = None, *, tolerance: float = 1.0
) -> TokenGoal:
    """The goal that a text has about so many symbols, by their expected number.

        log P = -(sum_i (1 - P_i(no word)) - target)^2 / (2 tolerance^2)    up to a constant

    Args:
        target: symbols wanted, 0 or more.
        empty: symbols that are none, such as the one that says nothing.
        mask: True where the text may lie; everywhere if left out.
        tolerance: standard deviation that is let pass, in symbols.

    Raises:
        UsageError: for a negative target, or a tolerance that is not above 0.
    """
    if not (target >= 0 and tolerance > 0):
        raise UsageError(f"a length is 0 or more and its tolerance above 0, received {target} and {tolerance}")

    def goal(weights: Tensor) -> Tensor:
        word = 1 - weights[..., sorted(set(empty))].sum(-1)
        expected = (word if mask is None else word * mask.to(word)).sum(1)
        return -(expected - target).square() / (2 * tolerance**2)

    return goal
