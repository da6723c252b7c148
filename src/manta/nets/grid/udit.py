"""U-DiT: a U of attention over downsampled tokens, with a pointwise network that mixes what is near."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.grid.told import Conditioning, Told, as_elements, as_grid
from manta.operators import lattice
from manta.operators.attention import attend, head_width
from manta.operators.downsampled import FIRST, LARGEST
from manta.operators.rotary import rotary_tables, rotate

LEVELS = 3
"""Resolutions of the U."""
MAX_KERNEL = 31
"""Largest side of a depthwise kernel."""


@dataclass(frozen=True, kw_only=True)
class UditConfig:
    """A U of blocks of attention over downsampled tokens. Each part of the paper's ablation is a switch."""

    kind: Literal["udit"] = "udit"
    """Which net this is."""
    width: int | None = None
    """Channels at the finest level, even; 2 and 4 times as many below, 2 times at the last stage. None: the size
    dial's."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage: two on the way down, the middle, two on the way up. None: the size dial's."""
    heads: int | None = None
    """Heads at the finest level, with as many more below as there are channels. None: the size dial's."""
    rate: int = 2
    """Attention is between every `rate`-th element along both axes; 1: between all. A level whose grid does not divide
    by it has 1."""
    mixing: Literal["parallel", "alone", "none"] = "parallel"
    """What is mixed before the tokens are taken apart: a depthwise convolution beside the state itself, the convolution
    alone, or nothing."""
    cosine: bool = True
    """Scores are cosines times a learned temperature; without it products over the root of the width."""
    rotary: bool = True
    """Queries and keys are turned by their places."""
    near: bool = True
    """The pointwise network has depthwise convolutions in it."""
    kernels: tuple[int, ...] = (5, 3, 1)
    """Odd sides of their kernels, the largest first; they are added up, in use as one."""
    stacked: bool = True
    """Each linear map of the pointwise network is two, one after the other, while it is trained, and one in use."""

    def __post_init__(self) -> None:
        if self.width is not None and (self.width < 4 or self.width % 4):
            raise ConfigError(f"width should be a multiple of 4, received {self.width}")
        if self.depths is not None and (len(self.depths) != 2 * LEVELS - 1 or min(self.depths) < 1):
            raise ConfigError(f"depths are {2 * LEVELS - 1} numbers of blocks, each at least 1, received {self.depths}")
        if self.rate < 1:
            raise ConfigError(f"rate should be at least 1, received {self.rate}")
        odd = all(side % 2 and 1 <= side <= MAX_KERNEL for side in self.kernels)
        if not self.kernels or not odd or self.kernels[0] < max(self.kernels):
            raise ConfigError(
                f"kernels are odd sides from 1 to {MAX_KERNEL}, the largest first, received {self.kernels}; "
                "without them set near=false"
            )

    @property
    def merged(self) -> "UditConfig":
        """The shape of a net in which no map is several."""
        return replace(self, stacked=False, kernels=self.kernels[:1])

    def build(self, channels: int, height: int, width: int, *, classes: int, bits: int) -> "UditNet":
        """A freshly initialised net, whose output is zero."""
        return UditNet(self, channels, height, width, classes=classes, bits=bits)


