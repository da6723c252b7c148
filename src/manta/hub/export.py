"""Models of ours as folders that `transformers` and whoever reads its layouts load without manta."""

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from manta.errors import ModelError, UsageError
from manta.families.decoder import DecoderConfig, DecoderModel
from manta.hub.foreign.causal import CAUSAL_KINDS, LAYOUTS, CausalKind, by_head, published
from manta.operators import SelfAttention
from manta.runtime import atomic_folder
from manta.text import ForeignTokenizer

PUBLISHED_CLASS = {"llama": "LlamaForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}
"""Who computes a layout in `transformers`, by its `model_type`."""


def export(lm: Any, folder: str | Path, to: CausalKind = "llama") -> None:
    """Write a left-to-right model in a layout that others read: what they compute of it is what manta computes.

    Logits of whole rows of two tokens or more, in float32 on a CPU, are the same to the last bit: weights are moved and
    never recomputed, and manta rounds in the layout's order. (A product with a single row adds up in an order that
    depends on where the row lies in memory.) A drafter has no place in a layout and is left out.

    Args:
        lm: of the family `decoder`, whose operators are all attention.
        folder: new or empty; it gets `config.json`, `model.safetensors` in float32, `tokenizer.json`,
            `tokenizer_config.json` and `generation_config.json`.
        to: the layout.

    Raises:
        UsageError: the folder holds files.
        ModelError: no such layout computes what the model does; the message says why.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; give a new folder")
    if to not in CAUSAL_KINDS:
        raise UsageError(f"a model is exported to {' or '.join(get_args(CausalKind))}, received {to!r}")
    refuse_inexact(lm, to)
    net: DecoderModel = lm.model
    tokenizer: ForeignTokenizer = lm.tokenizer
    config, begin, end = _config(net, to), net.config.begin, net.config.end
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer.opening(begin),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.token(begin),
            "eos_token": tokenizer.token(end),
            "pad_token": tokenizer.token(end),
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # the name of a special token in a text is text
        },
        "generation_config.json": {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end},
    }
    with atomic_folder(folder) as new:
        save_file(_weights(net, to), new / "model.safetensors", metadata={"format": "pt"})
        for name, content in files.items():
            (new / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_inexact(lm: Any, to: CausalKind) -> None:
    """Refuse a model that a layout does not compute exactly.

    Raises:
        ModelError: as said.
    """
    words = f"it cannot be exported as {PUBLISHED_CLASS[to]}"
    if lm.family == "ar":
        raise ModelError(
            f"a model of the family ar reads its prompt by cross-attention in every block, and each head has a gain on "
            f"scores of normalised queries and keys; no decoder of transformers does, so {words}. Train one with "
            "--family decoder"
        )
    if lm.family != "decoder":
        raise ModelError(
            f"a model of the family {lm.family} does not write left to right, word by word, so {words}; `transformers` "
            "loads it through manta.hub.auto"
        )
    if lm.quantised is not None:
        raise ModelError(f"the model's maps are of integers, so {words}; export the one that it was made of")
    operators, shape = _operators(lm.model), lm.model.config
    others = sorted({type(each).__name__ for each in operators if type(each) is not SelfAttention})
    if others or any(each.normalised for each in operators):
        what = ", ".join(others) or "attention with normalised queries and keys"
        raise ModelError(f"the model's operators are {what}, not plain attention, so {words}")
    turns = {(each.turn.base, each.turn.share, each.heads, each.kv_heads) for each in operators}
    if len(turns) > 1:
        raise ModelError(f"the model's blocks differ in their heads or in how they turn them, so {words}")
    [(_, share, heads, kv_heads)] = turns
    fits = "llama" if shape.norm == "rms" and shape.gated and not shape.parallel and share == 1 else "gpt_neox"
    if fits == "gpt_neox" and (shape.norm == "rms" or shape.gated or heads != kv_heads):
        raise ModelError(f"the model mixes what Llama's and GPT-NeoX's blocks have apart, so {words}")
    if fits != to:
        raise ModelError(f"the model's blocks are those of {fits}, so {words}; give --to {fits}")


def _operators(net: DecoderModel) -> list[Any]:
    return [block.operator for block in net.trunk.blocks]


def _config(net: DecoderModel, to: CausalKind) -> dict[str, Any]:
    """What the layout's `config.json` says of a net."""
    shape: DecoderConfig = net.config
    first, hidden = _operators(net)[0], net.trunk.blocks[0].get_submodule("mlp").hidden
    base, share = first.turn.base, first.turn.share
    rope = {"rope_type": "default", "rope_theta": base}
    common = {
        "architectures": [PUBLISHED_CLASS[to]],
        "model_type": to,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": first.heads,
        "intermediate_size": hidden,
        "max_position_embeddings": shape.max_text,
        "attention_bias": first.qkv.bias is not None,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.begin,
        "eos_token_id": shape.end,
        "use_cache": True,
        "dtype": "float32",
    }
    if to == "llama":
        own = {"num_key_value_heads": first.kv_heads, "rms_norm_eps": shape.eps, "mlp_bias": shape.mlp_bias}
        return {**common, **own, "hidden_act": "silu", "rope_theta": base, "rope_parameters": rope}
    own = {"layer_norm_eps": shape.eps, "use_parallel_residual": shape.parallel, "hidden_act": "gelu"}
    rope |= {"partial_rotary_factor": share}
    return {**common, **own, "rotary_pct": share, "rotary_emb_base": base, "rope_parameters": rope}


def _weights(net: DecoderModel, to: CausalKind) -> dict[str, Tensor]:
    """The net's weights by their published names, each with memory of its own; a drafter's have none."""
    names, sizes = published(net, LAYOUTS[to][1](net.config))
    found: dict[str, Tensor] = {}
    for ours, value in net.named_parameters():
        if ours.startswith("drafter."):
            continue
        value = value.detach().to("cpu", torch.float32)
        if to == "gpt_neox" and ".qkv." in ours:
            value = by_head(value, net.config.heads or 1)
        parts = value.split([sizes[name][0] for name in names[ours]])
        found |= {name: part.clone().contiguous() for name, part in zip(names[ours], parts, strict=True)}
    return found
