"""Adjoint matching: fine-tune a flow toward a reward, as a stochastic optimal control problem.

The base process is the sampler with fresh noise in every step (`flow.renoise` at eta = 1). It is memoryless: its end
does not depend on its beginning, so the controlled process whose end has the density `base(x) exp(reward(x))` is found
by control alone, without a bias from the initial noise. A step is a Gaussian,

    x_{k+1} = keep_k x_k + pull_k clean_hat(x_k, t_k) + std_k noise,

its control is what the tuned field moves its mean by, and the control's price is the divergence from the base process,
|control|^2 / (2 std^2). The adjoint is followed along the base field alone ("lean"):

    a_N = -grad reward(x_N),    a_k = (d mean_k / d x_k)^T a_{k+1},    control_k -> -std_k^2 a_{k+1}

Domingo-Enrich et al. 2024, arXiv 2409.08861; here for the discrete sampler that is used, so that with a linear field
and a linear reward the mean moves exactly as that of the tilted density of the sampler's own end, at any number of
steps. The last step has no noise, so its control would have no price: it is the base field's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import UsageError
from manta.flow.solvers import Field, Noise, checked_grid
from manta.types import Estimate

Reward = Callable[[Tensor], Tensor]
"""`reward(state "b *event") -> "b"`: log-weight of each request's end, differentiable."""


@dataclass(frozen=True)
class AncestralStep:
    """`x_next = keep x + pull clean + std noise`: the step of `flow.renoise` at eta = 1."""

    t: float
    keep: float
    pull: float
    std: float

    @classmethod
    def between(cls, t: float, t_next: float) -> "AncestralStep":
        """The step from t to t_next, 0 <= t < t_next <= 1."""
        kept = t * (1 - t_next) / (t_next * (1 - t))
        keep = (1 - t_next) * kept / (1 - t)
        return cls(t, keep, t_next - keep * t, (1 - t_next) * (1 - kept**2) ** 0.5)

    def mean(self, field: Field, state: Tensor, cond: Any) -> Tensor:
        """Mean of the next state."""
        t = torch.full((len(state),), self.t, dtype=state.dtype, device=state.device)
        return self.keep * state + self.pull * Estimate.of(field(state, t, cond=cond, self_cond=None)).clean


def ancestral_steps(grid: Float[Tensor, "points"] | Sequence[float]) -> list[AncestralStep]:
    """The steps of a grid from 0 to 1.

    Raises:
        UsageError: for a grid that does not rise from 0 to 1: from elsewhere the process would not be memoryless.
    """
    times = checked_grid(grid).tolist()
    if times[0] != 0 or times[-1] != 1:
        raise UsageError(f"adjoint matching takes a grid from 0 to 1, received one from {times[0]} to {times[-1]}")
    return [AncestralStep.between(t, t_next) for t, t_next in pairwise(times)]


@dataclass(frozen=True)
class Rollout:
    """A sampled path and the lean adjoint along it."""

    steps: list[AncestralStep]
    states: Float[Tensor, "points b *event"]
    adjoints: Float[Tensor, "points b *event"]
    rewards: Float[Tensor, "b"]
    """Of the ends."""


@torch.no_grad()
def roll_out(
    tuned: Field,
    base: Field,
    reward: Reward,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    noise: Noise,
    cond: Any = None,
) -> Rollout:
    """Sample paths of the tuned process, and follow the adjoint back along the base field.

    Args:
        tuned: the field that is being tuned: it draws the paths, on-policy.
        base: the field as it was.
        reward: of the end; its scale sets how far the density is tilted.
        state: initial noise, standard normal.
        grid: from 0 to 1, see `ancestral_steps`.
        noise: source of the fresh noise.
        cond: handed to both fields. No estimate is fed back, so that the state alone is the state of the process.

    Raises:
        UsageError: see `ancestral_steps`.
    """
    steps = ancestral_steps(grid)
    states = [state]
    for step in steps:
        states.append(step.mean(tuned if step.std else base, states[-1], cond) + step.std * noise(state))
    with torch.enable_grad():
        end = states[-1].detach().requires_grad_()
        rewards = reward(end)
        (uphill,) = torch.autograd.grad(rewards.sum(), end)
    adjoints = [-uphill]
    for step, here in zip(reversed(steps), reversed(states[:-1]), strict=True):
        with torch.enable_grad():
            leaf = here.detach().requires_grad_()
            (back,) = torch.autograd.grad(step.mean(base, leaf, cond), leaf, adjoints[0])
        adjoints.insert(0, back)
    return Rollout(steps, torch.stack(states), torch.stack(adjoints), rewards.detach())


