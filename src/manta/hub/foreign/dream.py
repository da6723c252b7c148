"""Dream's layout: a Qwen2 that attends both ways and predicts a token at the position before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from manta.hub.foreign.checkpoint import published_names
from manta.hub.foreign.decoder import DecoderNet, DecoderShape, KeyValues
from manta.hub.foreign.layout import Layout, check_sizes, check_token, parse

UNUSED = frozenset({"max_window_layers", "sliding_window"})
"""Keys without effect while `use_sliding_window` is off."""

BLOCK = "model.layers.{}"
PARTS = {
    "embedding": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
"""From a part of `DecoderNet` to its published name."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What cuts a text into words in the tokenizer, which is Qwen2's."""


@dataclass(frozen=True, kw_only=True)
class DreamConfig:
    """`config.json` of Dream-v0-Base-7B, Dream-v0-Instruct-7B and models trained on from them.

    Source: Ye et al., "Dream 7B", arXiv 2508.15487.
    """

    model_type: Literal["Dream"]
    """Name of the layout."""
    architectures: tuple[Literal["DreamModel"]] = ("DreamModel",)
    """Its only architecture here; others of the same layout do not shift their logits."""
    hidden_size: int
    """Width."""
    num_hidden_layers: int
    """Blocks."""
    num_attention_heads: int
    """Heads of the queries."""
    num_key_value_heads: int | None
    """Heads of keys and values; None: as many as of queries."""
    intermediate_size: int
    """Width inside the pointwise network."""
    vocab_size: int
    """Rows of the token table."""
    max_position_embeddings: int = 32768
    """Most tokens of a row that the rotary angles were made for."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square by the norms."""
    mask_token_id: int = 151666
    """The mask token."""
    eos_token_id: int | None = 151643
    """The end of a text."""
    pad_token_id: int | None = 151643
    """Padding."""
    hidden_act: Literal["silu"] = "silu"
    """Of the gate."""
    rope_scaling: None = None
    """Rotary angles are not stretched."""
    use_mrope: Literal[False] = False
    """Nor split over several axes."""
    use_sliding_window: Literal[False] = False
    """Attention is full."""
    tie_word_embeddings: Literal[False] = False
    """The head has weights of its own."""

    def __post_init__(self) -> None:
        check_sizes(hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers, vocab_size=self.vocab_size)
        check_sizes(num_attention_heads=self.num_attention_heads, intermediate_size=self.intermediate_size)
        check_sizes(num_key_value_heads=1 if self.num_key_value_heads is None else self.num_key_value_heads)
        check_sizes(max_position_embeddings=self.max_position_embeddings)
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            check_token(name, getattr(self, name), self.shape.vocab_size)

    @property
    def shape(self) -> DecoderShape:
        """Shape of the net."""
        heads = self.num_attention_heads
        return DecoderShape(
            vocab_size=self.vocab_size,
            dim=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=heads,
            kv_heads=heads if self.num_key_value_heads is None else self.num_key_value_heads,
            hidden=self.intermediate_size,
            eps=self.rms_norm_eps,
            rotary_base=self.rope_theta,
            qkv_bias=True,
        )


class DreamNet(DecoderNet):
    """Dream's net: as `DecoderNet`, but positions count the real tokens of a row only."""

    def states(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        positions: Num[Tensor, "*rows n"] | None = None,
        kept: Sequence[KeyValues] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """What the logits are read from: those at i are of token i + 1; see `DecoderNet`."""
        if positions is None and mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        return super().states(tokens, mask, positions, kept)


def read(config: Mapping[str, Any], file: Path) -> Layout:
    """The layout of a checkpoint.

    Args:
        config: keys of its `config.json`.
        file: that file, named in errors.

    Raises:
        ModelError: an option is unknown or not what manta computes.
    """
    found = parse(DreamConfig, config, file, UNUSED)
    with torch.device("meta"):
        net = DreamNet(found.shape)
    return Layout(
        net=net,
        names=published_names(net, BLOCK, PARTS),
        dtype=torch.bfloat16,
        vocab_size=found.vocab_size,
        max_length=found.max_position_embeddings,
        mask_id=found.mask_token_id,
        eos_id=found.eos_token_id,
        pad_id=found.pad_token_id,
        shifted=True,
        split=SPLIT,
    )
