"""Closed loop against open loop: recomputing the control from the present state, or replaying a recorded one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.flow.solvers import Field, SolverState, checked_grid, solve
from manta.types import Estimate


@dataclass(frozen=True)
class Disturbance:
    """A perturbation added to the state at a time."""

    t: float
    """Time in [0, 1): it acts at the grid point nearest to it, before the step that starts there."""
    delta: Tensor
    """What is added, in a shape that broadcasts against the state."""

    def index(self, grid: Float[Tensor, "points"]) -> int:
        """Index of the grid point nearest to `t` among those where a step starts."""
        return int((grid[:-1] - self.t).abs().argmin())


@dataclass(frozen=True)
class Controls:
    """A recorded control: the velocity that was applied in each step, and what it cost."""

    grid: Tensor
    """Times of the run, "points", float64."""
    velocities: list[Tensor]
    """Mean velocity in each step, `(state_next - state) / (t_next - t)`."""
    cleans: list[Tensor]
    """Clean estimate of each step."""
    nfe: int
    """Network calls of the recorded run."""


def feedback(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    disturbance: Disturbance | None = None,
    **options: Any,
) -> Iterator[SolverState]:
    """Integrate in closed loop: the control answers to the disturbed state. Like `solve`, with a disturbance.

    Args:
        field, state, grid: as in `solve`.
        disturbance: added to the state on the way; none if left out.
        options: further arguments of `solve` (step, noise, cond, self_cond, known).

    Yields:
        A `SolverState` per step.
    """
    times = checked_grid(grid)
    if disturbance is None:
        yield from solve(field, state, times, **options)
        return
    cut, spent = disturbance.index(times), 0
    if cut > 0:
        for reached in solve(field, state, times[: cut + 1], **options):
            yield reached
            state, spent, options["self_cond"] = reached.state, reached.nfe, reached.clean
    for reached in solve(field, state + disturbance.delta, times[cut:], **options):
        yield replace(reached, nfe=reached.nfe + spent)


def record(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    **options: Any,
) -> Controls:
    """Run in closed loop, undisturbed, and record the control that was applied in each step.

    Args:
        field, state, grid, options: as in `solve`.

    Returns:
        The controls, for `replay`.
    """
    times = checked_grid(grid)
    velocities, cleans, nfe = [], [], 0
    for duration, reached in zip(times.diff().tolist(), solve(field, state, times, **options), strict=True):
        velocities.append((reached.state - state) / duration)
        cleans.append(reached.clean)
        state, nfe = reached.state, reached.nfe
    return Controls(grid=times, velocities=velocities, cleans=cleans, nfe=nfe)


def replay(
    controls: Controls, state: Float[Tensor, "b *event"], disturbance: Disturbance | None = None
) -> Iterator[SolverState]:
    """Apply recorded controls in open loop: they do not see the state, so a disturbance is carried to the end.

    Args:
        controls: from `record`.
        state: state at the first grid point.
        disturbance: added to the state on the way; none if left out.

    Yields:
        A `SolverState` per step; `clean` is the recorded estimate and `nfe` is 0, as no network is called.
    """
    cut = None if disturbance is None else disturbance.index(controls.grid)
    times = zip(controls.grid[1:].tolist(), controls.grid.diff().tolist(), strict=True)
    steps = zip(times, controls.velocities, controls.cleans, strict=True)
    for index, ((t_next, duration), velocity, clean) in enumerate(steps):
        if disturbance is not None and index == cut:
            state = state + disturbance.delta
        state = state + duration * velocity
        yield SolverState(t=t_next, state=state, clean=clean, nfe=0)


class HeldField:
    """A field that answers anew at every K-th call only. It counts its calls: one run per object."""

    def __init__(self, field: Field, num_held: int) -> None:
        self.field = field
        self.num_held = num_held
        self.num_calls = 0
        self.held: Estimate | None = None

    def __call__(self, state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Estimate:
        made, self.num_calls = self.num_calls, self.num_calls + 1
        if self.held is not None and made % self.num_held:
            return replace(self.held, nfe=0)
        self.held = Estimate.of(self.field(state, t, cond=cond, self_cond=self_cond))
        return self.held


def hold(field: Field, num_held: int) -> HeldField:
    """Hold one clean estimate for `num_held` calls of the field (Euler steps).

    N Euler steps with K held are N / K Euler steps of the field: a straight line towards a held estimate is what one
    longer step follows. From noise at t = 0 with K = N the run lands on `E[clean]`, the mean of the data.

    Args:
        field: the field to hold.
        num_held: K >= 1; 1 is the closed loop.

    Returns:
        A field for one run, whose estimates say `nfe` 0 where they are held.

    Raises:
        UsageError: if `num_held` is below 1.
    """
    if num_held < 1:
        raise UsageError(f"an estimate is held for 1 call or more, got {num_held}")
    return HeldField(field, num_held)


@dataclass(frozen=True)
class DisturbanceError:
    """Distance of the disturbed end from the undisturbed one, per request, in units of the state."""

    t: float
    feedback: Tensor
    """Euclidean distance "b" with the control recomputed from the disturbed state."""
    replay: Tensor
    """Euclidean distance "b" with the recorded control."""
    feedback_state: Tensor
    """Where feedback ended, "b n c"."""
    replay_state: Tensor
    """Where replay ended, "b n c"."""


def disturbance_errors(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    disturbances: Sequence[Disturbance],
    **options: Any,
) -> list[DisturbanceError]:
    """Compare feedback with replay after each disturbance, from the same noise and over the same grid.

    Args:
        field, state, grid, options: as in `solve`; the step must be deterministic, as the run is repeated.
        disturbances: each is applied in a run of its own.

    Returns:
        The final errors and states of both, per disturbance and request. Replay's error is the disturbance itself.
        Feedback shrinks it as long as the control keeps its goal; where an early disturbance makes it choose another
        mode the distance is that between the modes, so a mean over requests can exceed replay's (it does on a
        mixture at t = 0.3, see benchmarks/results/closed_form.json). Look at the states to tell the two apart.
    """
    controls = record(field, state, grid, **options)
    *_, undisturbed = replay(controls, state)
    errors = []
    for disturbance in disturbances:
        *_, closed = feedback(field, state, grid, disturbance, **options)
        *_, opened = replay(controls, state, disturbance)
        distances = [(end.state - undisturbed.state).flatten(1).norm(dim=1) for end in (closed, opened)]
        errors.append(
            DisturbanceError(
                t=disturbance.t,
                feedback=distances[0],
                replay=distances[1],
                feedback_state=closed.state,
                replay_state=opened.state,
            )
        )
    return errors
