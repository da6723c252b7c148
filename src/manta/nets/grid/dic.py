"""DiC: an hourglass of 3 × 3 convolutions with sparse skips and conditions of each stage's own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.grid.told import Conditioning, Told, as_elements, as_grid

LEVELS = 3
"""Resolutions of the hourglass."""


@dataclass(frozen=True, kw_only=True)
class DicConfig:
    """An hourglass of convolutions. Each part of the paper's ablation is a switch."""

    kind: Literal["dic"] = "dic"
    """Which net this is."""
    width: int | None = None
    """Channels at the finest level, a multiple of 4; 2 and 4 times as many below. None: the size dial's."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage: two on the way down, the middle, two on the way up. None: the size dial's."""
    patch: int = 1
    """Elements of a side that are taken together, as channels, before the first convolution; 1: none."""
    skip_stride: int = 3
    """A skip for every so many blocks, from the last of a stage on; 1: for every one; 0: no skips."""
    hourglass: bool = True
    """Go down and up again; without it all blocks stay at the finest level, with its width, and have no skips."""
    stage_embeddings: bool = True
    """Each level embeds time and class by itself; without it one embedding serves all."""
    mid_block: bool = True
    """The condition enters between the convolutions of a block; without it before the first."""
    gated: bool = True
    """The condition also scales what a block adds."""
    activation: Literal["gelu", "silu"] = "gelu"
    """Of the blocks."""

    def __post_init__(self) -> None:
        if self.width is not None and (self.width < 4 or self.width % 4):
            raise ConfigError(f"width should be a multiple of 4, received {self.width}")
        if self.depths is not None and (len(self.depths) != 2 * LEVELS - 1 or min(self.depths) < 1):
            raise ConfigError(f"depths are {2 * LEVELS - 1} numbers of blocks, each at least 1, received {self.depths}")
        if self.depths is not None and self.skip_stride and self.hourglass:
            for down, up in zip(self.depths[: LEVELS - 1], self.depths[: LEVELS - 1 : -1], strict=True):
                if len(saved_blocks(down, self.skip_stride)) != len(joined_blocks(up, self.skip_stride)):
                    raise ConfigError(
                        f"{down} blocks on the way down leave another number of skips than {up} on the way up take; "
                        "make them equal, or set skip_stride=0"
                    )
        if self.patch < 1:
            raise ConfigError(f"patch should be at least 1, received {self.patch}")
        if self.skip_stride < 0:
            raise ConfigError(f"skip_stride should be 0 or more, received {self.skip_stride}")

    def build(self, channels: int, height: int, width: int, *, classes: int, bits: int) -> "DicNet":
        """A freshly initialised net, whose output is zero."""
        return DicNet(self, channels, height, width, classes=classes, bits=bits)


def saved_blocks(depth: int, stride: int) -> list[int]:
    """Blocks of a stage on the way down whose output is kept: every `stride`-th, counted back from the last."""
    return [i for i in range(depth) if stride and (depth - 1 - i) % stride == 0]


def joined_blocks(depth: int, stride: int) -> list[int]:
    """Blocks of a stage on the way up that are given what was kept: every `stride`-th from the first."""
    return [i for i in range(depth) if stride and i % stride == 0]


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions with a condition between them.

    ``h = W₁ * a(norm(x))``
    ``x ← skip(x) + γ ⊙ W₂ * a(α ⊙ norm(h) + β)``    β, α, γ from the condition

    What a fresh block adds is zero.

    Args:
        inner: channels that come in.
        outer: channels that go out; `skip` is a 1 × 1 convolution where they differ.
        dim: width of the condition.
        config: its switches.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, inner: int, outer: int, dim: int, config: DicConfig) -> None:
        super().__init__()
        self.mid_block, self.gated = config.mid_block, config.gated
        self.activate = F.gelu if config.activation == "gelu" else F.silu
        self.norm1, self.norm2 = nn.GroupNorm(_groups(inner), inner), nn.GroupNorm(_groups(outer), outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()
        told = outer if config.mid_block else inner
        self.widths = (told, told, outer) if config.gated else (told, told)
        self.modulation = nn.Linear(dim, sum(self.widths))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.modulation.weight)
        start = torch.cat([torch.full((width,), float(i > 0)) for i, width in enumerate(self.widths)])
        self.modulation.bias = nn.Parameter(start)

    def forward(self, x: Float[Tensor, "b i h w"], cond: Float[Tensor, "b d"]) -> Float[Tensor, "b o h w"]:
        """The state after this block."""
        shift, scale, *gate = self.modulation(F.silu(cond))[..., None, None].to(x.dtype).split(self.widths, 1)
        h = self.norm1(x)
        h = self.conv1(self.activate(h if self.mid_block else torch.addcmul(shift, h, scale)))
        h = self.norm2(h)
        h = self.conv2(self.activate(torch.addcmul(shift, h, scale) if self.mid_block else h))
        return self.skip(x) + (h * gate[0] if gate else h)