def adjoint_matching_loss(
    tuned: Field,
    base: Field,
    rollout: Rollout,
    chosen: Sequence[int],
    *,
    cond: Any = None,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, ""]:
    """Regress the control on the adjoint, at some steps of a rollout.

        mean over rows and steps of 1/2 | (mean_tuned - mean_base) / std + std a_{k+1} |^2

    Args:
        tuned: receives the gradient.
        base: the field as it was.
        rollout: from `roll_out`; a constant.
        chosen: steps that enter the loss; the last one has no noise, so nothing can be asked of it.
        cond: handed to both fields.
        mask: True at positions of a state "b n c" that count; at the others nothing is asked of the control.

    Raises:
        UsageError: without steps, or for a step without noise.
    """
    if not chosen:
        raise UsageError("a loss needs at least one step of the rollout, received none")
    total = rollout.states.new_zeros(())
    for k in chosen:
        step, state = rollout.steps[k], rollout.states[k]
        if step.std == 0:
            raise UsageError(f"step {k} adds no noise, so its control has no price; choose earlier steps")
        with torch.no_grad():
            mean = step.mean(base, state, cond)
        control = step.mean(tuned, state, cond) - mean
        error = (control / step.std + step.std * rollout.adjoints[k + 1]).square()
        error = error if mask is None else error * mask[..., None].to(error)
        total = total + 0.5 * error.flatten(1).sum(1).mean()
    return total / len(chosen)


@dataclass(frozen=True)
class Start:
    """Where a batch of paths begins."""

    state: Float[Tensor, "b *event"]
    """Initial noise."""
    cond: Any = None
    """Handed to both fields."""
    mask: Bool[Tensor, "b n"] | None = None
    """See `adjoint_matching_loss`."""


@dataclass(frozen=True)
class TuningProgress:
    """What one step of tuning did."""

    step: int
    loss: float
    reward: float
    """Mean reward of the ends, before the update."""


def match_adjoint(
    tuned: Field,
    base: Field,
    reward: Reward,
    start: Callable[[], Start],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    noise: Noise,
    parameters: Sequence[Tensor],
    num_steps: int,
    learning_rate: float,
    steps_a_loss: int = 4,
    generator: torch.Generator,
) -> Iterator[TuningProgress]:
    """Tune a field toward a reward, one update at a time; stop between two yields at will.

    Args:
        tuned, base, reward, grid, noise: as in `roll_out`.
        start: draws where a batch begins.
        parameters: what is tuned.
        num_steps: updates.
        learning_rate: of AdamW.
        steps_a_loss: steps of each path that enter its loss, drawn without replacement.
        generator: source of the drawn steps.

    Yields:
        The progress of each update, after it.

    Raises:
        UsageError: a grid of one step, or no step a loss.
    """
    noisy = len(ancestral_steps(grid)) - 1
    if noisy < 1 or steps_a_loss < 1:
        raise UsageError(
            "adjoint matching needs a grid of two steps or more and a step a loss, "
            f"received {noisy + 1} and {steps_a_loss}"
        )
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for index in range(num_steps):
        begin = start()
        rollout = roll_out(tuned, base, reward, begin.state, grid, noise=noise, cond=begin.cond)
        chosen = torch.randperm(noisy, generator=generator)[:steps_a_loss].tolist()
        loss = adjoint_matching_loss(tuned, base, rollout, chosen, cond=begin.cond, mask=begin.mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield TuningProgress(index + 1, float(loss.detach()), float(rollout.rewards.mean()))
