"""Softmax self-attention: the operator whose kernel is computed from the state itself."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from manta.errors import ConfigError
from manta.operators.context import HEADS, Cache, Operator, OperatorContext
from manta.operators.normalise import rms_normalise
from manta.operators.rotary import BASE, RotaryTables, rotary_tables, rotate

EXPLICIT_MAX_LENGTH = 256
ALIKE = 16
"""Sums over a multiple of so many elements are not changed, on CPU, by zeros at the end: whole vector registers."""
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# Scores are bounded by gain·sqrt(head_dim), so this weighs exactly nothing, and unlike −inf it keeps a row whose keys
# are all masked, and its gradient, finite.
MASKED_SCORE = -1e4


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """What operators with queries and keys share."""

    heads: int | None = None
    """Number of heads; divides the width, and leaves each head an even one. None: the model's."""

    rotary_base: float = BASE
    """Base of the rotary angles; larger turns slower, for longer rows."""

    rotary_share: float = 1.0
    """Share of a head's channels that are turned, the first ones; above 0 and at most 1."""

    bias: bool = False
    """The projections have biases."""

    def __post_init__(self) -> None:
        check_heads(self.heads)
        if not 0 < self.rotary_share <= 1:
            raise ConfigError(f"rotary_share should be above 0 and at most 1, received {self.rotary_share}")

    @property
    def projections(self) -> dict[str, Any]:
        """Arguments that say it to an operator."""
        return {"rotary_base": self.rotary_base, "rotary_share": self.rotary_share, "bias": self.bias}


@dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(HeadsConfig):
    """What operators with a softmax over scores share."""

    kv_heads: int | None = None
    """Heads of keys and values, each for as many heads of queries (grouped queries); None: as many as of queries."""

    normalised: bool = True
    """Normalise queries and keys before they are turned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads is not None:
            check_positive("kv_heads", self.kv_heads)

    @property
    def projections(self) -> dict[str, Any]:
        """Arguments that say it to an operator."""
        return {**super().projections, "kv_heads": self.kv_heads, "normalised": self.normalised}


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(SoftmaxConfig):
    """Softmax self-attention with rotary positions and normalised queries and keys."""

    kind: Literal["attention"] = "attention"
    """Which operator this is."""

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "SelfAttention":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        heads = heads if self.heads is None else self.heads
        return SelfAttention(dim, heads, causal=causal, **self.projections)


class SelfAttention(Operator):
    """Multi-head softmax self-attention.

    ``κ(z_i, z_j, i − j) = softmax_j(g · <R_i q̂_i, R_j k̂_j> / sqrt(head_dim))``

    with q̂, k̂ of unit root mean square, R the rotary turn and g a learned gain per head. A gain per channel would be
    redundant with the projections' own rows. Models of others differ in what is normalised, turned and shared.

    Args:
        dim: width of the state.
        heads: number of heads.
        causal: let each position see itself and earlier ones only.
        rotary_base: see ``rotary_tables``.
        rotary_share: share of a head's channels that are turned, the first ones.
        bias: the projections have biases.
        kv_heads: heads of keys and values, each for ``heads / kv_heads`` of queries; None: as many.
        normalised: q̂ and k̂ are normalised; where they are not, as in published models of Llama's kind, all is rounded
            in the order in which those round it, so that weights of theirs give their numbers to the last bit.

    Raises:
        ConfigError: the width does not split into heads of even width, or these into heads of keys.

    Source: Vaswani et al., arXiv 1706.03762; query-key normalisation: Dehghani et al., arXiv 2302.05442; grouped
        queries: Ainslie et al., arXiv 2305.13245.
    """

    answers_alone = True
    follows_blocks = True
    entry = "qkv"

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        causal: bool = False,
        rotary_base: float = BASE,
        rotary_share: float = 1.0,
        bias: bool = False,
        kv_heads: int | None = None,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim = head_width(dim, heads)
        self.heads, self.kv_heads, self.causal, self.normalised = heads, kv_heads or heads, causal, normalised
        if heads % self.kv_heads:
            raise ConfigError(f"{heads} heads of queries do not share {self.kv_heads} heads of keys evenly")
        self.turn = Turn(self.head_dim, rotary_base, rotary_share, published=not normalised)
        self.qkv = nn.Linear(dim, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        # Where nothing is normalised, a gain would say what the queries' rows say: it stays 1.
        if normalised:
            self.gain = nn.Parameter(torch.ones(heads))
        else:
            self.register_buffer("gain", torch.ones(heads))
        self.out = nn.Linear(dim, dim, bias=bias)
        nn.init.zeros_(self.out.weight)
        if bias:
            nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """Attention of each element to the real ones of its row; turned keys, and values, are kept."""
        b, n, d = x.shape
        q, k, v = self.turned(x, context)
        if cache is not None:
            k, v = cache.renew("keys and values", torch.stack([k, v]), context, self._seen(context)).unbind(0)
        bias, k, v = self._bias(context), self.shared(k), self.shared(v)
        if context.alone:
            y = attend_each(q, k, v, score_scale(self.gain, self.head_dim), bias)
        elif self.normalised:
            y = attend(q, k, v, score_scale(self.gain, self.head_dim), bias)
        else:
            y = attend(q, k, v, self.gain.view(-1, 1, 1), bias, factor=self.head_dim**-0.5)
        return self.out(y.transpose(1, 2).reshape(b, n, d))

    def turned(
        self, x: Float[Tensor, "b k d"], context: OperatorContext
    ) -> tuple[Float[Tensor, "b h k c"], Float[Tensor, "b g k c"], Float[Tensor, "b g k c"]]:
        """Queries of h heads and keys of g, normalised and turned, and values of the elements of a span."""
        b, n, _ = x.shape
        if self.kv_heads == self.heads:
            qkv = self.qkv(x).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).contiguous()
            qk, v = qkv.split([2, 1])
            q, k = self.turn(rms_normalise(qk) if self.normalised else qk, context).unbind(0)
            return q, k, v.squeeze(0)
        heads = self.qkv(x).view(b, n, -1, self.head_dim).transpose(1, 2).contiguous()
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], 1)
        q, k = self.turn(rms_normalise(qk) if self.normalised else qk, context).split([self.heads, self.kv_heads], 1)
        return q, k, v

    def shared(self, part: Float[Tensor, "b g m c"]) -> Float[Tensor, "b h m c"]:
        """Keys or values as every head of queries reads them."""
        return part if self.kv_heads == self.heads else part.repeat_interleave(self.heads // self.kv_heads, 1)

    def scores(
        self, q: Float[Tensor, "b h k c"], k: Float[Tensor, "b g m c"], context: OperatorContext
    ) -> Float[Tensor, "b h k m"]:
        """What the softmax is taken of, in the open: to be looked at."""
        scores, bias = q @ self.shared(k).mT * score_scale(self.gain, self.head_dim), self._bias(context)
        return scores if bias is None else scores + bias

    def _seen(self, context: OperatorContext) -> int:
        """How many of the row's first elements a span looks at."""
        _, causal = self._reach(context)
        if not causal and context.blocks is None:
            return context.length
        return min(context.length, -(-context.stop // ALIKE) * ALIKE) if context.alone else context.stop

    def _bias(self, context: OperatorContext) -> Float[Tensor, "*broadcast m"] | None:
        """What visibility adds to the scores, or None where all is seen."""

        def of_span() -> Tensor | None:
            keys = None if context.mask is None else context.mask[:, None, None, : self._seen(context)]
            pairs = self._pairs(context)
            if keys is None or pairs is None:
                return mask_bias(keys if pairs is None else pairs)
            return mask_bias(keys & pairs)

        return context.of_span(("bias", *self._reach(context)), of_span)

    def _reach(self, context: OperatorContext) -> tuple[int | float, bool]:
        """How far an element sees along every axis, and whether only backward in its row."""
        return math.inf, self.causal or context.causal

    def _pairs(self, context: OperatorContext) -> Bool[Tensor, "*rows k m"] | None:
        """The part of visibility that follows from where elements are, "b 1 k m" where rows differ in that."""
        radius, causal = self._reach(context)
        there = slice(self._seen(context))
        pairs = None if context.blocks is None else _of_blocks(context, there)
        if causal and (context.alone or context.start + 1 < context.stop):
            index = torch.arange(context.length, device=context.coordinates.device)
            here = index[context.start : context.stop] if context.at is None else context.at[:, None]
            before = here[..., None] >= index[there]
            pairs = before if pairs is None else before & pairs
        if radius < math.inf:
            place = context.coordinates
            near = (context.here(place)[..., None, :] - place[..., None, there, :]).abs().amax(-1) <= radius
            near = near if near.ndim == 2 else near[:, None]
            pairs = near if pairs is None else near & pairs
        return pairs

    def flops(self, n: int, d: int) -> int:
        """Projections, scores and weighted sum; masked pairs are computed too, so they count."""
        return 2 * n * d * (2 * d + 2 * self.kv_heads * self.head_dim) + 4 * n * n * d


def _of_blocks(context: OperatorContext, there: slice) -> Bool[Tensor, "k m"]:
    """Who is seen by the elements of a span: their own block, and what lasts of those before."""
    assert context.blocks is not None and context.at is None, "a span of blocks is the same in all rows"
    here = slice(context.start, context.stop)
    own, other = context.blocks[here, None], context.blocks[None, there]
    if context.lasting is None:
        return other <= own
    lasting = context.lasting
    return (lasting[None, there] & (other < own)) | ((other == own) & (lasting[here, None] == lasting[None, there]))


@dataclass(frozen=True)
class Turn:
    """The rotary turn of queries or keys by the place of each, of all their channels or the first ones."""

    head_dim: int
    """Channels."""
    base: float = BASE
    """See ``rotary_tables``."""
    share: float = 1.0
    """Of the channels, those that are turned; rounded down to pairs."""
    published: bool = False
    """See ``rotary_tables``."""

    def __post_init__(self) -> None:
        if self.width < 2:
            raise ConfigError(f"a share of {self.share} leaves no pair of {self.head_dim} channels to turn; raise it")

    @property
    def width(self) -> int:
        """Channels that are turned."""
        return int(self.head_dim * self.share) // 2 * 2

    def __call__(self, x: Float[Tensor, "*heads k c"], context: OperatorContext) -> Float[Tensor, "*heads k c"]:
        """Turn what is of the elements of a span."""
        if self.width == self.head_dim:
            return rotate(x, self._tables(context), published=self.published)
        turned, kept = x.split([self.width, self.head_dim - self.width], -1)
        return torch.cat([rotate(turned, self._tables(context), published=self.published), kept], -1)

    def _tables(self, context: OperatorContext) -> RotaryTables:
        """Of each element of a span, worked out once for all operators of its context, for every head alike."""
        name = ("rotary", self.width, self.base, self.published)

        def of_row() -> RotaryTables:
            return rotary_tables(context.coordinates, self.width, self.base, published=self.published)

        def of_span() -> RotaryTables:
            cos, sin = context.of_row(name, of_row)
            return RotaryTables(context.here(cos).unsqueeze(-3), context.here(sin).unsqueeze(-3))

        return context.of_span(name, of_span)


def attend(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m c"],
    scale: Float[Tensor, "h 1 1"],
    bias: Float[Tensor, "*broadcast"] | None = None,
    *,
    factor: float = 1.0,
) -> Float[Tensor, "b h n c"]:
    """Softmax-weighted sum of values.

    ``y = softmax(scale · q kᵀ + bias) v``, zero when there is no key at all.

    Three ways, equal up to rounding. The fused kernel's backward is 3 to 5 times slower than plain products on CPU for
    short rows, so those are computed in the open when gradients are needed; all else goes to the fused kernel. In the
    open, the softmax runs in float32, which on CPU is also 4 times faster than in bfloat16 for rows of odd length. A
    single query on CPU is computed without products: theirs of a single row add up in an order that depends on where
    the row lies in memory, so that what is attended to would depend on the rows beside it.

    Args:
        scale: factor on the scores of each head, which the fused kernel finds on the queries.
        bias: added to the scores, broadcast against "b h n m".
        factor: one more, which the fused kernel puts on the scores themselves.
    """
    if _is_lone(q, k, v):
        return attend_each(q, k, v, scale * factor, bias)
    if not _prefers_explicit(q, k, v):
        mask = None if bias is None else bias.to(q.dtype)
        return fused_attention(q * scale.to(q.dtype), k, v, mask, scale=factor)
    scores = q @ k.mT * (scale * factor)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def fused_attention(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b g m c"],
    v: Float[Tensor, "b g m c"],
    mask: Shaped[Tensor, "*broadcast"] | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "b h n c"]:
    """torch's fused attention by a kernel that takes any shape at once.

    cuDNN's, which torch prefers on newer GPUs, is planned anew for every shape that it meets: about 17 ms on an H100,
    where the kernel itself takes 20 µs, and a text of growing length has a new shape in every call.

    Args:
        mask: True for what is seen, or what is added to the scores, broadcast against "b h n m".
        scale: factor on the scores; None: 1 over the square root of the width.
        enable_gqa: let several heads of queries share one of keys.
    """
    given = {"attn_mask": mask, "scale": scale, "enable_gqa": enable_gqa}
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, **given)
    with sdpa_kernel(ANY_SHAPE):
        return F.scaled_dot_product_attention(q, k, v, **given)


def attend_each(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m c"],
    scale: Float[Tensor, "h 1 1"],
    bias: Float[Tensor, "*broadcast"] | None = None,
) -> Float[Tensor, "b h n c"]:
    """`attend` without products, for a few queries: what each receives is the same, to the last bit, as alone.

    Neither the other queries and rows nor masked keys at the end change it, as long as the number of keys is a multiple
    of `ALIKE`. Takes memory for n·m·c numbers a head.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1, dtype=wide) * scale
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights.unsqueeze(-1).to(v.dtype) * v.unsqueeze(-3)).sum(-2)


def _is_lone(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.shape[-2] == 1 and k.shape[-2] > 0 and q.device.type == "cpu" and not _needs_grad(q, k, v)


def _needs_grad(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def _prefers_explicit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if k.shape[-2] == 0:
        return True
    return _needs_grad(q, k, v) and q.device.type == "cpu" and max(q.shape[-2], k.shape[-2]) <= EXPLICIT_MAX_LENGTH


def mask_bias(visible: Bool[Tensor, "*broadcast"] | None) -> Float[Tensor, "*broadcast"] | None:
    """Zero where a key is visible and ``MASKED_SCORE`` where it is not."""
    return None if visible is None else torch.where(visible, 0.0, MASKED_SCORE)


def score_scale(gain: Float[Tensor, " h"], head_dim: int) -> Float[Tensor, "h 1 1"]:
    """The learned gain of each head over ``sqrt(head_dim)``, shaped to multiply scores."""
    return (gain * head_dim**-0.5).view(-1, 1, 1)


def head_width(dim: int, heads: int) -> int:
    """Width of one head.

    Raises:
        ConfigError: the width does not split into heads of even width.
    """
    if dim % heads or dim // heads % 2:
        raise ConfigError(
            f"a width of {dim} does not split into {heads} heads of even width; choose a width divisible by {2 * heads}"
        )
    return dim // heads


def check_heads(heads: int | None) -> None:
    """Refuse a number of heads below one; None leaves it to the model.

    Raises:
        ConfigError: as said.
    """
    if heads is not None:
        check_positive("heads", heads)


def check_positive(name: str, value: int) -> None:
    """Refuse a count below one.

    Raises:
        ConfigError: ``value`` is below 1.
    """
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, received {value}")
