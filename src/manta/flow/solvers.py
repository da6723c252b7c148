"""Solvers of the flow: each step reads like its pseudocode, `solve` is a generator over them.

A step sees the field as `field(state, t) -> clean` (the estimate of the clean state) and turns it into motion with
the feedback law `velocity = (clean - state) / (1 - t)`. No step evaluates the field at t = 1. What else a call tells
(`Estimate.aux`) comes out of `solve` beside the state it led to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import UsageError
from manta.flow.path import LinearPath, divide_or_zero, expand_time
from manta.types import Estimate

Field = Callable[..., Tensor | Estimate]
"""A vector field: `field(state, t, *, cond, self_cond) -> Estimate`, or the clean state alone, in the shape of the
state."""
Control = Callable[[Tensor, Tensor], Tensor]
"""What a step asks of a field: `control(state, t) -> clean`; see `Feedback`."""
Noise = Callable[[Tensor], Tensor]
"""Fresh standard normal noise in the shape, dtype and device of its argument."""
Step = Callable[..., Tensor]
"""A solver step: `step(field, t, t_next, state, *, noise) -> state`, with `field(state, t) -> clean`."""

PATH = LinearPath()


@dataclass(frozen=True)
class SolverState:
    """What a solver has reached after a step."""

    t: float
    """Time reached, in (0, 1]; positions that are known are at 1 throughout."""
    state: Tensor
    """State at that time, "b n c"."""
    clean: Tensor
    """Latest estimate of the clean state, "b n c": the one the step moved towards last."""
    nfe: int
    """Sequential network calls so far, guidance included."""
    aux: Any = None
    """What else the call told that made the latest estimate."""


class Feedback:
    """The control recomputed from the present state: calls the field, feeds its last estimate back, counts calls.

    Self-conditioning costs no call: each call receives the estimate of the call before it, whichever that was. With
    Heun the second call of a step receives the first's estimate and the next step's first call the second's.
    """

    def __init__(self, field: Field, cond: Any = None, self_cond: Tensor | None = None) -> None:
        self.field = field
        self.cond = cond
        self.clean = self_cond
        self.aux: Any = None
        self.nfe = 0

    def __call__(self, state: Tensor, t: Tensor) -> Tensor:
        estimate = Estimate.of(self.field(state, t.to(state.dtype), cond=self.cond, self_cond=self.clean))
        self.clean, self.aux = estimate.clean, estimate.aux
        self.nfe += estimate.nfe
        return estimate.clean


def euler(field: Control, t: Tensor, t_next: Tensor, state: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Euler step: `state + (t_next - t) (clean - state) / (1 - t)`. Order 1, one call.

    Written as an interpolation, so that t_next = 1 lands on the clean estimate exactly and t = 1 stays put.
    """
    clean = field(state, t)
    share = divide_or_zero(t_next - t, 1 - t)
    return torch.lerp(state, clean, expand_time(share, state))


