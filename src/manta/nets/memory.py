"""The prompt's encoder: embedded tokens in, a memory that every other net reads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.nets.trunk import Trunk
from manta.operators.context import OperatorConfig, OperatorContext, line


class MemoryEncoder(nn.Module):
    """Encodes a prompt, headed by one element that is always there, so that an empty prompt has a memory too.

    Args:
        dim: width.
        depth: blocks.
        operator: how the prompt's elements act on each other.
        heads: heads, for the trunk.
        kinds: number of heading elements to choose from, e.g. a tag of the kind of text asked for.
    """

    def __init__(self, dim: int, depth: int, operator: OperatorConfig, *, heads: int, kinds: int) -> None:
        super().__init__()
        self.heading = nn.Embedding(kinds, dim)
        nn.init.normal_(self.heading.weight, std=0.1)
        self.trunk = Trunk(dim, depth, (operator,), heads=heads)

    def forward(
        self, states: Float[Tensor, "b p d"], mask: Bool[Tensor, "b p"], kind: Tensor, *, encode: bool = True
    ) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """The memory, m = p + 1, and which of its elements are real.

        Args:
            states: what is to be remembered, such as an embedded prompt; p may be 0.
            mask: True at its real elements.
            kind: which heading element each row has, int64 "b".
            encode: False leaves the elements as they are, which costs no call of the net.
        """
        heading = self.heading(kind)[:, None]
        x = torch.cat([heading, states.to(heading.dtype)], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]) if mask.shape[1] else mask.new_ones(len(kind), 1), mask], 1)
        if not encode:
            return self.trunk.norm(x), mask
        return self.trunk(x, OperatorContext(line(x.shape[1], x.device), mask)), mask
