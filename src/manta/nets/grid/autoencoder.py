"""A small convolutional autoencoder over a grid: fewer elements with more channels, and back."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside the state; of a fresh one nothing is added.

    Args:
        width: channels, a multiple of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(width // 4, width), nn.GroupNorm(width // 4, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The state after this block."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def _stage(width: int, depth: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(depth)]


class GridEncoder(nn.Sequential):
    """A grid with a `factor` times shorter side, each halving with twice the channels.

    Args:
        channels: of the grid.
        out: channels of what is told of each of the fewer elements.
        width: channels at full resolution, a multiple of 4.
        depth: residual blocks of each resolution.
        factor: 2, 4 or 8.
    """

    def __init__(self, channels: int, out: int, *, width: int, depth: int, factor: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), *_stage(width, depth)]
        while factor > 1:
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), *_stage(2 * width, depth)]
            width, factor = 2 * width, factor // 2
        super().__init__(*layers, nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))


class GridDecoder(nn.Sequential):
    """The way back: each doubling with half the channels.

    Args:
        channels: of the fewer elements.
        out: channels of the grid.
        width: channels at full resolution, a multiple of 4.
        depth: residual blocks of each resolution.
        factor: 2, 4 or 8.
    """

    def __init__(self, channels: int, out: int, *, width: int, depth: int, factor: int) -> None:
        widest = width * factor
        layers: list[nn.Module] = [nn.Conv2d(channels, widest, 3, padding=1), *_stage(widest, depth)]
        while widest > width:
            layers += [nn.Conv2d(widest, 2 * widest, 3, padding=1), nn.PixelShuffle(2), *_stage(widest // 2, depth)]
            widest //= 2
        super().__init__(*layers, nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
