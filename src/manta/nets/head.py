"""The readout: what a hidden vector says of the words."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from manta.nets.integers import IntegerEmbedding


class Head(nn.Module):
    """Logits of a hidden vector by a table, a vector a class: ``logits_v = <hidden, table_v>``.

    The table is the one that classes are embedded by, and remains its owner's: the head has no weights of its own and
    adds no name to what is stored.

    Args:
        table: embeddings of the classes.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._shared = (table,)  # in a tuple, or the table would be registered, and stored, a second time

    def forward(self, hidden: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape v"]:
        """Logits in the dtype of the hidden vectors, or of autocast."""
        (table,) = self._shared
        if isinstance(table, IntegerEmbedding):
            return table.logits(hidden)
        return F.linear(hidden, table.weight.to(hidden.dtype))
