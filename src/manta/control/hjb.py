"""How far a flow is from a free particle's: its acceleration, pressure, divergence and vorticity.

With no potential, the optimal policy of least energy solves Burgers' equation, dv/dt + J v = 0: every path is straight.
The velocity of flow matching has a pressure instead, `Dv/Dt = -(1 / p) div(p S)` with S the posterior covariance of the
target velocity, and it is a gradient, so its vorticity is 0. Both are measured here, on any velocity.

A velocity is a callable `velocity(state, t) -> velocity`, "b *event", differentiable in forward and reverse mode, with
requests independent of each other; `velocity_of` makes one of a field. Positions at t = 1 (known ones, if `t` is
"b n") do not move and stay out of every figure.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from manta.errors import UsageError
from manta.flow.path import LinearPath, expand_time
from manta.flow.solvers import Field, checked_grid
from manta.types import Estimate

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`velocity(state, t) -> velocity`, in the shape of the state."""


def velocity_of(field: Field, *, cond: Any = None, self_cond: Tensor | None = None) -> Velocity:
    """Return the velocity `(clean_hat - state) / (1 - t)` of a field, with what it is conditioned on held fixed.

    Args:
        field: estimate of the clean state, `field(state, t, *, cond, self_cond)`.
        cond, self_cond: handed to the field in every call.
    """

    def velocity(state: Tensor, t: Tensor) -> Tensor:
        clean = Estimate.of(field(state, t, cond=cond, self_cond=self_cond)).clean
        return LinearPath().convert(clean, "clean", "velocity", state, t)

    return velocity


def material_derivative(
    velocity: Velocity, state: Float[Tensor, "b *event"], t: Float[Tensor, "*time"]
) -> tuple[Float[Tensor, "b *event"], Float[Tensor, "b *event"]]:
    """Return the velocity and its rate of change along the flow.

        Dv/Dt = dv/dt + J v:   one forward-mode derivative of (state, t) -> velocity along (velocity, 1)

    It is 0 exactly where the paths are straight at an even pace: the residual of the Hamilton-Jacobi-Bellman equation
    without a potential (its gradient, which is Burgers' equation).

    Args:
        velocity: as in the head of this file.
        state: states at which to measure; use float32 or better.
        t: their times in [0, 1], "b" or "b n".

    Returns:
        Velocity and acceleration, detached.
    """
    # Forward mode refuses expanded tensors.
    state, times = state.detach().contiguous(), t.to(state).contiguous()
    with _plain_attention():
        along = velocity(state, times).detach()
        acceleration = torch.func.jvp(velocity, (state, times), (along, (times < 1).to(times)))[1]
    return along, acceleration.detach()


def secant_derivative(
    velocity: Velocity, state: Float[Tensor, "b *event"], t: Float[Tensor, "*time"], span: float
) -> tuple[Float[Tensor, "b *event"], Float[Tensor, "b *event"]]:
    """Return the velocity and its rate of change over a step of finite length, as a sampler of such steps meets it.

        (v(z + h v, t + h) - v(z, t)) / h -> Dv/Dt for h -> 0

    A net that is told the time through high frequencies may oscillate in t between the times it is ever asked at:
    its `material_derivative` is then large and says nothing of its steps. Compare the two.

    Args:
        velocity, state, t: as in `material_derivative`; known positions stay.
        span: h, the step's length in t, above 0.

    Returns:
        Velocity and acceleration, detached.

    Raises:
        UsageError: if the step is not forward, or leaves [0, 1).
    """
    times = t.to(state)
    later = torch.where(times < 1, times + span, times)
    if not span > 0 or bool(((times < 1) & (later >= 1)).any()):
        raise UsageError(f"a secant has a span above 0 and ends before t = 1, got {span} from {t.tolist()}")
    with torch.no_grad():
        along = velocity(state, times)
        return along, (velocity(state + span * along, later) - along) / span


@dataclass(frozen=True)
class ResidualProfile:
    """Speed and acceleration along a grid of times, per request, summed over the event's dimensions."""

    times: Float[Tensor, "points"]
    """Times at which they were measured."""
    speed: Float[Tensor, "points b"]
    """Squared norm of the velocity."""
    acceleration: Float[Tensor, "points b"]
    """Squared norm of its material derivative."""

    @property
    def ratio(self) -> Float[Tensor, "points"]:
        """`R(t) = E|Dv/Dt|^2 / E|v|^2` over the requests, in 1 / t^2: 0 is a straight flow."""
        return self.acceleration.mean(1) / self.speed.mean(1)


