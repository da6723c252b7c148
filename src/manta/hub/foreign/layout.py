"""What a published checkpoint says of itself: its `config.json`, read strictly where the mathematics depends on it."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manta import runtime
from manta.config import from_dict, shortened
from manta.errors import ConfigError, ModelError

T = TypeVar("T")

UNUSED = frozenset(
    {
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "dropout",
        "dtype",
        "embedding_dropout",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "resid_pdrop",
        "residual_dropout",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
"""Keys of any `config.json` that do not change what a trained model computes."""

MAX_DEPTH = 1000
"""Most blocks of a model: a bound on what a damaged file can ask for."""
MAX_SIZE = 10_000_000
"""Largest width, vocabulary or length of a model."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint before its weights are read."""

    net: nn.Module
    """On the meta device."""
    names: Mapping[str, str]
    """From a weight's published name to its name in the net."""
    dtype: torch.dtype
    """In which such weights are published."""
    vocab_size: int
    """Rows of the token table."""
    max_length: int
    """Most tokens of a row that the checkpoint says it is made for."""
    mask_id: int
    """The mask token."""
    eos_id: int | None
    """The end of a text, if any."""
    pad_id: int | None
    """Padding, if any."""
    shifted: bool = False
    """Token i is predicted at position i − 1."""
    split: str | None = None
    """What cuts a text into words, where the tokenizer's files do not say."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Values that some checkpoints store and the net computes, by published name."""


def read_json(file: Path) -> dict[str, Any]:
    """The group of keys that a JSON file holds.

    Raises:
        ModelError: the file is missing, damaged, or no group of keys.
    """
    config = runtime.read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file} is damaged: it holds no group of keys; copy it again")
    return config


def parse(cls: type[T], config: Mapping[str, Any], file: Path, unused: Set[str] = frozenset()) -> T:
    """Build a checkpoint's configuration from its `config.json`.

    A key that is neither a field nor known to be without effect is refused, unless it switches something off: it may
    change what the model computes.

    Args:
        cls: a dataclass; a field with one choice is an option that manta computes in that one way.
        config: the file's keys.
        file: named in errors.
        unused: further keys without effect.

    Raises:
        ModelError: an option is unknown or has a value that manta does not compute; the message names both.
    """
    config = resaved(config, file)
    fields = set(cls.__annotations__)
    given = {key: config[key] for key in config if key in fields}
    for key in sorted(config.keys() - fields - UNUSED - unused):
        if config[key] not in (None, False, [], {}) and not key.startswith("_"):
            raise ModelError(
                f"{file} has the option {key[:80]} = {shortened(config[key])}, which manta does not know and which may "
                "change what the model computes"
            )
    try:
        return from_dict(cls, given)
    except ConfigError as error:
        raise ModelError(f"{file}: {error}; manta cannot compute this model") from None


def resaved(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A configuration as it was published, where later versions of transformers have saved it in other words.

    The base of the rotary angles moved into `rope_parameters`, which may also stretch them; attention may be told layer
    by layer.

    Args:
        config: the file's keys.
        file: named in errors.

    Raises:
        ModelError: the angles are stretched, or two bases are given.
    """
    found = dict(config)
    layers = found.get("layer_types")
    if isinstance(layers, list) and layers and all(layer == "full_attention" for layer in layers):
        del found["layer_types"]
    for key in ("rope_parameters", "rope_scaling"):
        rope = found.get(key)
        if not isinstance(rope, Mapping) or not {"rope_type", "rope_theta", "type"} >= rope.keys():
            continue
        if any(rope.get(name, "default") != "default" for name in ("rope_type", "type")):
            continue
        bases = [base for base in (found.get("rope_theta"), rope.get("rope_theta")) if base is not None]
        if any(base != bases[0] for base in bases):
            raise ModelError(f"{file} gives the rotary angles two bases, {bases[0]} and {bases[1]}; copy it again")
        del found[key]
        if bases:
            found["rope_theta"] = bases[0]
    return found


def check_sizes(**sizes: int) -> None:
    """Refuse counts below one, and what is larger than in any model.

    Raises:
        ConfigError: naming the count.
    """
    for name, value in sizes.items():
        most = MAX_DEPTH if "layers" in name or "blocks" in name else MAX_SIZE
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, out of range")


def check_token(name: str, token: int | None, vocab_size: int) -> None:
    """Refuse a token outside the vocabulary.

    Raises:
        ConfigError: naming the token.
    """
    if token is not None and not 0 <= token < vocab_size:
        raise ConfigError(f"{name} is {token}, outside the vocabulary of {vocab_size}")
