"""Causal models that others published, Llama's and GPT-NeoX's layouts, as models of the family `decoder`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from manta.errors import ConfigError, ModelError
from manta.families.decoder import DecoderConfig, DecoderLM, DecoderModel
from manta.hub.foreign.checkpoint import Change, load_weights
from manta.hub.foreign.layout import check_sizes, check_token, parse, read_json
from manta.operators import AttentionConfig
from manta.runtime import resolve_device
from manta.text import ForeignTokenizer

CausalKind = Literal["llama", "gpt_neox"]
CAUSAL_KINDS: tuple[CausalKind, ...] = get_args(CausalKind)
"""Layouts that manta reads, by the `model_type` of their config.json."""

UNUSED = frozenset({"pretraining_tp", "classifier_dropout", "pad_token_id", "sep_token_id", "cls_token_id"})
"""Keys without effect: how products are split among machines, what trains other heads, what pads."""

TABLES = r".*\.(rotary_emb\.inv_freq|attention\.bias|attention\.masked_bias)"
"""Weights that older versions of transformers stored: tables that follow from the shape."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """`config.json` of Llama, and of the many models in its layout.

    Source: Touvron et al., "LLaMA", arXiv 2302.13971.
    """

    model_type: Literal["llama"]
    """Name of the layout."""
    hidden_size: int
    """Width."""
    num_hidden_layers: int
    """Blocks."""
    num_attention_heads: int
    """Heads of the queries."""
    num_key_value_heads: int | None = None
    """Heads of keys and values; None: as many as of queries."""
    head_dim: int | None = None
    """Channels of a head; None: the width's share."""
    intermediate_size: int
    """Width inside the pointwise network."""
    vocab_size: int
    """Rows of the token table."""
    max_position_embeddings: int = 2048
    """Most tokens of a row that the rotary angles were made for."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    rope_scaling: None = None
    """Rotary angles are not stretched."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square by the norms."""
    hidden_act: Literal["silu"] = "silu"
    """Of the gate."""
    attention_bias: bool = False
    """Queries, keys, values and the output have biases."""
    mlp_bias: bool = False
    """The pointwise network has biases."""
    tie_word_embeddings: bool = False
    """Words are told by the table that they are read by."""
    bos_token_id: int | None = None
    """Token before the first of a row; None: the end of the text before."""
    eos_token_id: int | tuple[int, ...] | None = None
    """The end of a text; of several the first."""

    @property
    def shape(self) -> DecoderConfig:
        """Shape of the net."""
        heads = self.num_attention_heads
        if self.head_dim not in (None, self.hidden_size // heads):
            raise ConfigError(f"head_dim is {self.head_dim}, and {heads} heads share a width of {self.hidden_size}")
        attention = AttentionConfig(
            rotary_base=self.rope_theta,
            kv_heads=self.num_key_value_heads,
            normalised=False,
            bias=self.attention_bias,
        )
        own = {"eps": self.rms_norm_eps, "tied": self.tie_word_embeddings, "mlp_bias": self.mlp_bias}
        return DecoderConfig(norm="rms", gated=True, operator=attention, **own, **_sizes(self))


@dataclass(frozen=True, kw_only=True)
class NeoXConfig:
    """`config.json` of GPT-NeoX-20B, of Pythia, and of others in their layout.

    Source: Black et al., "GPT-NeoX-20B", arXiv 2204.06745; Biderman et al., "Pythia", arXiv 2304.01373.
    """

    model_type: Literal["gpt_neox"]
    """Name of the layout."""
    hidden_size: int
    """Width."""
    num_hidden_layers: int
    """Blocks."""
    num_attention_heads: int
    """Heads."""
    intermediate_size: int
    """Width inside the pointwise network."""
    vocab_size: int
    """Rows of the token table."""
    max_position_embeddings: int = 2048
    """Most tokens of a row that the rotary angles were made for."""
    rotary_pct: float = 0.25
    """Share of a head's channels that are turned."""
    rotary_emb_base: float = 10000.0
    """Base of the rotary angles."""
    rope_scaling: None = None
    """Rotary angles are not stretched."""
    layer_norm_eps: float = 1e-5
    """Added to the variance by the norms."""
    use_parallel_residual: bool = True
    """Attention and pointwise network read the same state."""
    hidden_act: Literal["gelu"] = "gelu"
    """Inside the pointwise network."""
    attention_bias: bool = True
    """Queries, keys, values and the output have biases."""
    tie_word_embeddings: bool = False
    """Words are told by the table that they are read by."""
    bos_token_id: int | None = 0
    """Token before the first of a row."""
    eos_token_id: int | tuple[int, ...] | None = 0
    """The end of a text; of several the first."""

    @property
    def shape(self) -> DecoderConfig:
        """Shape of the net."""
        if int(self.hidden_size // self.num_attention_heads * self.rotary_pct) % 2:
            raise ConfigError(f"rotary_pct is {self.rotary_pct}, which turns an odd number of a head's channels")
        attention = AttentionConfig(
            rotary_base=self.rotary_emb_base,
            rotary_share=self.rotary_pct,
            normalised=False,
            bias=self.attention_bias,
        )
        own = {"eps": self.layer_norm_eps, "tied": self.tie_word_embeddings, "parallel": self.use_parallel_residual}
        return DecoderConfig(norm="layer", gated=False, mlp_bias=True, operator=attention, **own, **_sizes(self))


def _sizes(config: LlamaConfig | NeoXConfig) -> dict[str, Any]:
    """What both layouts say in the same words.

    Raises:
        ConfigError: a size is out of range, or no token ends a text.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    if not ends or ends[0] is None:
        raise ConfigError("eos_token_id is not given, and a text needs an end")
    begin = ends[0] if config.bos_token_id is None else config.bos_token_id
    for name, token in (("bos_token_id", begin), ("eos_token_id", ends[0])):
        check_token(name, token, config.vocab_size)
    check_sizes(hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers)
    check_sizes(num_attention_heads=config.num_attention_heads, intermediate_size=config.intermediate_size)
    check_sizes(vocab_size=config.vocab_size, max_position_embeddings=config.max_position_embeddings)
    return {
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "heads": config.num_attention_heads,
        "depth": config.num_hidden_layers,
        "hidden": config.intermediate_size,
        "prompt_depth": 1,
        "max_prompt": config.max_position_embeddings - 1,
        "max_text": config.max_position_embeddings,
        "absolute_places": False,
        "begin": begin,
        "end": ends[0],
    }


Names = dict[str, tuple[str, ...]]
"""From a weight of ours to the published ones that it is made of, one behind the other."""


def _llama_names(shape: DecoderConfig) -> Names:
    names: Names = {"embedding.weight": ("model.embed_tokens.weight",), "trunk.norm.weight": ("model.norm.weight",)}
    if not shape.tied:
        names["head.weight"] = ("lm_head.weight",)
    parts = {
        "operator_norm": ("input_layernorm",),
        "operator.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "operator.out": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.gate": ("mlp.gate_proj",),
        "mlp.up": ("mlp.up_proj",),
        "mlp.down": ("mlp.down_proj",),
    }
    return names | _in_blocks("model.layers.{}.", parts)


def _neox_names(shape: DecoderConfig) -> Names:
    names: Names = {"embedding.weight": ("gpt_neox.embed_in.weight",)}
    names |= {f"trunk.norm.{kind}": (f"gpt_neox.final_layer_norm.{kind}",) for kind in ("weight", "bias")}
    if not shape.tied:
        names["head.weight"] = ("embed_out.weight",)
    parts = {
        "operator_norm": ("input_layernorm",),
        "operator.qkv": ("attention.query_key_value",),
        "operator.out": ("attention.dense",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.up": ("mlp.dense_h_to_4h",),
        "mlp.down": ("mlp.dense_4h_to_h",),
    }
    return names | _in_blocks("gpt_neox.layers.{}.", parts)


def _in_blocks(place: str, parts: Mapping[str, tuple[str, ...]]) -> Names:
    """Names of the weights and biases of a block, `{}` for its number in ours and theirs."""
    return {
        f"trunk.blocks.{{}}.{ours}.{kind}": tuple(f"{place}{part}.{kind}" for part in theirs)
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
    }


LAYOUTS: Mapping[CausalKind, tuple[type[Any], Callable[[DecoderConfig], Names]]] = {
    "llama": (LlamaConfig, _llama_names),
    "gpt_neox": (NeoXConfig, _neox_names),
}


class _Stored(nn.Module):
    """Weights as they are published, by their own names."""

    def __init__(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.keys = {name: name.replace(".", "/") for name in sizes}
        for name, size in sizes.items():
            self.register_parameter(self.keys[name], nn.Parameter(torch.empty(size), requires_grad=False))

    def take(self, name: str) -> Tensor:
        """A weight, which is then let go."""
        value = self.get_parameter(self.keys[name])
        delattr(self, self.keys[name])
        return value


def load_decoder(
    folder: str | Path, kind: CausalKind, device: str | None = None, *, change: Change | None = None
) -> DecoderLM:
    """Load a published causal model through manta's own layers, in float32; no code of the folder is run.

    Args:
        folder: with `config.json`, `tokenizer.json` and safetensors, one file or shards with their index.
        kind: its layout.
        device: where to put it; None: the first CUDA device, else the CPU.
        change: what becomes of each published weight as it is read; None: nothing.

    Raises:
        ModelError: the layout has an option that manta does not compute, or a file is missing, damaged, a pickle, or
            not what `config.json` says; the message names it.
    """
    folder = Path(folder)
    lm = describe_decoder(folder, kind)
    names, sizes, headwise = published_weights(lm.model)
    with torch.device("meta"):
        stored = _Stored(sizes)
    how = {"dtype": torch.float32, "unused": TABLES, "change": change}
    load_weights(stored, folder, stored.keys, device=torch.device("cpu"), **how)
    _fill(lm.model.to_empty(device=resolve_device(device)), names, stored.take, headwise=headwise)
    return lm


def describe_decoder(folder: str | Path, kind: CausalKind) -> DecoderLM:
    """A published causal model without its weights, its net on the meta device.

    Args:
        folder: as for `load_decoder`.
        kind: its layout.

    Raises:
        ModelError: as for `load_decoder`, the weights aside.
    """
    folder = Path(folder)
    file = folder / "config.json"
    try:
        shape = parse(LAYOUTS[kind][0], _respelled(read_json(file)), file, UNUSED).shape
        with torch.device("meta"):
            net = DecoderModel(shape)
    except ConfigError as error:
        raise ModelError(f"{file}: {error}; manta cannot compute this model") from None
    except (RuntimeError, ArithmeticError) as error:  # sizes beyond what torch counts
        raise ModelError(f"{file} does not describe a model that can be built ({error}); copy it again") from error
    tokenizer = ForeignTokenizer.of_folder(folder, most=shape.vocab_size)
    if tokenizer is None:
        raise ModelError(f"{folder} has no tokenizer.json; save the model's fast tokenizer there")
    return DecoderLM(net, tokenizer)


def llama_of(
    config: LlamaConfig,
    tokenizer: ForeignTokenizer,
    shape_of: Callable[[str], tuple[int, ...]],
    take: Callable[[str], Tensor],
    device: str | None = None,
) -> DecoderLM:
    """A model of Llama's layout from weights that lie elsewhere than in safetensors.

    The shapes of all weights are compared with what the layout asks for before any memory is taken.

    Args:
        config: what its `config.json` would say.
        tokenizer: its own.
        shape_of: the shape of a weight as it is stored, by its published name.
        take: the weight itself.
        device: where to put it; None: the first CUDA device, else the CPU.

    Raises:
        ConfigError: a size is out of range.
        ModelError: a weight has another size.
    """
    with torch.device("meta"):
        net = DecoderModel(config.shape)
        names, sizes = published(net, _llama_names(config.shape))
    for name, size in sizes.items():
        if (stored := shape_of(name)) != size:
            raise ModelError(f"{name} is of shape {stored}, and the layout asks for {size}")
    _fill(net.to_empty(device=resolve_device(device)), names, take, headwise=False)
    return DecoderLM(net, tokenizer)


@torch.no_grad()
def _fill(net: DecoderModel, names: Names, take: Callable[[str], Tensor], *, headwise: bool) -> None:
    """Put published weights into a net; `headwise`: queries, keys and values lie head by head."""
    for gain in net.buffers():  # of scores, which the layouts do not have
        gain.fill_(1.0)
    for ours, parameter in net.named_parameters():
        parts = [take(name) for name in names[ours]]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if headwise and ".qkv." in ours:
            value = by_part(value, net.config.heads or 1)
        parameter.copy_(value)


def published_weights(net: DecoderModel) -> tuple[Names, dict[str, tuple[int, ...]], bool]:
    """How the weights of a net are published.

    Args:
        net: as `load_decoder` makes it.

    Returns:
        From each weight of ours to the published ones that it is made of, one behind the other; the size of each
        published weight; and whether queries, keys and values are published head by head, as GPT-NeoX's are.
    """
    kind: CausalKind = "llama" if net.config.norm == "rms" else "gpt_neox"
    return *published(net, LAYOUTS[kind][1](net.config)), kind == "gpt_neox"


def _respelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """GPT-NeoX's share and base of the rotary angles where later versions of transformers have put them elsewhere."""
    found = dict(config)
    rope = found.get("rope_parameters")
    if config.get("model_type") == "gpt_neox" and isinstance(rope, Mapping):
        rope = dict(rope)
        for theirs, own in (("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")):
            if theirs in rope:
                found[own] = rope.pop(theirs)
        found["rope_parameters"] = rope
    return found


def by_part(rows: Shaped[Tensor, "r *d"], heads: int) -> Shaped[Tensor, "r *d"]:
    """All queries, then all keys, then all values, of rows that are stored head by head."""
    return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def by_head(rows: Shaped[Tensor, "r *d"], heads: int) -> Shaped[Tensor, "r *d"]:
    """The inverse of `by_part`: head by head, each with its query, key and value."""
    return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def published(net: DecoderModel, names: Names) -> tuple[Names, dict[str, tuple[int, ...]]]:
    """Published names of each weight of a net, and the size of each published weight."""
    found: Names = {}
    sizes: dict[str, tuple[int, ...]] = {}
    grouped: dict[str, list[int]] = {}
    for ours, value in net.named_parameters():
        number = ours.split(".")[2] if ours.startswith("trunk.blocks.") else ""
        pattern = ours.replace(f"trunk.blocks.{number}.", "trunk.blocks.{}.") if number else ours
        if pattern not in names:
            continue
        found[ours] = tuple(name.format(number) for name in names[pattern])
        if len(found[ours]) == 3:
            operator: Any = net.trunk.blocks[int(number)].operator
            grouped[ours] = [operator.head_dim * each for each in (operator.heads, *[operator.kv_heads] * 2)]
        rows = grouped.get(ours, [value.shape[0]])
        for name, count in zip(found[ours], rows, strict=True):
            sizes[name] = (count, *value.shape[1:])
    return found, sizes
