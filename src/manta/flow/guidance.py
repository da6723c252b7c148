"""Classifier-free guidance: a field made of two fields."""

from typing import Any

from torch import Tensor

from manta.flow.solvers import Field
from manta.types import Estimate


def guided(field: Field, null_field: Field, guidance_scale: float) -> Field:
    """Extrapolate from the unconditional estimate through the conditional one.

        clean = null + guidance_scale (conditional - null)

    As the velocity is affine in the clean estimate, guiding either is the same.

    Args:
        field: the conditional field.
        null_field: the same field with its condition replaced by the null condition; it may ignore `cond`.
        guidance_scale: 1 = off (the field itself comes back and costs one call), 0 = unconditional, above 1 = guided.

    Returns:
        A field that makes two network calls per estimate; both receive the last *guided* estimate as `self_cond`. What
        the conditional call told beside its estimate stands beside the guided one.

    Source: Ho & Salimans 2022 (arXiv 2207.12598). Other conventions call "off" 0.
    """
    if guidance_scale == 1:
        return field

    def both(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Estimate:
        conditional = Estimate.of(field(state, t, cond=cond, self_cond=self_cond))
        null = Estimate.of(null_field(state, t, cond=cond, self_cond=self_cond))
        clean = null.clean + guidance_scale * (conditional.clean - null.clean)
        return Estimate(clean, conditional.aux, conditional.nfe + null.nfe)

    return both
