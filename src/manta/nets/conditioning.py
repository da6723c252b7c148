"""How time enters a net: an embedding, and the modulation that all blocks share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.nets.blocks import MODULATIONS


class TimeEmbedding(nn.Module):
    """A vector for a flow time, or for each of many.

    ``e(t) = W₂ silu(W₁ [cos(ω_k t), sin(ω_k t)]_k)`` with ω from 1 to 32 radians in equal ratios: a field
    may change within a tenth of the path, and does not ripple between the steps of a solver.

    Args:
        dim: width of the embedding.
        frequencies: number of frequencies.
        silent: begin as zero at every time.
    """

    omega: Tensor

    def __init__(self, dim: int, frequencies: int = 64, *, silent: bool = False) -> None:
        super().__init__()
        self.register_buffer("omega", torch.logspace(0, 1.5, frequencies), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), last := nn.Linear(dim, dim))
        if silent:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Embed each time.

        Args:
            time: in [0, 1], 0 = noise, 1 = data; any shape.
        """
        angles = time[..., None] * self.omega
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class SharedModulation(nn.Module):
    """The modulation all blocks share, from an embedding of the time; zero at the start.

    ``modulation = W silu(e) + c``

    Args:
        dim: width of the embedding and of the blocks.

    Source: adaLN-single: Chen et al., "PixArt-α", arXiv 2310.00426.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, MODULATIONS * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Float[Tensor, "b *elements d"]) -> Float[Tensor, "b n 6*d"]:
        """Six factors a channel, to be given to every ``Block``.

        Args:
            embedding: "b d" for one time a row, which gives "b 1 6d", or "b n d" for one an element.
        """
        if embedding.ndim == 2:
            embedding = embedding.unsqueeze(1)
        return self.linear(F.silu(embedding))
