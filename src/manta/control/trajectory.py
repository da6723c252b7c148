"""Geometry of trajectories: how long, how sudden and how bent the way from noise to data is.

A continuous trajectory is "points b *event": the states at the times of a grid, joined by straight segments (for Euler
steps that polygon is the trajectory itself). A discrete one is a sequence of symbol probabilities "points b n v" or of
committed symbols "points b n". Each kind has its jumps, the lengths of its steps, and the same two functions reduce
them: `path_length` adds them up, `jump_concentration` tells how much of the way is one jump.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.flow.solvers import Field, checked_grid, solve


def follow(
    field: Field, state: Float[Tensor, "b *event"], grid: Float[Tensor, "points"] | Sequence[float], **options: Any
) -> Float[Tensor, "points b *event"]:
    """Integrate the flow without gradients and return every state on the way, the first one included.

    Args:
        field, state, grid, options: as in `manta.flow.solve`.

    Returns:
        States at the times of the grid. Multiply positions that do not count (padding) by zero before measuring.
    """
    with torch.no_grad():
        return torch.stack([state, *(reached.state for reached in solve(field, state, grid, **options))])


def step_lengths(states: Float[Tensor, "points b *event"]) -> Float[Tensor, "steps b"]:
    """Return the Euclidean length of every step: `|z_{k+1} - z_k|`, in units of the state."""
    return _steps(states).flatten(2).norm(dim=2)


def simplex_jumps(probabilities: Float[Tensor, "points b n v"]) -> Float[Tensor, "steps b n"]:
    """Return the total variation of every step at every position, in [0, 1].

        TV(p_k, p_{k+1}) = 1/2 sum_v |p_{k+1}(v) - p_k(v)|

    1 means that all of the mass moved to other symbols. For committed symbols it equals `symbol_jumps`.

    Args:
        probabilities: symbol probabilities of each position after each step, summing to 1 over "v".
    """
    return _steps(probabilities).abs().sum(-1) / 2


def symbol_jumps(symbols: Int64[Tensor, "points b n"]) -> Float[Tensor, "steps b n"]:
    """1 where a step changed the symbol and 0 where it did not: the total variation between committed symbols."""
    _check_points(symbols)
    return (symbols[1:] != symbols[:-1]).to(torch.get_default_dtype())


def symbol_flips(symbols: Int64[Tensor, "points b n"], *, unset: int | None = None) -> Int64[Tensor, "b n"]:
    """Count how often each position went back on its symbol.

        flips = sum_k 1[y_{k+1} != y_k and y_k != unset]

    The first commitment, from `unset` to a symbol, is no flip; taking a symbol back is one. Without `unset` this is the
    path length of `symbol_jumps`. A decoder that never revises has no flips.

    Args:
        symbols: symbol of each position after each step.
        unset: identity that stands for "not yet committed", such as a mask; none if left out.
    """
    changed = symbol_jumps(symbols) > 0
    if unset is not None:
        changed = changed & (symbols[:-1] != unset)
    return changed.sum(0)


def path_length(jumps: Float[Tensor, "steps *rows"]) -> Float[Tensor, "*rows"]:
    """Return the length of the way, `L = sum_k jump_k`, in the unit of the jumps.

    Args:
        jumps: from `step_lengths`, `simplex_jumps` or `symbol_jumps`. Average the latter two over positions first to
            have a request's length in "replacements of the whole text".
    """
    return jumps.sum(0)


def jump_concentration(jumps: Float[Tensor, "steps *rows"]) -> Float[Tensor, "*rows"]:
    """Return the share of the way that lies in its largest step: `max_k jump_k / sum_k jump_k`.

    It lies between 1 / steps (an even pace) and 1 (one jump and nothing else): a finite-step reading of a singular
    trajectory. Per position a hard commitment is 1, however the commitments are spread over the steps; averaged over
    the positions first, the same jumps read as the pace of the request. Say which of the two was taken.

    Args:
        jumps: as in `path_length`.

    Returns:
        The concentration; nan where nothing moved, which has none.
    """
    return jumps.amax(0) / jumps.sum(0)


def kinetic_energy(
    states: Float[Tensor, "points b *event"], grid: Float[Tensor, "points"] | Sequence[float]
) -> Float[Tensor, "b"]:
    """Return the energy of the control along the way.

        E = 1/2 int |v|^2 dt = 1/2 sum_k |z_{k+1} - z_k|^2 / (t_{k+1} - t_k)

    No path between the same ends in the same time T costs less than the straight one, `|z_N - z_0|^2 / (2 T)`.

    Args:
        states: states at the times of the grid.
        grid: rising times in [0, 1], of any spacing.

    Returns:
        Energy per request, in squared state per unit of t; the joining segments' own, so a coarse grid reads low.
    """
    return (_velocities(states, grid).square().flatten(2).sum(2) * _durations(states, grid)).sum(0) / 2


def straightness(
    states: Float[Tensor, "points b *event"], grid: Float[Tensor, "points"] | Sequence[float]
) -> Float[Tensor, "b"]:
    """Return how far the velocity strays from the constant one between the ends; 0 is straight at an even pace.

        S = int |D - v|^2 dt,    D = (z_N - z_0) / T,    E[S] = int E|v|^2 dt - E|z_N - z_0|^2 / T

    Args:
        states, grid: as in `kinetic_energy`; T is the time that the grid spans.

    Returns:
        S per request (its mean over requests is the usual figure), in squared state per unit of t.

    Source: Liu et al. 2023 (arXiv 2209.03003). Not to be confused with `total_curvature`, which ignores the pace.
    """
    duration = _durations(states, grid)
    mean = (states[-1] - states[0]) / duration.sum()
    return ((_velocities(states, grid) - mean).square().flatten(2).sum(2) * duration).sum(0)


def total_curvature(states: Float[Tensor, "points b *event"]) -> Float[Tensor, "b"]:
    """Return the angle that the way turns through, in radians, whatever its pace.

        int kappa ds = sum_k angle(z_{k+1} - z_k, z_{k+2} - z_{k+1})

    A straight line has 0, half a circle pi (less the turn at the two ends, 1 / steps of it). A step that stays in
    place has no direction and is passed over.

    Args:
        states: at least two points.
    """
    steps = _steps(states).flatten(2)
    heading = torch.zeros_like(steps[0])
    turned = torch.zeros_like(steps[0, :, 0])
    for step in steps:
        length = step.norm(dim=1, keepdim=True)
        moving = length > 0
        direction = torch.where(moving, step / torch.where(moving, length, 1), heading)
        # Exact for small and for large angles, as the arc cosine is not.
        angle = 2 * torch.atan2((direction - heading).norm(dim=1), (direction + heading).norm(dim=1))
        started = heading.abs().sum(1) > 0
        turned = turned + torch.where(started, angle, 0)
        heading = direction
    return turned


def _steps(states: Tensor) -> Tensor:
    _check_points(states)
    return states[1:] - states[:-1]


def _check_points(states: Tensor) -> None:
    if len(states) < 2:
        raise UsageError(f"a trajectory has two points or more, got {len(states)}; keep the first state too")


def _durations(states: Tensor, grid: Tensor | Sequence[float]) -> Tensor:
    """Duration of every step, "steps 1"."""
    durations = checked_grid(grid).diff().to(states)
    if len(durations) + 1 != len(states):
        raise UsageError(
            f"a trajectory has one state per time, got {len(states)} states and {len(durations) + 1} times"
        )
    return durations[:, None]


def _velocities(states: Tensor, grid: Tensor | Sequence[float]) -> Tensor:
    """Mean velocity of every step, "steps b *event"."""
    durations = _durations(states, grid)
    return _steps(states) / durations.reshape(-1, *(1,) * (states.ndim - 1))
