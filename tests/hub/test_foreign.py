"""Published masked models load strictly and compute what their authors' code does; whatever does not fit is named."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import manta
from manta.errors import ModelError, RequestError
from manta.hub import ForeignModel, find_foreign, load_foreign
from manta.hub.foreign import subs

from .published import CONFIGS, WEIGHTS, llama_reference, mdlm_reference, write

KINDS = ["llada", "Dream", "mdlm"]
MASK = 53

LLADA_NAMES = {
    "table": "model.transformer.wte",
    "norm1": "model.transformer.blocks.{}.attn_norm",
    "q": "model.transformer.blocks.{}.q_proj",
    "k": "model.transformer.blocks.{}.k_proj",
    "v": "model.transformer.blocks.{}.v_proj",
    "o": "model.transformer.blocks.{}.attn_out",
    "norm2": "model.transformer.blocks.{}.ff_norm",
    "gate": "model.transformer.blocks.{}.ff_proj",
    "up": "model.transformer.blocks.{}.up_proj",
    "down": "model.transformer.blocks.{}.ff_out",
    "norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
}
LLAMA_NAMES = {
    "table": "model.embed_tokens",
    "norm1": "model.layers.{}.input_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "norm2": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def some_tokens(b: int = 2, n: int = 11) -> torch.Tensor:
    tokens = torch.randint(0, 50, (b, n), generator=torch.Generator().manual_seed(3))
    tokens[:, -4:] = MASK
    return tokens


def left_padded(tokens: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    return mask


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    write(tmp_path / "model", kind, shards=3)
    return tmp_path / "model"


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llada_computes_its_equations(tmp_path, kv_heads):
    weights = write(tmp_path, "llada", n_kv_heads=kv_heads)
    model, tokens = load_foreign(tmp_path, "cpu", dtype=torch.float32), some_tokens()
    mask, places = left_padded(tokens), torch.arange(tokens.shape[1])
    config = {"depth": 2, "heads": 4, "eps": 1e-5, "base": 500000.0}
    for given in (None, mask):
        logits = model.net(tokens, None if given is None else given.bool())
        for row in range(2):
            real = torch.ones(tokens.shape[1], dtype=torch.bool) if given is None else given[row].bool()
            expected = llama_reference(weights, LLADA_NAMES, config, tokens[row], places, real)
            torch.testing.assert_close(logits[row][real].double(), expected[real], atol=2e-5, rtol=1e-5)


def test_dream_computes_its_equations_and_counts_real_tokens_only(tmp_path):
    weights = write(tmp_path, "Dream")
    model, tokens = load_foreign(tmp_path, "cpu", dtype=torch.float32), some_tokens()
    mask = left_padded(tokens)
    mask[0, 5] = 0  # a hole closes up
    config = {"depth": 2, "heads": 4, "eps": 1e-6, "base": 1000000.0}
    logits = model.net(tokens, mask.bool())
    for row in range(2):
        real = mask[row].bool()
        kept = tokens[row][real]
        everything = torch.ones(len(kept), dtype=torch.bool)
        expected = llama_reference(weights, LLAMA_NAMES, config, kept, torch.arange(len(kept)), everything)
        torch.testing.assert_close(logits[row][real].double(), expected, atol=2e-5, rtol=1e-5)


def test_mdlm_computes_its_equations(tmp_path):
    weights = write(tmp_path, "mdlm")
    model, tokens = load_foreign(tmp_path, "cpu"), some_tokens()
    mask = left_padded(tokens).bool()
    logits = model.net(tokens, mask)
    for row in range(2):
        expected = mdlm_reference(weights, CONFIGS["mdlm"], tokens[row], mask[row])
        torch.testing.assert_close(logits[row][mask[row]].double(), expected[mask[row]], atol=2e-5, rtol=1e-5)


def full(mask: torch.Tensor) -> torch.Tensor:
    """A mask that transformers takes as it is: 0 at real keys for every query."""
    return torch.zeros(mask.shape).masked_fill(mask == 0, -1e9)[:, None, None].expand(-1, 1, mask.shape[1], -1)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_llada_is_llama_without_its_causal_mask(tmp_path, kv_heads):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=56,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    weights = write(tmp_path, "llada", n_kv_heads=kv_heads)
    renamed = {}
    for part, ours in LLADA_NAMES.items():
        for i in range(2):
            renamed[f"{LLAMA_NAMES[part].format(i)}.weight"] = weights[f"{ours.format(i)}.weight"]
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(renamed)
    model, tokens = load_foreign(tmp_path, "cpu", dtype=torch.float32), some_tokens()
    mask = left_padded(tokens)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=full(mask)).logits
        causal = theirs(input_ids=tokens).logits
    real = mask.bool()
    torch.testing.assert_close(model.net(tokens, real)[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (model.net(tokens) - causal).abs().max() > 0.1


@pytest.mark.slow
def test_dream_is_qwen2_without_its_causal_mask(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=56,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
    )
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict(write(tmp_path, "Dream"))
    model, tokens = load_foreign(tmp_path, "cpu", dtype=torch.float32), some_tokens()
    mask = left_padded(tokens)
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=full(mask), position_ids=places).logits
    real = mask.bool()
    torch.testing.assert_close(model.net(tokens, real)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_a_decoder_can_rely_on_the_contract(folder, kind):
    model, tokens = load_foreign(folder, "cpu"), some_tokens()
    mask_id = {"llada": 53, "Dream": 53, "mdlm": 55}[kind]
    assert (model.family, model.mask_id, model.vocab_size, model.max_length) == (kind, mask_id, 56, 64)
    assert (model.eos_id, model.pad_id) == ((None, None) if kind == "mdlm" else (51, 51))
    logits = model(tokens)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    assert torch.equal(logits, model.logits(tokens)) and torch.equal(logits, model(tokens, torch.ones_like(tokens)))
    assert (logits[..., mask_id] == -torch.inf).all()
    words = torch.arange(56) != mask_id
    raw = model.net(tokens).float()
    expected = torch.cat([raw[:, :1], raw[:, :-1]], 1) if kind == "Dream" else raw
    assert torch.equal(logits[..., words], expected[..., words])
    assert logits[..., words].isfinite().all()


def test_padding_changes_nothing_for_the_real_tokens(folder):
    model, tokens = load_foreign(folder, "cpu", dtype=torch.float32), some_tokens()
    mask = left_padded(tokens)
    alone = model.net(tokens[1:, 3:])
    rubbish = tokens.masked_fill(mask == 0, 7)
    for given in (tokens, rubbish):
        torch.testing.assert_close(model.net(given, mask.bool())[1:, 3:], alone, atol=1e-4, rtol=1e-4)
    batch, single = model(tokens, mask)[:1], model(tokens[:1], mask[:1])
    torch.testing.assert_close(batch, single, atol=1e-5, rtol=1e-5)


def test_every_token_sees_every_other(folder):
    model, tokens = load_foreign(folder, "cpu", dtype=torch.float32), some_tokens()
    for place in (0, -1):
        other = tokens.clone()
        other[:, place] = 9
        assert ((model.net(other) - model.net(tokens)).abs().amax(-1) > 1e-6).all()


def test_weights_arrive_in_the_published_precision(folder, kind):
    model = load_foreign(folder, "cpu")
    expected = torch.float32 if kind == "mdlm" else torch.bfloat16
    assert {p.dtype for p in model.net.parameters()} == {expected}
    assert not model.net.training
    sharded = load_foreign(folder, "cpu", dtype=torch.float32)
    single = folder.parent / "single"
    write(single, kind)
    ours = load_foreign(single, "cpu", dtype=torch.float32).net.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in sharded.net.state_dict().items())


def test_subs_is_a_distribution_without_the_mask_that_keeps_words(tmp_path):
    write(tmp_path, "mdlm")
    model, tokens = load_foreign(tmp_path, "cpu"), some_tokens().masked_fill(some_tokens() == 53, 55)
    hidden = tokens == model.mask_id
    assert hidden.any() and not hidden.all()
    raw = model.net(tokens)
    found = subs(raw, tokens, model.mask_id)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(tokens.shape))
    assert (found[..., model.mask_id] == -torch.inf).all()
    kept = torch.nn.functional.one_hot(tokens[~hidden], 56).log()
    assert torch.equal(found[~hidden], kept.float())
    odds = raw[hidden][:, :3].exp()
    torch.testing.assert_close(found[hidden][:, :3].exp(), odds / raw[hidden][:, :55].exp().sum(-1, keepdim=True))
    torch.testing.assert_close(found[hidden], model(tokens)[hidden].log_softmax(-1))


def test_load_opens_a_published_folder(folder, kind):
    model = manta.load(folder, device="cpu")
    assert isinstance(model, ForeignModel) and find_foreign(folder) == kind
    with pytest.raises(RequestError, match="no tokenizer"):
        model.write(["a prompt"])


def test_other_folders_are_not_taken_for_published_ones(tmp_path):
    assert find_foreign(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert find_foreign(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "model_type": "llada"}))
    assert find_foreign(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for attempt in (find_foreign, load_foreign, manta.load):
        with pytest.raises(ModelError, match="'gpt2'"):
            attempt(tmp_path)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("llada", "block_type", "sequential"),
        ("llada", "activation_type", "swiglu"),
        ("llada", "rope", False),
        ("llada", "alibi", True),
        ("llada", "weight_tying", True),
        ("llada", "include_qkv_bias", True),
        ("llada", "architectures", ["LLaDAMoEModel"]),
        ("llada", "num_experts", 64),
        ("llada", "mask_token_id", 56),
        ("llada", "embedding_size", 40),
        ("llada", "n_layers", 10**9),
        ("llada", "n_kv_heads", 0),
        ("llada", "n_heads", 5),
        ("llada", "d_model", "32"),
        ("Dream", "architectures", ["DreamForCausalLM"]),
        ("Dream", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("Dream", "use_sliding_window", True),
        ("Dream", "tie_word_embeddings", True),
        ("Dream", "block_size", 32),
        ("Dream", "num_key_value_heads", 3),
        ("Dream", "hidden_act", "gelu"),
        ("mdlm", "time_conditioning", True),
        ("mdlm", "quantization_config", {"bits": 4}),
        ("mdlm", "n_blocks", 0),
    ],
)
def test_an_option_that_changes_the_mathematics_is_named(tmp_path, kind, option, value):
    write(tmp_path, kind, weights=WEIGHTS[kind](CONFIGS[kind]), **{option: value})
    words = "heads" if option in ("n_heads", "num_key_value_heads") else option
    with pytest.raises(ModelError, match=rf"config\.json.*{words}") as caught:
        load_foreign(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["block_type", "rope", "weight_tying", "rope_theta"])
def test_an_option_with_another_default_has_to_be_stated(tmp_path, option):
    write(tmp_path, "llada")
    config = json.loads((tmp_path / "config.json").read_text())
    del config[option]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=option):
        load_foreign(tmp_path, "cpu")


def test_an_option_that_is_off_does_no_harm(tmp_path):
    write(tmp_path, "Dream", some_new_option=False, another=None, _attn_implementation="sdpa")
    load_foreign(tmp_path, "cpu")


SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def change(file: Path, edit) -> None:
    """Rewrite a safetensors or JSON file."""
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
    else:
        weights = load_file(file)
        edit(weights)
        save_file(weights, file)


def a_weight(folder: Path) -> str:
    return min(load_file(folder / SHARD))


def test_a_missing_weight_is_named(folder):
    name = a_weight(folder)
    change(folder / SHARD, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=rf"{SHARD}.*{name}"):
        load_foreign(folder, "cpu")
    change(folder / INDEX, lambda index: index["weight_map"].pop(name))
    with pytest.raises(ModelError, match=rf"{INDEX}.*{name}"):
        load_foreign(folder, "cpu")


def test_an_unexpected_weight_is_named(folder, kind, tmp_path):
    def add(weights):
        weights.update(surplus=torch.zeros(2))

    change(folder / SHARD, add)
    change(folder / INDEX, lambda index: index["weight_map"].update(surplus=SHARD))
    with pytest.raises(ModelError, match=rf"{SHARD} holds surplus"):
        load_foreign(folder, "cpu")
    write(tmp_path / "single", kind)
    change(tmp_path / "single" / "model.safetensors", add)
    with pytest.raises(ModelError, match=r"model\.safetensors holds surplus"):
        load_foreign(tmp_path / "single", "cpu")


def test_a_weight_that_two_files_hold_is_named(folder):
    name, other = a_weight(folder), SHARD.replace("2", "1", 1)
    value = load_file(folder / SHARD)[name]
    change(folder / other, lambda weights: weights.update({name: value + 1}))
    with pytest.raises(ModelError, match=rf"{other} holds {name}"):
        load_foreign(folder, "cpu")


def test_a_weight_of_another_file_is_named(folder):
    name = a_weight(folder)
    other = SHARD.replace("2", "1", 1)
    change(folder / INDEX, lambda index: index["weight_map"].update({name: other}))
    with pytest.raises(ModelError, match=rf"{other}.*{name}"):
        load_foreign(folder, "cpu")


def test_a_misshapen_weight_is_named(folder):
    name = a_weight(folder)
    change(folder / SHARD, lambda weights: weights.update({name: weights[name][:-1].clone()}))
    with pytest.raises(ModelError, match=rf"{SHARD} holds {name} of shape"):
        load_foreign(folder, "cpu")


def test_a_quantised_weight_is_named(folder):
    name = a_weight(folder)
    change(folder / SHARD, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    with pytest.raises(ModelError, match=rf"{name} as I8"):
        load_foreign(folder, "cpu")


def test_other_rotary_frequencies_are_named(tmp_path):
    weights = write(tmp_path, "mdlm")
    name = "backbone.rotary_emb.inv_freq"
    write(tmp_path, "mdlm", weights=weights | {name: weights[name] * 2})
    with pytest.raises(ModelError, match=name):
        load_foreign(tmp_path, "cpu")
    write(tmp_path, "mdlm", weights={key: value for key, value in weights.items() if key != name})
    load_foreign(tmp_path, "cpu")


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD])
@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish"])
def test_a_damaged_file_is_named(folder, name, damage):
    file = folder / name
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(b"\x80\x04rubbish" * 50)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_foreign(folder, "cpu")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_without_files_is_damaged(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        load_foreign(folder, "cpu")


@pytest.mark.parametrize("place", ["../", "sub/../../", "{folder.parent}/", "..\\", "C:\\"])
def test_an_index_does_not_lead_out_of_the_folder(folder, place):
    shutil.copy(folder / SHARD, folder.parent)
    entry = place.format(folder=folder) + SHARD

    def redirect(index):
        index["weight_map"] = {k: entry if f == SHARD else f for k, f in index["weight_map"].items()}

    change(folder / INDEX, redirect)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_foreign(folder, "cpu")


@pytest.mark.parametrize("sharded", [True, False])
def test_a_link_does_not_lead_out_of_the_folder(tmp_path, sharded):
    folder = tmp_path / "model"
    write(folder, "Dream", shards=3 if sharded else 1)
    name = SHARD if sharded else "model.safetensors"
    outside = shutil.move(folder / name, tmp_path / "elsewhere.safetensors")
    os.symlink(outside, folder / name)
    with pytest.raises(ModelError, match="leads out"):
        load_foreign(folder, "cpu")


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    """The cache keeps files as `blobs/HASH` and a revision as links to them."""
    folder, blobs = tmp_path / "snapshots" / "revision", tmp_path / "blobs"
    write(folder, "Dream", shards=3)
    blobs.mkdir()
    for number, file in enumerate(list(folder.iterdir())):
        shutil.move(file, blobs / f"hash{number}")
        os.symlink(f"../../blobs/hash{number}", file)
    load_foreign(folder, "cpu")


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "last.ckpt", "model.pt"])
def test_a_pickle_is_refused_unread(folder, name):
    for file in folder.glob("*safetensors*"):
        file.unlink()
    mark = folder / "mark"
    (folder / name).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ModelError, match=rf"{name}.*pickle.*safetensors only"):
        load_foreign(folder, "cpu")
    assert not mark.exists()


def test_a_pickle_in_the_index_is_refused_unread(folder):
    mark = folder / "mark"
    (folder / "shard.bin").write_bytes(pickle.dumps(Trap(mark)))
    change(folder / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], "shard.bin")))
    with pytest.raises(ModelError, match="safetensors only"):
        load_foreign(folder, "cpu")
    assert not mark.exists()


def test_code_in_the_folder_is_not_run(folder):
    for name in ("modeling_llada.py", "modeling_dream.py", "configuration_dream.py", "modeling_mdlm.py"):
        (folder / name).write_text("raise SystemExit('run')")
    load_foreign(folder, "cpu")


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(folder, monkeypatch):
    name = a_weight(folder)
    change(folder / SHARD, lambda weights: weights.pop(name))
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(ModelError):
        load_foreign(folder, "cpu")


RESAVED = {
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "rope_scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}},
    "layer_types": {"rope_theta": 1e6, "layer_types": ["full_attention"] * 2, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("change", RESAVED)
def test_a_folder_that_transformers_saved_again_computes_the_same(tmp_path, change):
    write(tmp_path, "Dream")
    tokens = some_tokens()
    expected = load_foreign(tmp_path, "cpu").logits(tokens)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_theta"], config["rope_scaling"], config["torch_dtype"]
    file.write_text(json.dumps(config | RESAVED[change]))
    assert torch.equal(load_foreign(tmp_path, "cpu").logits(tokens), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_parameters": ["default"]},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": 3},
    ],
)
def test_what_was_saved_again_and_computes_otherwise_is_refused(tmp_path, change):
    write(tmp_path, "Dream", **change)
    with pytest.raises(ModelError, match=next(iter(change)) + "|two bases"):
        load_foreign(tmp_path, "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(folder, value):
    file = sorted(folder.glob("*.safetensors"))[0]
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{re.escape(name)} with values that are not finite"):
        load_foreign(folder, "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["pipe", "folder", "deep", "twice", "latin"])
def test_a_file_that_is_none_is_named_and_never_waited_for(folder, name, damage):
    file = folder / name
    file.unlink(missing_ok=True)
    if damage in ("pipe", "folder"):
        os.mkfifo(file) if damage == "pipe" else file.mkdir()
    else:
        texts = {"deep": b"[" * 100_000, "twice": b'{"a": 1, "a": 2}', "latin": '{"a": "é"}'.encode("latin-1")}
        file.write_bytes(texts[damage])
    with pytest.raises(ModelError, match=re.escape(name)):
        load_foreign(folder, "cpu")