class DicNet(nn.Module):
    """The hourglass: `net(state, t, told) → what is told of each element`.

    Stages run at full, half and quarter resolution and back. A stage on the way down keeps the outputs of every third
    block, and one on the way up is given them in turn, the last first. Where the grid does not divide by 4 it is filled
    up with zeros.

    Args:
        config: with width and depths set.
        channels: of the state.
        height: of the grid.
        width: of the grid.
        classes: see `Conditioning`.
        bits: see `Conditioning`.

    Source: Tian et al., "DiC: Rethinking Conv3x3 Designs in Diffusion Models", arXiv 2501.00603.
    """

    told_time = True

    def __init__(self, config: DicConfig, channels: int, height: int, width: int, *, classes: int, bits: int) -> None:
        super().__init__()
        assert config.width is not None and config.depths is not None, "the shape is not resolved"
        self.height, self.width = height, width
        self.patch = config.patch
        self.multiple = config.patch * (2 ** (LEVELS - 1) if config.hourglass else 1)
        inner = channels * config.patch**2
        factors = (1, 2, 4, 2, 1) if config.hourglass else (1,) * 5
        widths = [config.width * factor for factor in factors]
        levels = (0, 1, 2, 1, 0) if config.hourglass and config.stage_embeddings else (0,) * 5
        self.levels = levels
        dims = {level: widths[levels.index(level)] if len(set(levels)) > 1 else 2 * config.width for level in levels}
        self.conditions = nn.ModuleList(Conditioning(dims[level], classes, bits) for level in sorted(set(levels)))
        stride = config.skip_stride if config.hourglass else 0
        self.stem = nn.Conv2d(inner, widths[0], 3, padding=1)
        self.stages, self.moves = nn.ModuleList(), nn.ModuleList()
        self.saved: list[list[int]] = []
        self.joined: list[list[int]] = []
        for stage, (depth, outer) in enumerate(zip(config.depths, widths, strict=True)):
            down, up = stage < LEVELS - 1, stage >= LEVELS
            self.saved.append(saved_blocks(depth, stride) if down else [])
            self.joined.append(joined_blocks(depth, stride) if up else [])
            self.stages.append(
                nn.ModuleList(
                    ConvBlock(outer * (2 if i in self.joined[stage] else 1), outer, dims[levels[stage]], config)
                    for i in range(depth)
                )
            )
            if stage < len(widths) - 1:
                self.moves.append(_move(outer, widths[stage + 1], down) if config.hourglass else nn.Identity())
        self.norm = nn.GroupNorm(1, widths[-1], affine=False)
        self.last = nn.Linear(dims[levels[-1]], 2 * widths[-1])
        self.head = nn.Conv2d(widths[-1], inner, 3, padding=1)
        for part in (self.last, self.head):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, state: Float[Tensor, "b n c"], t: Float[Tensor, "b"], told: Told) -> Float[Tensor, "b n c"]:
        """What the net says of each element; of a fresh one zero.

        Args:
            state: elements of the grid, row by row.
            t: time of each row.
            told: class and code.
        """
        conditions = [condition(t, told) for condition in self.conditions]
        grid = as_grid(state, self.height, self.width, self.multiple)
        x = self.stem(F.pixel_unshuffle(grid, self.patch))
        kept: list[Tensor] = []
        for stage, blocks in enumerate(self.stages):
            for i, block in enumerate(blocks):  # pyright: ignore[reportArgumentType]
                if i in self.joined[stage]:
                    x = torch.cat([x, kept.pop()], 1)
                x = block(x, conditions[self.levels[stage]])
                if i in self.saved[stage]:
                    kept.append(x)
            if stage < len(self.moves):
                x = self.moves[stage](x)
        shift, scale = self.last(F.silu(conditions[self.levels[-1]]))[..., None, None].to(x.dtype).chunk(2, 1)
        x = self.head(torch.addcmul(shift, self.norm(x), 1 + scale))
        return as_elements(F.pixel_shuffle(x, self.patch), self.height, self.width)


def _groups(channels: int) -> int:
    """Groups of a norm: at least 4 channels each, 32 groups at most."""
    return max(g for g in range(1, min(32, channels // 4) + 1) if channels % g == 0)


def _move(inner: int, outer: int, down: bool) -> nn.Module:
    """Halve the grid, or double it; all values are kept by moving them between places and channels."""
    if down:
        return nn.Sequential(nn.Conv2d(inner, outer // 4, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
    return nn.Sequential(nn.Conv2d(inner, 4 * outer, 3, padding=1, bias=False), nn.PixelShuffle(2))
