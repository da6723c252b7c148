"""Attention over downsampled tokens: every r-th element attends to every r-th, after each was mixed with its next."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num, Shaped
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.operators.attention import ALIKE, attend, check_heads, check_positive, head_width, mask_bias
from manta.operators.context import HEADS, Cache, Operator, OperatorContext
from manta.operators.depthwise import depthwise
from manta.operators.rotary import BASE, rotary_tables, rotate

LARGEST, FIRST = 100.0, 10.0
"""Largest temperature of the cosines, and that at first."""


@dataclass(frozen=True, kw_only=True)
class DownsampledConfig:
    """Cosine attention within phases of every r-th element."""

    kind: Literal["downsampled"] = "downsampled"
    """Which operator this is."""

    heads: int | None = None
    """Number of heads; divides the width, and leaves each head an even one. None: the model's."""

    rate: int = 2
    """r: scores are computed between elements that lie a multiple of r apart; 1 is attention between all."""

    rotary_base: float = BASE
    """Base of the rotary angles."""

    def __post_init__(self) -> None:
        check_heads(self.heads)
        check_positive("rate", self.rate)

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "DownsampledAttention":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        heads = heads if self.heads is None else self.heads
        return DownsampledAttention(dim, heads, self.rate, causal=causal, rotary_base=self.rotary_base)


class DownsampledAttention(Operator):
    """Attention whose queries, keys and values are every r-th element: r phases, apart from each other.

    ``u = x + W * x``  (depthwise, 2r − 1 elements wide, or those before if causal)
    ``κ(z_i, z_j) = softmax_j(τ_h cos(R_i q_i, R_j k_j))``  over j ≡ i mod r,  of u;  τ_h = exp(p_h) ≤ 100

    Phases meet through the mixing before. A row of n elements takes n²/r scores instead of n². The phase of an element
    is its number in the row. One element more of a causal row is computed from the states that its mixing reaches and
    from the keys and values of its phase, which are kept; a longer span computes the row up to its end anew.

    Args:
        dim: width of the state.
        heads: number of heads.
        rate: r.
        causal: let each position see itself and earlier ones only.
        rotary_base: see ``rotary_tables``.

    Raises:
        ConfigError: the width does not split into heads of even width.

    Source: Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers", arXiv 2405.02730, along one
        axis.
    """

    def __init__(self, dim: int, heads: int, rate: int, *, causal: bool = False, rotary_base: float = BASE) -> None:
        super().__init__()
        self.head_dim = head_width(dim, heads)
        self.heads, self.rate, self.causal, self.rotary_base = heads, rate, causal, rotary_base
        self.mixing = nn.Parameter(torch.empty(dim, 2 * rate - 1).uniform_(-1, 1) * (2 * rate - 1) ** -0.5)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.log_temperature = nn.Parameter(torch.full((heads,), math.log(FIRST)))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """What each element receives from those of its phase; the state itself, as far as it is seen, is kept, and of a
        causal row keys and values.

        Raises:
            ConfigError: the elements lie along several axes.
        """
        if context.axes > 1:
            raise ConfigError(f"a phase follows one axis, received {context.axes}; choose attention")
        seen = context.length
        if cache is not None:
            seen = context.stop if self.causal else context.length
            lone = self.causal and x.shape[1] == 1
            x = cache.renew("state", x, context, seen)
            if lone:
                return self._last(x, context, cache)
        real = None if context.mask is None else context.mask[:, :seen]
        u = self._mixed(x if real is None else x * real[..., None].to(x.dtype))
        q, k, v = self._turned(u, context.coordinates[..., :seen, :])
        if cache is not None and self.causal:
            kept = torch.stack([k, v])[..., context.start : context.stop, :]
            cache.renew("keys and values", kept, context, seen)
        q, k, v = (self._phases(part) for part in (q, k, v))
        y = attend(q, k, v, self._temperature(q), self._bias(real, x))
        return self.out(self._row(y, seen))[:, context.start : context.stop]

    def _last(self, x: Float[Tensor, "b n d"], context: OperatorContext, cache: Cache) -> Float[Tensor, "b 1 d"]:
        """What the last element of a causal row receives from those of its phase, itself among them."""
        here, n = context.start, x.shape[1]
        phase = slice(here % self.rate, n, self.rate)
        near = slice(max(0, n - 2 * self.rate + 1), n)  # as far as the mixing reaches back
        x = x[:, near] if context.mask is None else x[:, near] * context.mask[:, near, None].to(x.dtype)
        q, k, v = self._turned(self._mixed(x)[:, -1:], context.coordinates[..., here:n, :])
        k, v = cache.renew("keys and values", torch.stack([k, v]), context, n)[..., phase, :]
        bias = None if context.mask is None else mask_bias(context.mask[:, None, None, phase])
        return self.out(attend(q, k, v, self._temperature(q), bias).transpose(1, 2).flatten(2))

    def _turned(
        self, u: Float[Tensor, "b k d"], coordinates: Num[Tensor, "*rows k 1"]
    ) -> tuple[Float[Tensor, "b h k c"], Float[Tensor, "b h k c"], Float[Tensor, "b h k c"]]:
        """Queries and keys of unit length, turned by their places, and values."""
        q, k, v = self.qkv(u).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        tables = rotary_tables(coordinates, self.head_dim, self.rotary_base)
        tables = type(tables)(*(table.unsqueeze(-3) for table in tables))
        q, k = (rotate(F.normalize(part, dim=-1), tables) for part in (q, k))
        return q, k, v

    def _temperature(self, like: Tensor) -> Float[Tensor, "h 1 1"]:
        """The factor of each head's cosines."""
        return self.log_temperature.clamp_max(math.log(LARGEST)).exp().to(like.dtype)[:, None, None]

    def _mixed(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Each element with what is near it, a channel by itself."""
        return x + depthwise(x, self.mixing, before=(2 * self.rate - 2) if self.causal else self.rate - 1)

    def _room(self, length: int) -> int:
        """Elements of so many phases that sums over each are not changed by zeros at the end."""
        return length + -length % (ALIKE * self.rate)

    def _phases(self, part: Shaped[Tensor, "b h n c"]) -> Shaped[Tensor, "k h m c"]:
        """Rows of every r-th element, in the order of their phases."""
        n = part.shape[2]
        cut = F.pad(part, (0, 0, 0, self._room(n) - n)).unflatten(2, (-1, self.rate))
        return cut.permute(0, 3, 1, 2, 4).flatten(0, 1)

    def _row(self, phases: Float[Tensor, "k h m c"], length: int) -> Float[Tensor, "b n d"]:
        """The rows that phases came from, their heads side by side."""
        back = phases.unflatten(0, (-1, self.rate)).permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)
        return back[:, :length].contiguous()

    def _bias(self, real: Bool[Tensor, "b n"] | None, x: Float[Tensor, "b n d"]) -> Tensor | None:
        """What visibility adds to the scores of each phase."""
        b, n, _ = x.shape
        if real is None and n == self._room(n) and not self.causal:
            return None
        there = torch.ones(b, n, dtype=torch.bool, device=x.device) if real is None else real
        keys = self._phases(there[:, None, :, None].to(torch.uint8))[..., 0].bool()[:, :, None]
        if self.causal:
            keys = keys & torch.ones(keys.shape[-1], keys.shape[-1], dtype=torch.bool, device=x.device).tril()
        return mask_bias(keys)

    def flops(self, n: int, d: int) -> int:
        """Projections, and the scores and sums within phases."""
        padded = self._room(n)
        return 8 * n * d * d + 4 * (padded // self.rate) * padded * d