def residual_profile(
    velocity: Velocity,
    states: Float[Tensor, "points b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    span: float | None = None,
) -> ResidualProfile:
    """Measure `R(t)` along a grid of times.

    Args:
        velocity: as in the head of this file.
        states: states at each time of the grid, from `follow` or drawn from the path through data.
        grid: rising times; a time of 1 at the end, where there is no velocity, is left out.
        span: measure over steps of this length, by `secant_derivative`; by differentiation if left out.

    Returns:
        The profile. Report it rather than claim optimality: the exact flow of matching has R > 0 as well.

    Raises:
        UsageError: if states and times differ in number.
    """
    times = checked_grid(grid)
    if len(times) != len(states):
        raise UsageError(f"give one state per time, got {len(states)} states and {len(times)} times")
    times = times[:-1] if bool(times[-1] == 1) else times
    speeds, accelerations = [], []
    for t, state in zip(times, states, strict=False):
        here = t.to(state).expand(len(state))
        if span is None:
            along, acceleration = material_derivative(velocity, state, here)
        else:
            along, acceleration = secant_derivative(velocity, state, here, span)
        speeds.append(along.square().flatten(1).sum(1))
        accelerations.append(acceleration.square().flatten(1).sum(1))
    return ResidualProfile(times=times, speed=torch.stack(speeds), acceleration=torch.stack(accelerations))


def random_probes(
    state: Float[Tensor, "b *event"], num_probes: int, generator: torch.Generator
) -> Float[Tensor, "probes b *event"]:
    """Draw Rademacher probes, entries +-1 with `E[e e^T] = I`: Hutchinson's estimators are means over them."""
    shape = (num_probes, *state.shape)
    return (2 * torch.randint(0, 2, shape, generator=generator, device=generator.device) - 1).to(state)


def basis_probes(state: Float[Tensor, "b *event"]) -> Float[Tensor, "d b *event"]:
    """Return one probe per dimension, `sqrt(d) e_i`, whose mean of `e e^T` is I: the estimators become exact.

    Their cost is d products, so they are for small events and for tests.
    """
    size = state[0].numel()
    basis = size**0.5 * torch.eye(size, dtype=state.dtype, device=state.device)
    return basis.reshape(size, 1, *state.shape[1:]).expand(size, *state.shape)


def divergence(
    velocity: Velocity,
    state: Float[Tensor, "b *event"],
    t: Float[Tensor, "*time"],
    probes: Float[Tensor, "probes b *event"],
) -> Float[Tensor, "b"]:
    """Return the divergence of the velocity, `tr J = E[e^T J e]`, per request.

    Args:
        velocity, state, t: as in `material_derivative`.
        probes: `basis_probes` for the exact trace, `random_probes` for Hutchinson's unbiased estimate of it.
    """
    times, free, state = t.to(state), _free(state, t), state.detach().contiguous()
    total = torch.zeros_like(state.flatten(1)[:, 0])
    with _plain_attention():
        for probe in probes * free:
            image = torch.func.jvp(lambda x: velocity(x, times), (state,), (probe,))[1]
            total = total + (probe * image).flatten(1).sum(1).detach()
    return total / len(probes)


def posterior_trace(divergence: Float[Tensor, "b"], t: Float[Tensor, "b"], num_dimensions: int) -> Float[Tensor, "b"]:
    """Return the total posterior variance of the clean state that a divergence implies.

        tr C = ((1 - t)^2 / t) (d + (1 - t) div v),    C = Cov[clean | state]

    Args:
        divergence: divergence of the velocity.
        t: its times, in (0, 1).
        num_dimensions: d, the number of the event's dimensions.

    Returns:
        tr C in squared units of the state; exact for the exact field from Gaussian noise, and a trained field that
        makes it negative is inconsistent there.

    Raises:
        UsageError: if a time is not in (0, 1).

    Source: "Divergence is Uncertainty" (arXiv 2605.00941).
    """
    _check_inside(t, "the posterior variance is implied by the divergence")
    at = t.to(divergence)
    return (1 - at) ** 2 / at * (num_dimensions + (1 - at) * divergence)


@dataclass(frozen=True)
class Rotation:
    """How much of a velocity's Jacobian is rotation, per request."""

    vorticity: Float[Tensor, "b"]
    """`|Omega|_F^2`, the antisymmetric part's squared Frobenius norm, in 1 / t^2."""
    jacobian: Float[Tensor, "b"]
    """`|J|_F^2`, the whole's."""

    @property
    def share(self) -> Float[Tensor, "b"]:
        """`|Omega|_F^2 / |J|_F^2`, in [0, 1] for exact figures: 0 is a gradient field, 1 a pure rotation."""
        return self.vorticity / self.jacobian


def vorticity(
    velocity: Velocity,
    state: Float[Tensor, "b *event"],
    t: Float[Tensor, "*time"],
    probes: Float[Tensor, "probes b *event"],
) -> Rotation:
    """Return the rotation in a velocity, one forward-mode and one reverse-mode derivative per probe.

        E|J e - J^T e|^2 = 4 |Omega|_F^2,    Omega = (J - J^T) / 2,    E|J e|^2 = |J|_F^2

    The exact field from Gaussian noise with independent coupling is a gradient, so what a trained one shows is its own
    error. Not to be confused with strain, the symmetric part: that lets errors grow exponentially, this only linearly.

    Args:
        velocity, state, t: as in `material_derivative`. With known positions, J is its block between unknown ones.
        probes: `basis_probes` for exact figures, `random_probes` for unbiased estimates of both.

    Source: Hutchinson's estimator, as for a trace.
    """
    times, free, state = t.to(state), _free(state, t), state.detach().contiguous()
    twice = whole = torch.zeros_like(state.flatten(1)[:, 0])
    with _plain_attention():
        transposed = torch.func.vjp(lambda x: velocity(x, times), state)[1]
        for probe in probes * free:
            image = torch.func.jvp(lambda x: velocity(x, times), (state,), (probe,))[1].detach() * free
            difference = image - transposed(probe)[0].detach() * free
            twice = twice + difference.square().flatten(1).sum(1)
            whole = whole + image.square().flatten(1).sum(1)
    return Rotation(vorticity=twice / (4 * len(probes)), jacobian=whole / len(probes))


def pressure(
    field: Field,
    state: Float[Tensor, "b *event"],
    t: Float[Tensor, "b"],
    probes: Float[Tensor, "probes b *event"],
    *,
    cond: Any = None,
    self_cond: Tensor | None = None,
) -> Float[Tensor, "b *event"]:
    """Return the acceleration that a field's own uncertainty asks for, without a derivative in t.

        -(1 / p) div(p S) = -(1 / t) (Laplacian clean_hat + (d clean_hat / d state) score),
        S = C / (1 - t)^2 = (1 / t) d clean_hat / d state,    score = (t clean_hat - state) / (1 - t)^2

    For the exact field it equals `material_derivative`; for a trained one the gap of the two is an error in how the
    estimate changes with t, and needs no data to be seen.

    Args:
        field: estimate of the clean state, twice differentiable in forward mode.
        state: states at which to measure; float64 is advisable.
        t: their times in (0, 1), one per request.
        probes: `basis_probes` for the exact Laplacian, `random_probes` for an unbiased estimate.
        cond, self_cond: handed to the field.

    Raises:
        UsageError: if a time is not in (0, 1).

    Source: the momentum equation of the flow; the covariance by Tweedie's second-order formula.
    """
    _check_inside(t, "the pressure is measured")
    state, at = state.detach().contiguous(), expand_time(t, state)

    def estimate(x: Tensor) -> Tensor:
        return Estimate.of(field(x, t.to(state), cond=cond, self_cond=self_cond)).clean

    def slope(x: Tensor, direction: Tensor) -> Tensor:
        return torch.func.jvp(estimate, (x,), (direction,))[1]

    with _plain_attention():
        clean = estimate(state).detach()
        pushed = slope(state, (at * clean - state) / (1 - at) ** 2).detach()
        laplacian = torch.zeros_like(state)
        for probe in probes.contiguous():
            bent = torch.func.jvp(lambda x, along=probe: slope(x, along), (state,), (probe,))[1]
            laplacian = laplacian + bent.detach() / len(probes)
    return -(laplacian + pushed) / at


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Forward-mode derivatives exist for the plain attention kernel only."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _free(state: Tensor, t: Tensor) -> Tensor:
    """1 at positions that move and 0 at known ones, with as many axes as the state."""
    at = expand_time(t, state)
    return (at < 1).to(state)


def _check_inside(t: Tensor, what: str) -> None:
    if not bool(((t > 0) & (t < 1)).all()):
        raise UsageError(f"{what} at times in (0, 1), got {t.tolist()}")
