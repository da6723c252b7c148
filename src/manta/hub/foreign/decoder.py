"""The net of Llama-like masked models: every token attends to every other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.operators.attention import fused_attention, head_width
from manta.operators.rotary import RotaryTables, rotary_tables, rotate


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What tells one Llama-like net from another."""

    vocab_size: int
    """Rows of the token table."""
    dim: int
    """Width."""
    depth: int
    """Blocks."""
    heads: int
    """Heads of the queries."""
    kv_heads: int
    """Heads of keys and values; each serves `heads / kv_heads` heads of queries."""
    hidden: int
    """Width inside the pointwise network."""
    eps: float
    """Added to the mean square by the norms."""
    rotary_base: float
    """Base of the rotary angles."""
    qkv_bias: bool
    """Queries, keys and values have biases."""

    def __post_init__(self) -> None:
        head_width(self.dim, self.heads)
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads of queries do not share {self.kv_heads} heads of keys evenly")
        if self.eps < 0 or self.rotary_base <= 0:
            raise ConfigError(f"the norms' eps is {self.eps} and the rotary base {self.rotary_base}, out of range")


class KeyValues:
    """Keys and values of a row's positions in one block, as they were last computed."""

    def __init__(self) -> None:
        self.start = 0
        """First position of the next span that is computed."""
        self._kept: Float[Tensor, "2 b g n c"] | None = None

    def renew(
        self, key: Float[Tensor, "b g k c"], value: Float[Tensor, "b g k c"]
    ) -> tuple[Float[Tensor, "b g n c"], Float[Tensor, "b g n c"]]:
        """Those of all positions, with a span's in their place; the first span is the whole row."""
        if self._kept is None:
            self._kept = torch.stack([key, value])
        else:
            self._kept[:, :, :, self.start : self.start + key.shape[2]] = torch.stack([key, value])
        return self._kept[0], self._kept[1]


def attend_to_all(
    query: Float[Tensor, "b h n c"],
    key: Float[Tensor, "b g n c"],
    value: Float[Tensor, "b g n c"],
    tables: RotaryTables,
    mask: Bool[Tensor, "b n"] | None,
    kept: KeyValues | None = None,
) -> Float[Tensor, "b n h*c"]:
    """Softmax attention of each position to every real one.

    ``y_i = Σ_j softmax_j(<R_i q_i, R_j k_j> / √c) v_j``

    The rotary turn R is made in float32, whatever the dtype.

    Args:
        query: of h heads.
        key: of g heads, each for h/g heads of queries.
        value: of g heads.
        tables: of the positions.
        mask: True where a position is real; None: all are.
        kept: of the positions outside, when query, key and value are of a span.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = (rotate(part.to(wide), tables).to(value.dtype) for part in (query, key))
    if kept is not None:
        key, value = kept.renew(key, value)
    visible = None if mask is None else mask[:, None, None]
    grouped = query.shape[1] != key.shape[1]
    y = fused_attention(query, key, value, visible, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


class DecoderBlock(nn.Module):
    """A block of Llama and its kin.

    ``x ← x + W_o attend(W_q norm(x), W_k norm(x), W_v norm(x))``
    ``x ← x + W_d (silu(W_g norm(x)) ⊙ W_u norm(x))``

    Args:
        shape: of the net.

    Source: Touvron et al., "LLaMA", arXiv 2302.13971; grouped queries: Ainslie et al., arXiv 2305.13245.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        dim, head_dim, bias = shape.dim, shape.dim // shape.heads, shape.qkv_bias
        self.head_dim = head_dim
        self.attention_norm = nn.RMSNorm(dim, eps=shape.eps)
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, shape.kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(dim, shape.kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.RMSNorm(dim, eps=shape.eps)
        self.gate = nn.Linear(dim, shape.hidden, bias=False)
        self.up = nn.Linear(dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        tables: RotaryTables,
        mask: Bool[Tensor, "b n"] | None,
        kept: KeyValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The state after this block; see `attend_to_all`."""
        normed = self.attention_norm(x)
        heads = [
            part(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        x = x + self.out(attend_to_all(heads[0], heads[1], heads[2], tables, mask, kept))
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class DecoderNet(nn.Module):
    """Logits of every position from all tokens of its row: the stack of LLaDA and Dream.

    Args:
        shape: widths and options.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        self.blocks = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.dim, eps=shape.eps)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=False)

    def forward(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        positions: Num[Tensor, "*rows n"] | None = None,
        kept: Sequence[KeyValues] | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Logits as the published net gives them: neither shifted nor without the mask token; see `states`."""
        return self.head(self.states(tokens, mask, positions, kept))

    def states(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        positions: Num[Tensor, "*rows n"] | None = None,
        kept: Sequence[KeyValues] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """What the logits are read from, position by position.

        Args:
            tokens: the mask token where a word is hidden.
            mask: True where a token is real, False at padding, whose states have no meaning; None: all are.
            positions: of the tokens, "n" or "b n"; 0, 1, … without.
            kept: one a block, when the tokens are a span of a row whose other positions are read as last computed.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        shape = self.shape
        tables = rotary_tables(positions[..., None], shape.dim // shape.heads, shape.rotary_base)
        if positions.ndim == 2:
            tables = RotaryTables(tables.cos[:, None], tables.sin[:, None])
        x = self.embedding(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, tables, mask, None if kept is None else kept[index])
        return self.norm(x)
