"""Attention by features instead of scores: what an element receives is read from a state that does not grow.

``κ(z_i, z_j, i − j) = γ_h^|p_i − p_j| <φ(q_i), φ(k_j)>``,  p the places

As the kernel splits into a factor of i and one of j, its sum over j can be made before i is asked:

materialised   y = (φ(q) φ(k)ᵀ ∘ Γ) v                                     n² products
recurrent      S ← γ^Δp S + φ(k_i)ᵀ v_i,   y_i = φ(q_i) S                  a state, one element after the other
chunkwise      materialised within chunks, one state between neighbours    n products, all chunks at once

All three are the same sum. Decay is only ever taken over a distance that lies between two elements, so that it is at
most 1: there is no γ^−n that could overflow.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.operators.attention import HeadsConfig, Turn, check_positive, head_width
from manta.operators.context import HEADS, Cache, Operator, OperatorContext
from manta.operators.fourier import product
from manta.operators.normalise import rms_normalise
from manta.operators.rotary import BASE

SHORTEST, LONGEST = 32.0, 512.0
"""Places over which the first and the last head forget, at first."""
SEGMENT = 32
"""Chunks of a row that are at hand at once."""
LEAST = 1e-6
"""Least sum of weights that is divided by."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig(HeadsConfig):
    """Linear attention: features ELU + 1, divided by the sum of the weights."""

    kind: Literal["linear"] = "linear"
    """Which operator this is."""

    chunk: int = 64
    """Elements of a chunk: rows up to this long are computed in the open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("chunk", self.chunk)

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "LinearAttention":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        heads = heads if self.heads is None else self.heads
        return LinearAttention(dim, heads, causal=causal, chunk=self.chunk, **self.projections)


class KernelAttention(Operator):
    """Attention whose kernel is a product of positive features, with decay over the distance, per head.

    Places ascend along a row. Queries and keys are normalised, scaled by a learned gain per head and turned by their
    places, as in ``SelfAttention``, before their features are taken.

    Args:
        dim: width of the state.
        heads: number of heads.
        causal: let each position receive from itself and earlier ones only.
        chunk: elements of a chunk.
        rotary_base: see ``rotary_tables``.
        rotary_share: share of a head's channels that are turned, the first ones.
        bias: the projections have biases.

    Raises:
        ConfigError: the width does not split into heads of even width.

    Source: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236; decay and chunks: Sun et al., "Retentive
        Network", arXiv 2307.08621.
    """

    carries = True
    divided: ClassVar[bool]
    """Whether what is received is divided by the sum of the weights."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        causal: bool = False,
        chunk: int = 64,
        rotary_base: float = BASE,
        rotary_share: float = 1.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_width(dim, heads)
        self.heads, self.causal, self.chunk = heads, causal, chunk
        self.turn = Turn(self.head_dim, rotary_base, rotary_share)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.gain = nn.Parameter(torch.ones(heads))
        forgotten = torch.linspace(-math.log(SHORTEST), -math.log(LONGEST), heads).exp()
        self.log_rate = nn.Parameter((-(1 - forgotten).log()).log())
        """log(−log γ) of each head."""
        self.out = nn.Linear(dim, dim, bias=bias)
        nn.init.zeros_(self.out.weight)
        if bias:
            nn.init.zeros_(self.out.bias)

    @abstractmethod
    def features(self, x: Float[Tensor, "*rows h n c"]) -> Float[Tensor, "*rows h n c"]:
        """Features of queries or keys, as many as a head has channels."""

    def told(self, y: Float[Tensor, "b h n c"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What is received by every head, as the output.

        Args:
            y: received.
            x: the state.
        """
        return self.out(y.transpose(1, 2).flatten(-2))

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """What each element receives from the real ones of its row; zero where nothing is.

        A causal operator carries its state from span to span, each of which begins where the one before ended; else
        features of keys, and values, are kept.

        Raises:
            ConfigError: the elements lie along several axes.
            UsageError: a causal span that does not begin where the last one ended.
        """
        if context.axes > 1:
            raise ConfigError(f"decay follows one axis, received {context.axes}; choose attention")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = (self.gain * self.head_dim**-0.25).to(x.dtype)[:, None, None]
        q, k = (self.features(self.turn(rms_normalise(part), context) * scale) for part in (q, k))
        if self.divided:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        if context.mask is not None:
            k = k * context.mask[:, None, context.start : context.stop, None].to(k.dtype)
        places = self._places(context)
        here = slice(context.start, context.stop)
        if self.causal:
            y = self._carried(q, k, v, places[..., here], context, cache)
        else:
            if cache is not None:
                rows = cache.renew("keys and values", torch.cat([k, v], -1), context, context.length)
                k, v = rows.split([self.head_dim, v.shape[-1]], -1)
            if q.shape[-2] < context.length or context.length <= self.chunk:
                y = self._open(q, k, v, places[..., here], places, context.start)
            else:
                y, _ = self._chunkwise(q, k, v, places, None)
        if self.divided:
            y = y[..., :-1] / y[..., -1:].clamp_min(LEAST)
        return self.told(y.to(x.dtype), x)

    def _places(self, context: OperatorContext) -> Float[Tensor, "#b 1 n"]:
        def of_row() -> Tensor:
            places = context.coordinates[..., 0]
            places = places.to(torch.promote_types(places.dtype, torch.float32))
            return (places if places.ndim == 2 else places[None])[:, None]

        return context.of_row("places", of_row)

    def _kept(self, distance: Float[Tensor, "#b 1 *rest"], like: Tensor) -> Tensor:
        """γ^distance of each head, "b h …", of a distance that is clamped at 0; in float32 at least."""
        rate = self.log_rate.exp().view(-1, *[1] * (distance.ndim - 2))
        wide = torch.promote_types(like.dtype, torch.float32)
        return torch.exp(-rate.to(wide) * distance.clamp_min(0).to(wide))

    def _open(
        self, q: Tensor, k: Tensor, v: Tensor, here: Tensor, there: Tensor, start: int
    ) -> Float[Tensor, "*rows k c"]:
        """The materialised form, of the elements `here` against those `there`.

        Args:
            here: places of the queries, the first of which is element `start`.
            there: places of the keys.
        """
        weights = product(q, k.mT) * self._kept((here[..., :, None] - there[..., None, :]).abs(), q)
        if self.causal:
            weights = weights.tril(start)
        return product(weights.to(v.dtype), v)

    def _carried(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, context: OperatorContext, cache: Cache | None
    ) -> Tensor:
        """Of a causal row, or of a span behind the state that is carried."""
        carried = None if cache is None else cache.carried(context)
        if carried is None and cache is None and q.shape[-2] <= self.chunk:
            return self._open(q, k, v, places, places, 0)
        if carried is not None and q.shape[-2] == 1:
            state, at = carried
            end = places[..., -1]
            state = state * self._kept(end - at, state)[..., None, None] + (k.mT * v).to(state.dtype)
            y = product(q.to(state.dtype), state)
        else:
            y, (state, end) = self._chunkwise(q, k, v, places, carried)
        if cache is not None:
            cache.carry(context, state, end)
        return y

    def _chunkwise(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, carried: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "b h n c"], tuple[Tensor, Tensor]]:
        """Within chunks in the open, between them by states; returns the last state and its place, too.

        A long row goes through segment by segment, so that what is at hand at once does not grow with it.

        Legend: g chunks of s elements; m features; c values.
        """
        n, size = q.shape[-2], self.chunk
        missing = -n % size
        if missing:
            q, k, v = (F.pad(part, (0, 0, 0, missing)) for part in (q, k, v))
            places = torch.cat([places, places[..., -1:].expand(*places.shape[:-1], missing)], -1)
        rows = [part.unflatten(-2, (-1, size)) for part in (q, k, v)]
        parts = [part.split(SEGMENT, 2) for part in (*rows, places.unflatten(-1, (-1, size)))]
        segments = list(zip(*parts, strict=True))
        outputs = []
        for own_q, own_k, own_v, own_places in segments:
            y, carried = self._from_earlier(own_q, own_k, own_v, own_places, carried)
            outputs.append(y + self._open(own_q, own_k, own_v, own_places, own_places, 0))
        behind = None
        for index in range(len(segments) - 1, -1, -1) if not self.causal else ():
            own_q, own_k, own_v, own_places = segments[index]
            y, behind = self._from_later(own_q, own_k, own_v, own_places, behind)
            outputs[index] = outputs[index] + y
        assert carried is not None, "a row has an element"
        return torch.cat(outputs, 2).flatten(2, 3)[:, :, :n], carried

    def _from_earlier(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, carried: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "b h g s c"], tuple[Tensor, Tensor]]:
        """What the chunks of a segment receive from those before them; and the state behind the last."""
        last = places[..., -1]
        sums = self._sums(k, last[..., None] - places, v)
        states, ends, carried = self._states(sums, last, carried)
        kept = self._kept(places - ends[..., None], q)
        return (q * kept[..., None]).to(states.dtype) @ states, carried

    def _from_later(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, behind: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "b h g s c"], tuple[Tensor, Tensor]]:
        """The same from the chunks behind them: a row that is turned round, whose places ascend again."""
        q, k, v, places = (part.flip(2, 3) for part in (q, k, v, places))
        y, state = self._from_earlier(q, k, v, -places, behind)
        return y.flip(2, 3), state

    def _states(
        self, sums: Float[Tensor, "b h g m c"], ends: Float[Tensor, "#b 1 g"], carried: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "b h g m c"], Float[Tensor, "#b 1 g"], tuple[Tensor, Tensor]]:
        """The state before each chunk and its place, and the state behind the last chunk with its own.

        ``S_g = Σ_{G<g} γ^(e_{g−1} − e_G) sums_G + γ^(e_{g−1} − e) S``,  S the state that is carried, of place e
        """
        state, at = carried or (torch.zeros_like(sums[:, :, 0]), ends[..., 0])
        known = torch.cat([at[..., None], ends], -1)
        weights = self._kept(known[..., :, None] - ends[..., None, :], sums).tril(-1)
        with torch.autocast(sums.device.type, enabled=False):
            found = (weights @ sums.flatten(-2)).unflatten(-1, sums.shape[-2:])
        found = found + self._kept(known - at[..., None], sums)[..., None, None] * state[:, :, None]
        return found[:, :, :-1], known[..., :-1], (found[:, :, -1], known[..., -1])

    def _sums(self, k: Tensor, distance: Tensor, v: Tensor) -> Float[Tensor, "b h g m c"]:
        """What each chunk adds to a state at some distance; in float32 at least, so that a long row loses nothing."""
        kept = self._kept(distance, k)[..., None]
        return ((k * kept).mT @ v.to(kept.dtype)).to(kept.dtype)

    def flops(self, n: int, d: int) -> int:
        """Projections, features and the products of the form that a whole row takes."""
        values = self.heads * (self.head_dim + self.divided)
        shared = 8 * n * d * d + self.feature_flops(n, d)
        if n <= self.chunk:
            return shared + 2 * n * n * (d + values)
        padded = n + -n % self.chunk
        whole, rest = divmod(padded // self.chunk, SEGMENT)
        carrying = whole * SEGMENT * (SEGMENT + 1) + rest * (rest + 1)
        ways = 1 if self.causal else 2
        states = ways * (4 * padded + 2 * carrying) * self.head_dim * values
        return shared + 2 * padded * self.chunk * (d + values) + states

    def feature_flops(self, n: int, d: int) -> int:
        """Of the features of queries and keys, and of what a subclass adds."""
        return 0


class LinearAttention(KernelAttention):
    """``φ(x) = elu(x) + 1``, divided by the sum of the weights: the control of every claim for other features."""

    divided = True

    def features(self, x: Float[Tensor, "*rows h n c"]) -> Float[Tensor, "*rows h n c"]:
        """Above 0, channel by channel."""
        return F.elu(x) + 1
