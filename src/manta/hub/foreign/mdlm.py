"""MDLM's layout: a diffusion transformer over tokens, with its time switched off."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.hub.foreign.checkpoint import published_names
from manta.hub.foreign.decoder import attend_to_all
from manta.hub.foreign.layout import Layout, check_sizes, check_token, parse
from manta.operators.attention import head_width
from manta.operators.context import line
from manta.operators.rotary import RotaryTables, rotary_tables

ROTARY_BASE = 10000.0
MLP_RATIO = 4
FREQUENCIES = 256
"""Width of the features of a noise level."""

BLOCK = "backbone.blocks.{}"
TABLE = "backbone.vocab_embed.embedding"
PARTS = {
    "embedding": TABLE,
    "noise.0": "backbone.sigma_map.mlp.0",
    "noise.2": "backbone.sigma_map.mlp.2",
    "attention_norm": "norm1",
    "qkv": "attn_qkv",
    "out": "attn_out",
    "mlp_norm": "norm2",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
    "modulation": "adaLN_modulation",
    "norm": "backbone.output_layer.norm_final",
    "head_modulation": "backbone.output_layer.adaLN_modulation",
    "head": "backbone.output_layer.linear",
}
"""From a part of `DitNet` to its published name; the token table is published without `.weight`."""


@dataclass(frozen=True, kw_only=True)
class MDLMConfig:
    """`config.json` of mdlm-owt and its kin.

    Source: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", arXiv 2406.07524.
    """

    model_type: Literal["mdlm"]
    """Name of the layout."""
    hidden_dim: int
    """Width."""
    cond_dim: int
    """Width of the condition."""
    n_blocks: int
    """Blocks."""
    n_heads: int
    """Heads."""
    vocab_size: int
    """Rows of the token table, the mask token included."""
    model_length: int = 1024
    """Most tokens of a row in training."""
    mask_token_id: int | None = None
    """The mask token; None: the last row, which MDLM adds to a vocabulary without one."""
    eos_token_id: int | None = None
    """The end of a text; None: texts have no end of their own."""
    pad_token_id: int | None = None
    """Padding."""
    time_conditioning: Literal[False] = False
    """The net is not told the noise level: its condition is that of σ = 0."""

    def __post_init__(self) -> None:
        check_sizes(hidden_dim=self.hidden_dim, cond_dim=self.cond_dim, n_blocks=self.n_blocks, n_heads=self.n_heads)
        check_sizes(vocab_size=self.vocab_size, model_length=self.model_length)
        head_width(self.hidden_dim, self.n_heads)
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size is {self.vocab_size}, which leaves no token beside the mask")
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            check_token(name, getattr(self, name), self.vocab_size)


class DitBlock(nn.Module):
    """A block of a diffusion transformer.

    ``x ← x + γ₁ ⊙ W_o attend(α₁ ⊙ norm(x) + β₁)``
    ``x ← x + γ₂ ⊙ W_2 gelu(W_1 (α₂ ⊙ norm(x) + β₂))``

    with (β₁, α₁ − 1, γ₁, β₂, α₂ − 1, γ₂) a linear map of the condition.

    Args:
        config: of the net.

    Source: adaLN: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, config: MDLMConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.heads = config.n_heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * dim, dim)
        )
        self.modulation = nn.Linear(config.cond_dim, 6 * dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        tables: RotaryTables,
        mask: Bool[Tensor, "b n"] | None,
        condition: Float[Tensor, "#b 1 k"],
    ) -> Float[Tensor, "b n d"]:
        """The state after this block; see `attend_to_all`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, -1)
        qkv = self.qkv(torch.addcmul(shift, self.attention_norm(x), 1 + scale))
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = torch.addcmul(x, gate, self.out(attend_to_all(query, key, value, tables, mask)))
        return torch.addcmul(x, mlp_gate, self.mlp(torch.addcmul(mlp_shift, self.mlp_norm(x), 1 + mlp_scale)))


class DitNet(nn.Module):
    """Logits of every position from all tokens of its row: MDLM's backbone at noise level σ = 0.

    Args:
        config: widths.
    """

    def __init__(self, config: MDLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        condition = nn.Linear(FREQUENCIES, config.cond_dim), nn.SiLU(), nn.Linear(config.cond_dim, config.cond_dim)
        self.noise = nn.Sequential(*condition)
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.n_blocks))
        self.norm = nn.LayerNorm(config.hidden_dim, bias=False)
        self.head_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_dim)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size)

    def forward(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n v"]:
        """Logits as the published net gives them; `subs` makes MDLM's probabilities of them.

        Args:
            tokens: the mask token where a word is hidden.
            mask: True where a token is real, False at padding, whose logits have no meaning; None: all are.
        """
        places = line(tokens.shape[1], tokens.device)
        tables = rotary_tables(places, self.config.hidden_dim // self.config.n_heads, ROTARY_BASE)
        x = self.embedding(tokens)
        # Features of a noise level: cosines, then sines, of it in many frequencies. Here it is 0.
        features = torch.cat([x.new_ones(FREQUENCIES // 2), x.new_zeros(FREQUENCIES // 2)])
        condition = F.silu(self.noise(features))[None, None]
        for block in self.blocks:
            x = block(x, tables, mask, condition)
        shift, scale = self.head_modulation(condition).chunk(2, -1)
        return self.head(torch.addcmul(shift, self.norm(x), 1 + scale))


def subs(logits: Float[Tensor, "b n v"], tokens: Int64[Tensor, "b n"], mask_id: int) -> Float[Tensor, "b n v"]:
    """MDLM's parametrisation: log-probabilities of the clean tokens, by substitution.

    ``log p(· | tokens)_i = log softmax(logits_i, the mask's at −∞)`` where token i is hidden,
    ``log p(v | tokens)_i = 0 if v = token i, else −∞`` where it is not.

    Clean text has no masks, and a token that is not hidden is carried over. Where tokens are hidden this is the softmax
    of what `ForeignModel` gives.

    Args:
        logits: of `DitNet`.
        tokens: what it was given.
        mask_id: the mask token.

    Source: Sahoo et al., arXiv 2406.07524 (SUBS).
    """
    mask = torch.arange(logits.shape[-1], device=logits.device) == mask_id
    predicted = logits.float().masked_fill(mask, -torch.inf).log_softmax(-1)
    kept = torch.full_like(predicted, -torch.inf).scatter_(-1, tokens[..., None], 0.0)
    return torch.where((tokens == mask_id)[..., None], predicted, kept)


def read(config: Mapping[str, Any], file: Path) -> Layout:
    """The layout of a checkpoint.

    Args:
        config: keys of its `config.json`.
        file: that file, named in errors.

    Raises:
        ModelError: an option is unknown or not what manta computes.
    """
    found = parse(MDLMConfig, config, file)
    with torch.device("meta"):
        net = DitNet(found)
    names = published_names(net, BLOCK, PARTS)
    names[TABLE] = names.pop(f"{TABLE}.weight")
    head_dim = found.hidden_dim // found.n_heads
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_dim, 2) / head_dim)
    return Layout(
        net=net,
        names=names,
        dtype=torch.float32,
        vocab_size=found.vocab_size,
        max_length=found.model_length,
        mask_id=found.vocab_size - 1 if found.mask_token_id is None else found.mask_token_id,
        eos_id=found.eos_token_id,
        pad_id=found.pad_token_id,
        constants={"backbone.rotary_emb.inv_freq": frequencies},
    )
