"""The flow: path, time density, objectives, solvers, guidance and closed-loop control, all on callables."""

from manta.flow.closed_form import MixtureField, mixture_field
from manta.flow.closed_loop import (
    Controls,
    Disturbance,
    DisturbanceError,
    disturbance_errors,
    feedback,
    hold,
    record,
    replay,
)
from manta.flow.distillation import DistillationConfig, landing_target
from manta.flow.escape import escaping, repetition_direction
from manta.flow.guidance import guided
from manta.flow.objective import (
    FlowObjectiveConfig,
    expected_embedding,
    terminal_cross_entropy,
    velocity_matching,
)
from manta.flow.path import LinearPath, log_noise_ratio, time_of_log_noise_ratio
from manta.flow.solvers import (
    SOLVERS,
    SolverState,
    euler,
    heun,
    per_request_noise,
    renoise,
    solve,
    steps_within,
)
from manta.flow.time_density import KINDS as TIME_DENSITIES
from manta.flow.time_density import TimeDensity, TimeDensityConfig, implied_likelihood

__all__ = [
    "SOLVERS",
    "TIME_DENSITIES",
    "Controls",
    "DistillationConfig",
    "Disturbance",
    "DisturbanceError",
    "FlowObjectiveConfig",
    "LinearPath",
    "MixtureField",
    "SolverState",
    "TimeDensity",
    "TimeDensityConfig",
    "disturbance_errors",
    "escaping",
    "euler",
    "expected_embedding",
    "feedback",
    "guided",
    "heun",
    "hold",
    "implied_likelihood",
    "landing_target",
    "log_noise_ratio",
    "mixture_field",
    "per_request_noise",
    "record",
    "renoise",
    "repetition_direction",
    "replay",
    "solve",
    "steps_within",
    "terminal_cross_entropy",
    "time_of_log_noise_ratio",
    "velocity_matching",
]
