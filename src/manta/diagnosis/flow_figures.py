"""Figures of a flow over latents: geometry of its way, stiffness, rotation, straightness, adjoint, pushes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from manta.control import (
    Adjoint,
    flow_adjoint,
    jump_concentration,
    kinetic_energy,
    material_derivative,
    path_length,
    pressure,
    respond,
    secant_derivative,
    step_lengths,
    straightness,
    strain,
    total_curvature,
    velocity_of,
    vorticity,
)
from manta.diagnosis.common import plane
from manta.diagnosis.results import TIMES, Measured, Settings, thirds
from manta.diagnosis.systems import FlowSystem

NUM_PLACES = 5
"""Steps along the way at which the costly figures (strain, rotation, pressure) are measured."""
STRAIN_ITERATIONS = 12
"""Products of the power iteration; an estimate from below, the same number for every prompt."""


def path_figures(system: FlowSystem) -> Measured:
    """Geometry of the plan's way.

    Figures: `path_length` (over the root of the dimensions), `jump_concentration`, `kinetic_energy` (a dimension),
    `energy_over_straight` (1 is straight and even), `crookedness` (S over the integral of |v|^2, 0 is straight),
    `curvature` (radians). Profile: `plan_travelled`.
    """
    found, states, size = Measured(), system.states, system.dimensions
    jumps, energy = step_lengths(states), kinetic_energy(states, system.grid)
    net = (states[-1] - states[0]).flatten(1).square().sum(1)
    found.put(
        path_length=path_length(jumps) / size.sqrt(),
        jump_concentration=jump_concentration(jumps),
        kinetic_energy=energy / size,
        energy_over_straight=energy / (net / 2),
        crookedness=straightness(states, system.grid) / (2 * energy),
        curvature=total_curvature(states),
    )
    found.ways["plan"] = plane(states.flatten(2), system.lengths())
    return found


def places(system: FlowSystem, num: int = NUM_PLACES) -> list[int]:
    """Steps spread over the way, the first and the last among them."""
    last = system.num_steps - 1
    return sorted({round(i * last / (num - 1)) for i in range(num)})


def field_figures(system: FlowSystem, settings: Settings) -> Measured:
    """Stiffness and rotation of the policy's field on the way.

    Figures: `peak_strain` (the largest of `strain(t)`, 1/t), `vorticity_share` (|Omega|^2 over |J|^2, pooled over the
    places). Profiles: `strain`, `vorticity_share`.
    """
    found, cells = Measured(), system.cells[..., None]
    canvas = (system.lm.model.max_cells, system.lm.model.space.channels)
    strains, rotations, times = [], [], []
    for k in places(system):
        t = float(system.grid[k])
        state, field, fed = system.states[k], system.field_at(k), system.self_cond(k)
        start = system.draws(40 + k, canvas, state.shape[1]) * cells
        here = torch.full_like(state[:, 0, 0], t)
        strains.append(
            strain(
                lambda x, at, field=field, fed=fed: field(x, at, self_cond=fed),
                state,
                here,
                start=start,
                num_iterations=STRAIN_ITERATIONS,
                tolerance=0.0,
            )
        )
        probes = [
            (2 * (system.draws(400 + 50 * i + k, canvas, state.shape[1], "uniform") < 0.5) - 1.0)
            for i in range(settings.probes)
        ]
        turned = vorticity(velocity_of(field, self_cond=fed), state, system.times(t), torch.stack(probes))
        rotations.append((turned.vorticity, turned.jacobian))
        times.append(t)
    whole = torch.stack(strains)
    spins, jacobians = (torch.stack(part) for part in zip(*rotations, strict=True))
    found.put(peak_strain=whole.amax(0), vorticity_share=spins.sum(0) / jacobians.sum(0))
    found.profile("strain", times, whole)
    found.profile("vorticity_share", times, spins / jacobians)
    return found


def burgers_figures(system: FlowSystem) -> Measured:
    """How far the flow is from straight at an even pace.

    Figures: `acceleration` and `acceleration_of_steps`, the root of the mean over the way of |Dv/Dt|^2 / |v|^2 (1/t),
    by differentiation and over the sampler's own steps; `pressure`, the same of the pressure term inside (0.1, 0.9).
    Profiles: `R`, `R_of_steps`, `R_of_pressure`.
    """
    found, limit = Measured(), system.num_steps
    by_jvp, by_step, speeds = [], [], []
    for k in range(limit):
        t, t_next = system.grid[k : k + 2].tolist()
        velocity, state = velocity_of(system.field_at(k), self_cond=system.self_cond(k)), system.states[k]
        along, slope = material_derivative(velocity, state, system.times(t))
        # The last step ends at t = 1, where there is no velocity: half of it does.
        span = t_next - t if t_next < 1 else (1 - t) / 2
        _, secant = secant_derivative(velocity, state, system.times(t), span)
        for values, part in ((by_jvp, slope), (by_step, secant), (speeds, along)):
            values.append(part.flatten(1).square().sum(1))
    jvp, secant, speed = (torch.stack(values) for values in (by_jvp, by_step, speeds))
    pushed, inner = _pressures(system)
    found.put(
        acceleration=(jvp.sum(0) / speed.sum(0)).sqrt(),
        acceleration_of_steps=(secant.sum(0) / speed.sum(0)).sqrt(),
        pressure=(pushed.sum(0) / speed[inner].sum(0)).clamp_min(0).sqrt(),
    )
    times = system.grid[:-1].tolist()
    found.profile("R", times, jvp / speed)
    found.profile("R_of_steps", times, secant / speed)
    found.profile("R_of_pressure", [times[k] for k in inner], pushed / speed[inner])
    return found


def _pressures(system: FlowSystem) -> tuple[Float[Tensor, "points b"], list[int]]:
    """Squared pressure at places inside the way: the product of two independent estimates, so without bias."""
    canvas = (system.lm.model.max_cells, system.lm.model.space.channels)
    inner = [k for k in places(system) if 0.1 < float(system.grid[k]) < 0.9] or [system.num_steps // 2]
    squares = []
    for k in inner:
        state, here = system.states[k], system.grid[k].to(system.states).expand(len(system.requests))
        pair = []
        for i in range(2):
            draws = system.draws(900 + 50 * i + k, canvas, state.shape[1], "uniform")
            probe = (2 * (draws < 0.5) - 1.0) * system.cells[..., None]
            pair.append(pressure(system.field_at(k), state, here, probe[None], self_cond=system.self_cond(k)))
        squares.append(torch.stack(pair).prod(0).mul(system.cells[..., None]).flatten(1).sum(1))
    return torch.stack(squares), inner


def adjoint_figures(system: FlowSystem, settings: Settings) -> Measured:
    """How much of the end's gradient reaches the earlier states, for random probes and for the words' likelihood.

    Figures: `adjoint_least`, `adjoint_largest` (of the norms before the end, over the norm at the end),
    `adjoint_early_over_late` (of the velocities' gradients, the first third of the steps over the last),
    `controls_without_gradient` (velocities), `word_controls_without_gradient` (1: words are settled by hard
    commitments). Profiles: `adjoint` (probes), `adjoint_of_words`.
    """
    found = Measured()
    canvas = (system.lm.model.max_cells, system.lm.model.space.channels)
    width = system.states.shape[2]
    draws = [system.draws(60 + i, canvas, width) * system.cells[..., None] for i in range(settings.probes)]
    probes = torch.stack(draws)
    probes = probes / probes.flatten(2).norm(dim=2)[..., None, None]
    own = system.readout(system.states[-1]).argmax(-1).detach()

    def words(state: Tensor) -> Tensor:
        nats = F.cross_entropy(system.readout(state).transpose(1, 2), own, reduction="none")
        return (nats * system.mask).sum(1)

    by_probes = flow_adjoint(system.field, system.states[0], system.grid, probes, known=~system.cells)
    by_words = flow_adjoint(system.field, system.states[0], system.grid, words, known=~system.cells)
    early, late = thirds(by_probes.profile[1:].cpu(), system.lengths())
    found.put(
        adjoint_least=by_probes.vanishing,
        adjoint_largest=by_probes.exploding,
        adjoint_early_over_late=early / late,
        controls_without_gradient=by_probes.share_without_gradient,
        word_controls_without_gradient=torch.ones(len(system.requests)),
    )
    for name, adjoint in (("adjoint", by_probes), ("adjoint_of_words", by_words)):
        found.profile(name, TIMES, _at_times(adjoint, system.grid))
    return found


def _at_times(adjoint: Adjoint, grid: Float[Tensor, "points"]) -> Float[Tensor, "times b"]:
    """The profile at the common times, by linear interpolation between the times of the grid."""
    profile, times = adjoint.profile.double().cpu(), torch.tensor(TIMES, dtype=torch.float64)
    upper = torch.searchsorted(grid, times).clamp(1, len(grid) - 1)
    share = (times - grid[upper - 1]) / (grid[upper] - grid[upper - 1])
    return torch.lerp(profile[upper - 1], profile[upper], share[:, None])


def push_figures(system: FlowSystem, settings: Settings) -> Measured:
    """Push the plan on its way, with feedback and with the recorded control; the words are held as they were.

    Figures at each time t: `push_recovered@t` (1 less the gain of feedback; that of replay is 0), `push_flips@t` and
    `push_flips_replay@t` (share of the words that the finished plan tells otherwise).
    """
    found = Measured()
    canvas = (system.lm.model.max_cells, system.lm.model.space.channels)
    push = system.draws(70, canvas, system.states.shape[2]) * system.cells[..., None]
    length = settings.push * system.dimensions.sqrt() / push.flatten(1).norm(dim=1)
    responses = respond(
        system.field,
        system.states[0],
        system.grid,
        push * length[:, None, None],
        times=settings.disturbed_at,
        readout=lambda state: system.readout(state).argmax(-1),
        mask=system.mask,
        known=~system.cells,
    )
    for t, response in zip(settings.disturbed_at, responses, strict=True):
        assert response.feedback_flips is not None and response.replay_flips is not None
        found.put(
            **{
                f"push_recovered@{t:g}": response.recovery,
                f"push_flips@{t:g}": response.feedback_flips,
                f"push_flips_replay@{t:g}": response.replay_flips,
            }
        )
    return found
