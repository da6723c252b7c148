"""DiT: attention between all patches of a grid at one resolution, the reference of its kind."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.conditioning import SharedModulation
from manta.nets.grid.told import Conditioning, Told, as_elements, as_grid
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorChoice, OperatorContext, PyramidConfig, lattice

ON_GRIDS = ("attention", "windowed", "pyramid_conv")
"""Operators that follow both axes of a grid."""


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """A stack of blocks over patches."""

    kind: Literal["dit"] = "dit"
    """Which net this is."""
    width: int | None = None
    """Of the blocks; None: the size dial's."""
    depth: int | None = None
    """Blocks; None: the size dial's."""
    heads: int | None = None
    """Heads; None: the size dial's."""
    patch: int | None = None
    """Elements of a patch's side; None: 2, and 1 of latents."""
    operator: OperatorChoice = field(default_factory=AttentionConfig)
    """How patches act on each other."""
    operators: tuple[OperatorChoice, ...] = ()
    """Operators of the blocks one by one, from the first on, instead of `operator`; where there are fewer than blocks,
    they are repeated."""

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch < 1:
            raise ConfigError(f"patch should be at least 1, received {self.patch}")
        if others := [each.kind for each in self.mix if each.kind not in ON_GRIDS]:
            raise ConfigError(f"{others[0]} follows one axis, and a grid has two; choose one of {', '.join(ON_GRIDS)}")
        if self.depth is not None and len(self.operators) > self.depth:
            raise ConfigError(f"operators holds {len(self.operators)}, and there are {self.depth} blocks")

    @property
    def mix(self) -> tuple[OperatorChoice, ...]:
        """Operators of the blocks, repeated where there are fewer."""
        return self.operators or (self.operator,)

    def build(self, channels: int, height: int, width: int, *, classes: int, bits: int) -> "DitNet":
        """A freshly initialised net, whose output is zero."""
        return DitNet(self, channels, height, width, classes=classes, bits=bits)


class DitNet(nn.Module):
    """Blocks over patches: `net(state, t, told) → what is told of each element`.

    Args:
        config: with width, depth and heads set.
        channels: of the state.
        height: of the grid.
        width: of the grid.
        classes: see `Conditioning`.
        bits: see `Conditioning`.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, with the modulation of
        PixArt-α, rotary places along both axes and normalised queries and keys.
    """

    told_time = True

    def __init__(self, config: DitConfig, channels: int, height: int, width: int, *, classes: int, bits: int) -> None:
        super().__init__()
        assert config.width is not None and config.depth is not None and config.heads is not None, "not resolved"
        self.height, self.width, self.patch = height, width, config.patch or 2
        self.embed = nn.Linear(channels * self.patch**2, config.width)
        self.condition = Conditioning(config.width, classes, bits)
        self.modulation = SharedModulation(config.width)
        mix = [replace(each, axes=2) if isinstance(each, PyramidConfig) else each for each in config.mix]
        self.trunk = Trunk(config.width, config.depth, mix, heads=config.heads, modulation=True)
        self.head = nn.Linear(config.width, channels * self.patch**2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, state: Float[Tensor, "b n c"], t: Float[Tensor, "b"], told: Told) -> Float[Tensor, "b n c"]:
        """What the net says of each element; of a fresh one zero. Arguments as of `DicNet`."""
        grid = as_grid(state, self.height, self.width, self.patch)
        rows, columns = grid.shape[2] // self.patch, grid.shape[3] // self.patch
        x = self.embed(F.pixel_unshuffle(grid, self.patch).flatten(2).transpose(1, 2))
        context = OperatorContext(
            lattice(rows, columns, x.device), None, t[:, None].expand(x.shape[:2]), grid=(rows, columns)
        )
        x = self.trunk(x, context, modulation=self.modulation(self.condition(t, told)))
        out = self.head(x).transpose(1, 2).unflatten(2, (rows, columns))
        return as_elements(F.pixel_shuffle(out, self.patch), self.height, self.width)
