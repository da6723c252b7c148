"""A small classifier of grids, whose last features tell sets of them apart."""

import itertools

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.nets.grid.told import as_grid


class GridClassifier(nn.Module):
    """Convolutions at three resolutions and a linear map of their mean.

    Args:
        channels: of the state.
        height: of the grid.
        width: of the grid.
        classes: how many there are.
        dim: channels at the finest resolution; there are four times as many features.
    """

    def __init__(self, channels: int, height: int, width: int, classes: int, dim: int = 32) -> None:
        super().__init__()
        self.height, self.width = height, width
        widths = (channels, dim, 2 * dim, 4 * dim)
        self.convs = nn.ModuleList()
        for inner, outer in itertools.pairwise(widths):
            for first in (inner, outer):
                conv = nn.Conv2d(first, outer, 3, padding=1)
                self.convs.append(nn.Sequential(conv, nn.GroupNorm(4, outer), nn.GELU()))
        self.out = nn.Linear(widths[-1], classes)

    def features(self, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b d"]:
        """What the class is read from."""
        x = as_grid(state, self.height, self.width)
        for index, conv in enumerate(self.convs):
            if index in (2, 4):
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            x = conv(x)
        return x.mean((2, 3))

    def forward(self, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b k"]:
        """Logits of the classes."""
        return self.out(self.features(state))
