"""What nets over a grid are told besides the state: the time, a class and a code, as one vector."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.nets.conditioning import TimeEmbedding


@dataclass(frozen=True)
class Told:
    """What a net is told of each row besides state and time."""

    label: Int64[Tensor, "b"] | None = None
    """Number of a class, or the number of classes itself for none; None where a net knows no classes."""
    code: Float[Tensor, "b k"] | None = None
    """Bits ±1 of an adaptive condition, 0 for none; None where a net takes none."""

    def rows(self, chosen: Tensor) -> "Told":
        """The same of some rows."""
        return replace(
            self,
            label=None if self.label is None else self.label[chosen],
            code=None if self.code is None else self.code[chosen],
        )


class Conditioning(nn.Module):
    """Time, class and code as one vector.

    ``e = time(t) + table[label] + C code``

    Args:
        dim: width of the vector.
        classes: how many there are; the table has one row more, for none. 0: there are none.
        bits: of a code; 0: there is none.

    Source: the code: Liu et al., "Learning Quantized Adaptive Conditions for Diffusion Models", arXiv 2409.17487, of
        which the abstract could be had: where it enters is our reconstruction.
    """

    def __init__(self, dim: int, classes: int, bits: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(dim)
        self.table = nn.Embedding(classes + 1, dim) if classes else None
        self.code = nn.Linear(bits, dim, bias=False) if bits else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, t: Float[Tensor, "b"], told: Told) -> Float[Tensor, "b d"]:
        """The vector of each row.

        Args:
            t: flow time of each row.
            told: a label if and only if there are classes, and a code if and only if there are bits.
        """
        assert (told.label is None) == (self.table is None), "a label goes with classes"
        assert (told.code is None) == (self.code is None), "a code goes with bits"
        vector = self.time(t)
        if self.table is not None and told.label is not None:
            vector = vector + self.table(told.label)
        if self.code is not None and told.code is not None:
            vector = vector + self.code(told.code.to(vector.dtype))
        return vector


def as_grid(
    state: Float[Tensor, "b n c"], height: int, width: int, multiple: int = 1
) -> Float[Tensor, "b c height2 width2"]:
    """Elements that lie row by row as a grid, with zeros beyond its lower and right edges to a multiple of a size.

    On CPU it is laid out channel by channel: norms over groups of channels are then four times as fast, which gains
    more than convolutions lose.
    """
    grid = state.transpose(1, 2).unflatten(2, (height, width))
    below, right = -height % multiple, -width % multiple
    if below or right:
        grid = nn.functional.pad(grid, (0, right, 0, below))
    return grid.contiguous(memory_format=torch.channels_last) if grid.is_cuda else grid.contiguous()


def as_elements(grid: Float[Tensor, "b c h w"], height: int, width: int) -> Float[Tensor, "b n c"]:
    """The inverse of `as_grid`: what was filled up is cut off."""
    return grid[:, :, :height, :width].flatten(2).transpose(1, 2)