class DownsampledGrid(nn.Module):
    """Attention whose queries, keys and values are every r-th element along both axes: r² phases, each by itself.

    ``u = x + W * x``  (depthwise, 5 × 5)
    ``κ(z_i, z_j) = softmax_j(τ_h cos(R_i q_i, R_j k_j))``  over j in the phase of i,  of u;  τ_h = exp(p_h) ≤ 100

    A grid of n elements takes n²/r² scores instead of n².

    Args:
        dim: channels.
        heads: of which each has an even width.
        rate: r.
        config: the other switches.

    Source: Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers", arXiv 2405.02730.
    """

    def __init__(self, dim: int, heads: int, rate: int, config: UditConfig) -> None:
        super().__init__()
        self.head_dim, self.heads, self.rate = head_width(dim, heads), heads, rate
        self.cosine, self.rotary, self.mixing = config.cosine, config.rotary, config.mixing
        self.mix = nn.Conv2d(dim, dim, 5, padding=2, groups=dim) if config.mixing != "none" else None
        self.qkv = nn.Linear(dim, 3 * dim)
        self.log_temperature = nn.Parameter(torch.full((heads,), math.log(FIRST))) if config.cosine else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """What each element receives from those of its phase; h and w are multiples of r."""
        b, _, height, width = x.shape
        rows, columns = height // self.rate, width // self.rate
        u = x if self.mix is None else self.mix(x) + x if self.mixing == "parallel" else self.mix(x)
        phases = F.pixel_unshuffle(u, self.rate).unflatten(1, (-1, self.rate**2)).permute(0, 2, 3, 4, 1)
        qkv = self.qkv(phases.flatten(2, 3)).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind(0)
        if self.rotary:
            tables = rotary_tables(lattice(rows, columns, x.device), self.head_dim)
            q, k = rotate(q, tables), rotate(k, tables)
        if self.log_temperature is None:
            scale = torch.full((self.heads,), self.head_dim**-0.5, device=x.device)
        else:
            scale = self.log_temperature.clamp_max(math.log(LARGEST)).exp()
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = attend(q, k, v, scale.to(q.dtype)[:, None, None])
        y = self.out(y.transpose(1, 2).flatten(2)).unflatten(0, (b, -1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(y.flatten(1, 2).unflatten(2, (rows, columns)), self.rate)

    def score_flops(self, n: int) -> int:
        """Floating-point operations of scores and weighted sums over a grid of n elements."""
        return 4 * (n // self.rate**2) * n * self.heads * self.head_dim


class NearNetwork(nn.Module):
    """Pointwise network with depthwise convolutions between its linear maps.

    ``y = B (h + (K₅ + K₃ + K₁) * h)``,  ``h = gelu(A x)``

    While it is trained A and B are each two maps, one after the other, and the kernels are three; in use, where no
    gradient is asked for, each is one. What is stored is what is trained, and merging never changes it.

    Args:
        dim: channels.
        config: its switches.
    """

    merges_maps = True
    """Weights of its maps are read and merged in use, so that no map can be put in the place of one."""

    def __init__(self, dim: int, config: UditConfig) -> None:
        super().__init__()
        hidden, self.side = 2 * dim, config.kernels[0]
        self.inner = _linear(dim, dim, hidden, config.stacked)
        self.outer = _linear(hidden, dim, dim, config.stacked)
        kernels = [nn.Conv2d(hidden, hidden, side, padding=side // 2, groups=hidden) for side in config.kernels]
        self.kernels = nn.ModuleList(kernels if config.near else [])
        self._merged: tuple[list[Tensor], list[int]] | None = None

    @property
    def stacked_maps(self) -> bool:
        """Whether several of its maps are one in use."""
        return len(self.inner) > 1 or len(self.kernels) > 1

    def merge(self) -> None:
        """Put one map in the place of each that is two while it is trained."""
        for name, maps in (("inner", self.inner), ("outer", self.outer)):
            with torch.no_grad():
                weight, bias = _merged(maps)
            one = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
            one.weight, one.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(self, name, nn.Sequential(one))
        if len(self.kernels):
            with torch.no_grad():
                weight, bias = self._near()
            whole = nn.Conv2d(len(weight), len(weight), self.side, padding=self.side // 2, groups=len(weight))
            whole.weight, whole.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.kernels = nn.ModuleList([whole])

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The network at each element."""
        if torch.is_grad_enabled() or not self.stacked_maps or not isinstance(self.outer[-1], nn.Conv2d):
            h = F.gelu(self.inner(x))
            h = h + sum(kernel(h) for kernel in self.kernels) if len(self.kernels) else h
            return self.outer(h)
        inner, inner_bias, near, near_bias, outer, outer_bias = (part.to(x.dtype) for part in self.merged())
        h = F.gelu(F.conv2d(x, inner, inner_bias))
        if len(self.kernels):
            h = F.conv2d(h, near, near_bias, padding=self.side // 2, groups=h.shape[1])
        return F.conv2d(h, outer, outer_bias)

    def merged(self) -> list[Tensor]:
        """Weights and biases of the three convolutions that say the same; made anew when the weights have changed."""
        versions = [version for parameter in self.parameters() for version in (parameter._version, id(parameter))]
        if self._merged is None or self._merged[1] != versions:
            with torch.no_grad():
                near, near_bias = self._near()
                near[:, :, self.side // 2, self.side // 2] += 1  # the state itself
                self._merged = [*_merged(self.inner), near, near_bias, *_merged(self.outer)], versions
        return self._merged[0]

    def _near(self) -> tuple[Tensor, Tensor]:
        """One kernel for all."""
        if not len(self.kernels):
            first = next(self.inner.parameters())
            return first.new_zeros(1, 1, self.side, self.side), first.new_zeros(1)
        kernels = [(k.weight, k.bias) for k in self.kernels.children()]
        padded = [F.pad(weight, [(self.side - weight.shape[-1]) // 2] * 4) for weight, _ in kernels]  # pyright: ignore
        return torch.stack(padded).sum(0), torch.stack([bias for _, bias in kernels]).sum(0)  # pyright: ignore


class UditBlock(nn.Module):
    """Attention over downsampled tokens and a pointwise network, each behind a norm and a condition.

    ``x ← x + γ₁ ⊙ attention(α₁ ⊙ norm(x) + β₁)``
    ``x ← x + γ₂ ⊙ network(α₂ ⊙ norm(x) + β₂)``

    The gates γ start at zero, so a fresh block is the identity.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, dim: int, heads: int, rate: int, cond: int, config: UditConfig) -> None:
        super().__init__()
        self.attention = DownsampledGrid(dim, heads, rate, config)
        self.network = NearNetwork(dim, config)
        self.modulation = nn.Linear(cond, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        start = torch.tensor([0.0, 1.0, 0.0]).repeat(2).repeat_interleave(dim)
        self.modulation.bias = nn.Parameter(start)

    def forward(self, x: Float[Tensor, "b d h w"], cond: Float[Tensor, "b e"]) -> Float[Tensor, "b d h w"]:
        """The state after this block."""
        factors = self.modulation(F.silu(cond))[..., None, None].to(x.dtype).chunk(6, 1)
        x = x + factors[2] * self.attention(torch.addcmul(factors[0], _normed(x), factors[1]))
        return x + factors[5] * self.network(torch.addcmul(factors[3], _normed(x), factors[4]))


class UditNet(nn.Module):
    """The U: `net(state, t, told) → what is told of each element`.

    Stages run at full, half and quarter resolution and back; each stage on the way up is given the output of its
    counterpart. Where the grid does not divide by 4 it is filled up with zeros.

    Args:
        config: with width, depths and heads set.
        channels: of the state.
        height: of the grid.
        width: of the grid.
        classes: see `Conditioning`.
        bits: see `Conditioning`.

    Source: Tian et al., arXiv 2405.02730; the attention at each level, see `DownsampledGrid`.
    """

    told_time = True

    def __init__(self, config: UditConfig, channels: int, height: int, width: int, *, classes: int, bits: int) -> None:
        super().__init__()
        assert config.width is not None and config.depths is not None and config.heads is not None, "not resolved"
        self.height, self.width, self.multiple = height, width, 2 ** (LEVELS - 1)
        factors, levels = (1, 2, 4, 2, 2), (0, 1, 2, 1, 0)
        widths = [config.width * factor for factor in factors]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.conditions = nn.ModuleList(Conditioning(width, classes, bits) for width in widths)
        self.stages, self.moves, self.joins = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, (depth, dim) in enumerate(zip(config.depths, widths, strict=True)):
            sides = [-(-side // self.multiple) * self.multiple >> levels[stage] for side in (height, width)]
            rate = config.rate if all(side % config.rate == 0 for side in sides) else 1
            heads = config.heads * factors[stage]
            self.stages.append(nn.ModuleList(UditBlock(dim, heads, rate, dim, config) for _ in range(depth)))
            if stage < LEVELS - 1:
                half = nn.Conv2d(dim, widths[stage + 1] // 4, 3, padding=1, bias=False)
                self.moves.append(nn.Sequential(half, nn.PixelUnshuffle(2)))
            elif stage < len(widths) - 1:
                beside = widths[2 * LEVELS - 3 - stage]
                outer = widths[stage + 1]
                double = nn.Conv2d(dim, 4 * beside, 3, padding=1, bias=False)
                self.moves.append(nn.Sequential(double, nn.PixelShuffle(2)))
                self.joins.append(nn.Conv2d(2 * beside, outer, 1))
        self.last = nn.Linear(widths[-1], 2 * widths[-1])
        self.head = nn.Conv2d(widths[-1], channels, 3, padding=1)
        for part in (self.last, self.head):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)  # pyright: ignore[reportArgumentType]

    def merge(self) -> None:
        """Put one map in the place of each that is several while it is trained: those of `UditConfig.merged`."""
        for part in self.modules():
            if isinstance(part, NearNetwork):
                part.merge()

    def forward(self, state: Float[Tensor, "b n c"], t: Float[Tensor, "b"], told: Told) -> Float[Tensor, "b n c"]:
        """What the net says of each element; of a fresh one zero. Arguments as of `DicNet`."""
        x = self.stem(as_grid(state, self.height, self.width, self.multiple))
        kept: list[Tensor] = []
        condition = None
        for stage, blocks in enumerate(self.stages):
            condition = self.conditions[stage](t, told)
            if stage >= LEVELS:
                x = self.joins[stage - LEVELS](torch.cat([x, kept.pop()], 1))
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, condition)
            if stage < LEVELS - 1:
                kept.append(x)
            if stage < len(self.moves):
                x = self.moves[stage](x)
        assert condition is not None
        shift, scale = self.last(F.silu(condition))[..., None, None].to(x.dtype).chunk(2, 1)
        x = self.head(torch.addcmul(shift, _normed(x), 1 + scale))
        return as_elements(x, self.height, self.width)


def _normed(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """Each element's channels with mean 0 and variance 1."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6).movedim(-1, 1)


def _linear(inner: int, middle: int, outer: int, stacked: bool) -> nn.Sequential:
    """A linear map of each element, as two one after the other if `stacked`."""
    if not stacked:
        return nn.Sequential(nn.Conv2d(inner, outer, 1))
    return nn.Sequential(nn.Conv2d(inner, middle, 1), nn.Conv2d(middle, outer, 1))


def _merged(maps: nn.Module) -> tuple[Tensor, Tensor]:
    """One map, weight and bias, that does what several do one after the other."""
    first, *others = ((each.weight, each.bias) for each in maps.children())
    weight: Any = first[0].flatten(1)  # pyright: ignore[reportCallIssue]
    bias: Any = first[1]
    for matrix, offset in others:
        weight, bias = matrix.flatten(1) @ weight, matrix.flatten(1) @ bias + offset  # pyright: ignore
    return weight[..., None, None], bias
