"""An image flow before the diagnostics of control: its way, its field, its adjoint, and what it makes of a push."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from manta.control import (
    flow_adjoint,
    follow,
    path_length,
    random_probes,
    step_lengths,
    straightness,
    strain,
    total_curvature,
    unit_probes,
    velocity_of,
    vorticity,
)
from manta.control.trajectory import kinetic_energy
from manta.families.image_flow import DrawRequest, ImageFlow
from manta.flow import Disturbance, disturbance_errors, solve
from manta.flow.path import divide_or_zero
from manta.metrics.bootstrap import bootstrap_mean
from manta.runtime import make_generator

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where strain and rotation are measured."""
PUSHES = (0.25, 0.5, 0.75)
"""When the state is pushed."""
PUSH = 0.25
"""Size of a push a dimension, in units of the state, whose noise has 1."""
ITERATIONS, PROBES = 12, 2
"""Products of the power iteration for strain, an estimate from below; probes of rotation and adjoint."""
FINE = 64
"""Steps of the way whose curvature is measured."""

MEANING = {
    "bend": "mean over the way of |(end - start) - velocity|^2 a dimension: 0 is straight at an even pace",
    "crookedness": "share of the motion that does not lead from start to end, 0 is straight",
    "curvature": "sum of the angles between steps, radians",
    "path_length": "length of the way over the root of its dimensions",
    "peak_strain": "fastest growth of a small error on the way, 1/t",
    "vorticity_share": "share of rotation in the field's derivative; the exact field has none",
    "adjoint_start": "size of the end's derivative by the start, over that by the end itself",
    "recovery": "what is left at the end of a push, controlled anew, over what is left under the recorded control",
}
"""What each figure says."""

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ImageDiagnosis:
    """What was measured of an image flow."""

    figures: dict[str, tuple[float, float, float]]
    """Mean over the images, and its limits at 95%, by name; see `MEANING`."""
    profiles: dict[str, list[tuple[float, float]]]
    """Times and means along the way, by name."""
    trajectories: UInt8[np.ndarray, "b k h w c"]
    """Clean images as estimated at each step, of a few images."""


def diagnose_images(
    flow: ImageFlow, *, num: int = 16, num_steps: int = 8, seed: int = 0, tell: Told = lambda what, done, total: None
) -> ImageDiagnosis:
    """Measure an image flow on a few images, one of each class in turn.

    Args:
        flow: the model.
        num: images, at least 2.
        num_steps: of the way that images are drawn by; curvature is measured on a finer one.
        seed: of the first image; all else is drawn from it too.
        tell: takes what is done.
    """
    classes = len(flow.images.classes)
    requests = [DrawRequest(label=i % classes if classes else None, seed=seed + i) for i in range(num)]
    noise, told, _ = flow.begin(requests)
    field: Any = flow.model.act
    grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    parts = (
        lambda: _way(field, noise, told),
        lambda: _field(field, noise, told, seed),
        lambda: _adjoint(field, noise, told, grid, seed),
        lambda: _pushes(field, noise, told, grid, seed),
    )
    values: dict[str, Tensor] = {}
    profiles: dict[str, list[tuple[float, float]]] = {}
    for index, part in enumerate(parts):
        tell("parts of the diagnosis", index, len(parts))
        found, along = part()
        values |= found
        profiles |= along
    generator = make_generator(seed)
    figures = {}
    for name, each in values.items():
        mean = bootstrap_mean(each.detach().cpu().double(), generator=generator)
        figures[name] = (mean.value, mean.low, mean.high)
    few = min(6, num)
    with torch.no_grad():
        steps = list(solve(field, noise[:few], grid, cond=told.rows(torch.arange(few))))
    shown = np.stack([flow.images_of(step.clean) for step in steps], 1)
    return ImageDiagnosis(figures=figures, profiles=profiles, trajectories=shown)


def _way(field: Any, noise: Tensor, told: Any) -> tuple[dict[str, Tensor], dict[str, list[tuple[float, float]]]]:
    """Geometry of the way on a fine grid."""
    grid = torch.linspace(0, 1, FINE + 1, dtype=torch.float64)
    states = follow(field, noise, grid, cond=told)
    spans = grid.diff().to(states)[:, None, None, None]
    velocities, whole = states.diff(dim=0) / spans, states[-1] - states[0]
    bends = (whole - velocities).square().mean((2, 3))
    energy = kinetic_energy(states, grid)
    found = {
        "bend": bends.mean(0),
        "crookedness": divide_or_zero(straightness(states, grid), 2 * energy),
        "curvature": total_curvature(states),
        "path_length": path_length(step_lengths(states)) / noise[0].numel() ** 0.5,
    }
    places = range(0, FINE, FINE // 16)
    return found, {"bend": [(float(grid[k]), float(bends[k].mean())) for k in places]}


def _field(
    field: Any, noise: Tensor, told: Any, seed: int
) -> tuple[dict[str, Tensor], dict[str, list[tuple[float, float]]]]:
    """Stiffness and rotation of the field on the way."""
    grid = torch.tensor([0.0, *TIMES], dtype=torch.float64)
    states = follow(field, noise, grid, cond=told)[1:]
    generator = make_generator(seed + 1)
    strains, spins, wholes = [], [], []
    for t, state in zip(TIMES, states, strict=True):
        here = torch.full((len(state),), t, device=state.device)
        strains.append(
            strain(
                lambda x, at: field(x, at, cond=told).clean,
                state,
                here,
                generator=generator,
                num_iterations=ITERATIONS,
                tolerance=0.0,
            )
        )
        probes = random_probes(state, PROBES, generator)
        turned = vorticity(velocity_of(field, cond=told), state, here, probes)
        spins.append(turned.vorticity)
        wholes.append(turned.jacobian)
    grown, spin, whole = torch.stack(strains), torch.stack(spins), torch.stack(wholes)
    profiles = {
        "strain": [(t, float(each.mean())) for t, each in zip(TIMES, grown, strict=True)],
        "vorticity_share": [
            (t, float(each.mean())) for t, each in zip(TIMES, divide_or_zero(spin, whole), strict=True)
        ],
    }
    return {"peak_strain": grown.amax(0), "vorticity_share": divide_or_zero(spin.sum(0), whole.sum(0))}, profiles


def _adjoint(
    field: Any, noise: Tensor, told: Any, grid: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, list[tuple[float, float]]]]:
    """How far the end can be steered from earlier states."""
    probes = unit_probes(noise, PROBES, make_generator(seed + 2))
    profile = flow_adjoint(field, noise, grid, probes, cond=told).profile
    along = [(float(t), float(each.mean())) for t, each in zip(grid, profile, strict=True)]
    return {"adjoint_start": profile[0]}, {"adjoint": along}


def _pushes(
    field: Any, noise: Tensor, told: Any, grid: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, list[tuple[float, float]]]]:
    """What is left of a push at the end, under feedback over under replay."""
    generator = make_generator(seed + 3)
    pushes = [Disturbance(t, PUSH * torch.randn(noise.shape, generator=generator).to(noise)) for t in PUSHES]
    with torch.no_grad():
        errors = disturbance_errors(field, noise, grid, pushes, cond=told)
    ratios = torch.stack([divide_or_zero(each.feedback, each.replay) for each in errors])
    along = [(each.t, float(ratio.mean())) for each, ratio in zip(errors, ratios, strict=True)]
    return {"recovery": ratios.mean(0)}, {"recovery": along}
