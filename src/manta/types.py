"""Small types that several rooms share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

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
    """Elements, such as tokens, that `total` is the mean over, by which batches of one step are weighed; None: all of
    the batch."""


@dataclass(frozen=True)
class Estimate:
    """What a vector field answers in a state."""

    clean: Float[Tensor, "b *event"]
    """Estimate of the clean state, in the shape of the state."""
    aux: Any = None
    """What else the same call told, such as the hidden vectors that words are read from."""
    nfe: int = 1
    """Sequential network calls that it took: 2 of a guided field, 0 of one that answers from memory."""

    @classmethod
    def of(cls, answer: Union[Tensor, "Estimate"]) -> "Estimate":
        """An answer of a field: a bare tensor is the clean state with nothing beside it, from one call."""
        return answer if isinstance(answer, Estimate) else cls(answer)
