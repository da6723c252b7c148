"""Imitation of an image flow, whose answer is a vector field."""

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from manta.families.imitation import Imitation


class FieldImitation(Imitation):
    """Imitation of a net over patches: ``apart = |net − net_source|²``, mean over the channels of all patches.

    The paper compares the predictions too; times are weighed by the task's density alone.
    """

    def apart(self, model: Any, hidden: Float[Tensor, "k d"], source: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """Mean squared distance of what the nets say of each patch."""
        told = cast(Any, self.source).net.head(source)
        return (model.net.head(hidden) - told).float().square().mean()
