"""Small types that several rooms share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of."""

    total: Float[Tensor, ""]
    """What is minimised, with its graph."""
    parts: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Named figures for the log, detached scalars."""
    count: int | None = None
    """Tokens that `total` is the mean over, by which batches of one step are weighed; None: those of the batch."""