def heun(field: Control, t: Tensor, t_next: Tensor, state: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Heun step: Euler to t_next, then the mean of the velocities at both ends. Order 2, two calls.

    The step that ends at t = 1 is an Euler step (one call), as the velocity is not determined there; its local
    error is of second order, so the order of the whole stays 2. Also called the explicit trapezoidal rule; Karras et
    al. 2022 (arXiv 2206.00364), algorithm 1. Not to be confused with the midpoint method.
    """
    clean = field(state, t)
    share = divide_or_zero(t_next - t, 1 - t)
    predicted = torch.lerp(state, clean, expand_time(share, state))
    if bool((t_next >= 1).all()):
        return predicted
    clean_next = field(predicted, t_next)
    velocity = PATH.convert(clean, "clean", "velocity", state, t)
    velocity_next = PATH.convert(clean_next, "clean", "velocity", predicted, t_next)
    return state + expand_time(t_next - t, state) * (velocity + velocity_next) / 2


def renoise(
    field: Control, t: Tensor, t_next: Tensor, state: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Tensor:
    """Stochastic step: keep part of the estimated noise, replace the rest by fresh noise. One call.

        refreshed^2 = eta^2 (1 - snr(t) / snr(t_next)),      snr(t) = (t / (1 - t))^2
        state      <- t_next clean + (1 - t_next) (sqrt(1 - refreshed^2) noise_hat + refreshed fresh)

    eta = 0 is the Euler step, eta = 1 ancestral sampling, the discretised reverse-time SDE; at t_next = 1 no noise
    is left. Source: DDIM's family (Song et al. 2021, arXiv 2010.02502, eq. 16) on the linear path.

    Raises:
        UsageError: if no `noise` is given, or eta is outside [0, 1].
    """
    if noise is None:
        raise UsageError("renoise needs noise: pass noise=per_request_noise(generators) to solve")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], got {eta}")
    clean = field(state, t)
    kept = divide_or_zero(t * (1 - t_next), t_next * (1 - t)) ** 2
    refreshed = expand_time(eta * torch.sqrt((1 - kept).clamp_min(0)), state)
    noise_hat = PATH.convert(clean, "clean", "noise", state, t)
    mixed = torch.sqrt(1 - refreshed**2) * noise_hat + refreshed * noise(state)
    moved = PATH.sample(mixed, clean, t_next)
    return torch.where(expand_time(t, state) < 1, moved, state)


SOLVERS: dict[str, Step] = {"euler": euler, "heun": heun, "renoise": renoise}
"""Steps by kind; `functools.partial(renoise, eta=0.5)` is a step too."""


def steps_within(kind: str, budget: int, calls_per_estimate: int = 1) -> int:
    """Return the most solver steps whose network calls fit a budget.

    Args:
        kind: a key of `SOLVERS`.
        budget: network calls allowed, at least `calls_per_estimate`.
        calls_per_estimate: calls for one estimate: 2 with guidance, else 1.

    Returns:
        Number of steps, at least 1: N estimates make N steps, and with Heun 2 N - 1 estimates make N steps.

    Raises:
        UsageError: if the kind is unknown, or the budget does not pay for a single step.
    """
    if kind not in SOLVERS:
        raise UsageError(f"unknown solver {kind!r}; choose one of {', '.join(SOLVERS)}")
    estimates = budget // calls_per_estimate
    if estimates < 1:
        raise UsageError(f"a step takes {calls_per_estimate} network calls, the budget is {budget}; raise it")
    return (estimates + 1) // 2 if kind == "heun" else estimates


def per_request_noise(generators: Sequence[torch.Generator]) -> Noise:
    """Return a noise source with a generator for each request, so that a request's noise ignores its batch.

    The draws are float32 and then cast. A request's canvas (the shape without the batch axis) must not depend on the
    batch either, or its draws will.

    Raises:
        UsageError: (from the returned callable) if the batch is not one row per generator.
    """

    def noise(like: Tensor) -> Tensor:
        if len(like) != len(generators):
            raise UsageError(f"{len(generators)} generators cannot serve a batch of {len(like)}; give one per request")
        draws = [torch.randn(like.shape[1:], generator=generator, device=generator.device) for generator in generators]
        return torch.stack(draws).to(like)

    return noise


def checked_grid(grid: Float[Tensor, "points"] | Sequence[float]) -> Float[Tensor, "points"]:
    """Return the sampling grid in float64 on the CPU.

    Raises:
        UsageError: unless it has at least two times, strictly rising within [0, 1].
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()) or times[0] < 0 or times[-1] > 1:
        raise UsageError(
            f"a sampling grid rises strictly within [0, 1] and has two times or more, got {times.tolist()}"
        )
    return times


def solve(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    step: Step = euler,
    noise: Noise | None = None,
    cond: Any = None,
    self_cond: Tensor | None = None,
    known: Bool[Tensor, "b n"] | None = None,
) -> Iterator[SolverState]:
    """Integrate the flow along a grid of times; a generator that yields after each step.

    Args:
        field: estimate of the clean state, `field(state, t, *, cond, self_cond)`, t being "b", or "b n" with `known`.
        state: state at `grid[0]`: noise if that is 0; clean at the known positions.
        grid: times t_0 < ... < t_N in [0, 1]; N steps are made. If t_N = 1 the last step lands on its clean estimate.
        step: one of `SOLVERS`, or a callable like them.
        noise: source of fresh noise, for stochastic steps.
        cond: handed to the field as it is.
        self_cond: clean estimate handed to the first call; the later ones receive the last estimate.
        known: True at positions that are given; they stay at t = 1 and do not move.

    Yields:
        A `SolverState` per step. Gradients are kept: wrap the loop in `torch.no_grad()` to sample.

    Raises:
        UsageError: if the grid does not rise strictly within [0, 1].
    """
    times = checked_grid(grid)
    control = Feedback(field, cond, self_cond)
    for t_now, t_end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        t, t_next = (_times(value, state, known) for value in (t_now, t_end))
        state = step(control, t, t_next, state, noise=noise)
        assert control.clean is not None, "a step calls the field at least once"
        yield SolverState(t=t_end, state=state, clean=control.clean, nfe=control.nfe, aux=control.aux)


def _times(value: float, state: Tensor, known: Tensor | None) -> Tensor:
    """The time of every request, or of every position if some are known, in float64."""
    if known is None:
        return torch.full(state.shape[:1], value, dtype=torch.float64, device=state.device)
    times = torch.full(known.shape, value, dtype=torch.float64, device=state.device)
    return times.masked_fill(known, 1.0)
