"""Escape from repetition (ACE): what is fed back is moved away from the direction in which texts repeat."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError
from manta.flow.solvers import Field
from manta.types import Estimate


def repetition_direction(
    feedback: Float[Tensor, "n c"], repetition: Float[Tensor, "n"]
) -> tuple[Float[Tensor, "c"], float]:
    """Contrast the feedback of the texts that repeat most with that of those that repeat least.

        direction = unit(mean of feedback over the upper third - mean over the lower third),   by repetition

    Args:
        feedback: of each text the clean estimates that were fed back, averaged over positions and calls.
        repetition: how much each text repeats, such as `metrics.repeated_share`; three texts or more.

    Returns:
        The direction, of length 1, and the gap: mean repetition of the upper third less that of the lower one.

    Raises:
        DataError: fewer than three texts, or no gap: nothing repeats, or everything alike.

    Source: Attractor-Contrast-Escape, Zhang et al. 2026 (arXiv 2607.00588; its abstract and the README of its code).
    """
    third = len(repetition) // 3
    if third < 1:
        raise DataError(f"a direction of repetition takes three texts or more, received {len(repetition)}")
    order = repetition.argsort(stable=True)
    lower, upper = order[:third], order[-third:]
    gap = (repetition[upper].mean() - repetition[lower].mean()).item()
    contrast = feedback[upper].mean(0) - feedback[lower].mean(0)
    if gap <= 0 or not contrast.any():
        raise DataError(
            f"the {len(repetition)} texts do not differ in repetition (all repeat {repetition.mean().item():.1%}), so "
            "there is no direction to move away from; leave the escape out"
        )
    return torch.nn.functional.normalize(contrast, dim=0), gap


def escaping(field: Field, direction: Float[Tensor, "c"], scale: float) -> Field:
    """Move what is fed back away from a direction.

        self_cond <- self_cond - scale direction,   at every position and call

    State and estimate stay as they are: only what the field is told of its last estimate changes.

    Args:
        field: the vector field, guided or not.
        direction: of repetition, of length 1.
        scale: in units of the state, 0 = off (the field itself comes back).

    Source: as `repetition_direction`.
    """
    if scale == 0:
        return field
    shift = scale * direction

    def moved(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Tensor | Estimate:
        return field(state, t, cond=cond, self_cond=None if self_cond is None else self_cond - shift.to(self_cond))

    return moved
