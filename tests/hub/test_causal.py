"""Published causal models compute what `transformers` computes, write as it writes, and can be converted."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import tokenizers as hf
import torch
from safetensors.torch import load_file, save_file

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, ModelError, RequestError, UsageError
from manta.families.batching import to_batch
from manta.families.decoder import DecoderLM
from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.operators import KernelAttention, SelfAttention
from manta.recipes import Recipe, TrainingRun

transformers = pytest.importorskip("transformers")

WORDS = "the cat sat on the mat and the dog ran to the cat . it was warm and the sun was on the hill ."
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
COMMON |= {"vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
KINDS_OF: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama with grouped queries, tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama with biases": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "neox, one branch after the other": ("gpt_neox", {"rotary_pct": 1.0, "use_parallel_residual": False}),
}
every_kind = pytest.mark.parametrize("name", KINDS_OF)


def published(folder: Path, name: str) -> Any:
    """A random model of `transformers`, saved with a tokenizer."""
    kind, options = KINDS_OF[name]
    torch.manual_seed(0)
    config = {"llama": transformers.LlamaConfig, "gpt_neox": transformers.GPTNeoXConfig}[kind](**COMMON, **options)
    net = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in net.parameters():  # gains and biases are away from where they begin
        torch.nn.init.normal_(parameter, mean=0.3 * (parameter.ndim == 1), std=0.25)
    net.eval().save_pretrained(folder)
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = hf.decoders.ByteLevel()  # pyright: ignore
    trainer = hf.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS], trainer)
    backend.save(str(folder / "tokenizer.json"))
    return net


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    found = {}
    for index, name in enumerate(KINDS_OF):
        folder = tmp_path_factory.mktemp("published") / str(index)
        found[name] = folder, published(folder, name)
    return found


@every_kind
def test_it_computes_what_transformers_computes(name, folders):
    folder, theirs = folders[name]
    lm = load(folder, device="cpu")
    assert isinstance(lm, DecoderLM)
    tokens = torch.randint(2, 290, (3, 13), generator=torch.Generator().manual_seed(1))
    memory = lm.model.memory(tokens[:, :0], tokens[:, 0] * 0, tokens[:, 0] * 0)
    with torch.no_grad():
        assert torch.equal(lm.model(tokens, memory), theirs(tokens).logits)


@every_kind
def test_it_writes_what_transformers_writes(name, folders):
    folder, theirs = folders[name]
    lm = cast(DecoderLM, load(folder, device="cpu"))
    prompts = [None, "the cat", "it was", "the dog ran to the"]
    events = list(lm.generate([Request(prompt=prompt) for prompt in prompts], GenerateOptions(max_tokens=9)))
    told = {event.index: event for event in events if event.kind == "done"}
    for index, prompt in enumerate(prompts):
        given = torch.tensor([[0, *(lm.tokenizer.encode(prompt) if prompt else [])]])
        row = theirs.generate(given, max_new_tokens=9, do_sample=False, pad_token_id=1)[0, given.shape[1] :].tolist()
        assert told[index].tokens == tuple(row[: row.index(1)] if 1 in row else row)
        [alone] = [e for e in lm.generate([Request(prompt=prompt)], GenerateOptions(max_tokens=9)) if e.kind == "done"]
        assert alone.tokens == told[index].tokens and alone.confidence == told[index].confidence


@every_kind
def test_likelihoods_are_those_of_transformers(name, folders):
    folder, theirs = folders[name]
    lm = cast(DecoderLM, load(folder, device="cpu"))
    prompts, texts = [[5, 6, 7], [], [9]], [[11, 12], [13], [14, 15, 16, 17]]
    found = lm.likelihoods(prompts, texts)
    for prompt, text, value in zip(prompts, texts, found, strict=True):
        row = torch.tensor([[0, *prompt, *text, 1]])
        with torch.no_grad():
            chances = theirs(row).logits[0, :-1].log_softmax(-1)
        told = chances.gather(1, row[0, 1:, None])[len(prompt) :].sum()
        assert value == pytest.approx(float(told), rel=1e-4)


def test_a_text_that_fills_the_row_is_not_asked_for_its_end(folders):
    lm = cast(DecoderLM, load(folders["llama"][0], device="cpu"))
    batch = to_batch([[5, 6], []], [[7] * 3, [7] * 64])
    given, target, asked = lm.model.shifted(batch)
    assert asked.sum(1).tolist() == [4, 64]
    assert given[0, :6].tolist() == [0, 5, 6, 7, 7, 7] and target[0, :6].tolist() == [5, 6, 7, 7, 7, 1]
    assert asked[0, :6].tolist() == [False, False, True, True, True, True]


def converting(model: Path, out: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 1000, "num_steps": 10}
    recipe |= {"max_text": 60, "converted_from": str(model), **changes}
    return TrainingRun(from_dict(Recipe, recipe), out, device="cpu")


@pytest.mark.parametrize("name", ["llama with grouped queries, tied", "neox"])
@pytest.mark.parametrize("kind", ["linear", "dijiang", "windowed", "downsampled", "attention_fourier"])
def test_its_attention_can_become_another_operator(kind, name, folders, tmp_path):
    operator = {"kind": kind, "radius": 16} if kind == "windowed" else {"kind": kind}
    run = converting(folders[name][0], tmp_path / "run", conversion={"operator": operator, "layers": "1"})
    for _ in run.events():
        pass
    lm = cast(DecoderLM, load(tmp_path / "run", device="cpu"))
    first, second = (block.get_submodule("operator") for block in lm.model.trunk.blocks)
    assert isinstance(first, SelfAttention) and type(second) is not SelfAttention
    assert lm.capacity == 60 and run.parts.scores[0].apart == pytest.approx(0, abs=1e-5)
    assert run.parts.scores[2].task < run.parts.scores[0].task  # ten steps teach random weights something
    requests = [Request(prompt="Monday"), Request(prompt="sunny and"), Request(prompt="Friday")]
    together = [e.tokens for e in lm.generate(requests, GenerateOptions(max_tokens=7)) if e.kind == "done"]
    assert len(together) == 3 and all(0 < len(tokens) <= 7 for tokens in together)
    told = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"attention of the blocks 1 became `{kind}`" in told


def test_attention_within_reach_of_everything_answers_as_before(folders, tmp_path):
    """A window as wide as the row is full attention, and one that learns nothing is the model that it was."""
    run = converting(
        folders["neox"][0],
        tmp_path / "run",
        conversion={"operator": {"kind": "windowed", "radius": 200}},
        train={"learning_rate": 1e-9},
    )
    for _ in run.events():
        pass
    assert run.parts.scores[1].apart == pytest.approx(0, abs=1e-5)


def test_a_conversion_is_taken_up_again(folders, tmp_path):
    model = folders["llama"][0]
    for _ in converting(model, tmp_path / "whole").events():
        pass
    events = converting(model, tmp_path / "parted").events()
    for event in events:
        if getattr(event, "step", 0) == 4:
            break
    events.close()
    assert main(["convert", "--resume", "--out", str(tmp_path / "parted"), "--device", "cpu"]) == 0
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parted")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_features_carry_on_from_place_to_place(folders, tmp_path):
    """Converted everywhere, a text is written by states that do not grow, and is what whole rows give."""
    run = converting(folders["llama"][0], tmp_path / "run", conversion={"operator": {"kind": "linear"}})
    for _ in run.events():
        pass
    lm = cast(DecoderLM, load(tmp_path / "run", device="cpu"))
    assert all(isinstance(block.get_submodule("operator"), KernelAttention) for block in lm.model.trunk.blocks)
    prompt = lm.tokenizer.encode("the cat sat")
    [event] = [
        e for e in lm.generate([Request(prompt="the cat sat")], GenerateOptions(max_tokens=8)) if e.kind == "done"
    ]
    written: list[int] = []
    for _ in range(8):
        row = torch.tensor([[lm.model.begin, *prompt, *written]])
        with torch.no_grad():
            word = int(lm.model(row, lm.model.memory(row[:, :0], row[:, 0] * 0, row[:, 0] * 0))[0, -1].argmax())
        if word == lm.model.end:
            break
        written.append(word)
    assert event.tokens == tuple(written)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 4}, "head_dim is 4"),
        ({"num_key_value_heads": 3}, "do not share 3 heads"),
        ({"eos_token_id": None}, "a text needs an end"),
        ({"bos_token_id": 300}, "outside the vocabulary"),
        ({"eos_token_id": [300, 1]}, "outside the vocabulary"),
        ({"num_hidden_layers": 3}, "has no model.layers.2"),
        ({"intermediate_size": 10**12}, "out of range"),
        ({"attention_multiplier": 2.0}, "attention_multiplier"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, said, tmp_path):
    published(tmp_path, "llama")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=said):
        load(tmp_path)


def test_of_several_ends_the_first_counts(tmp_path):
    published(tmp_path, "llama")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [7, 1]}))
    assert cast(DecoderLM, load(tmp_path, device="cpu")).model.end == 7


def test_an_odd_number_of_turned_channels_is_refused(tmp_path):
    """There `transformers` spreads the angles otherwise than the layout's equations say."""
    published(tmp_path, "neox")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["partial_rotary_factor"] = 0.4
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="turns an odd number"):
        load(tmp_path)


def test_a_text_that_is_not_told_how_long_to_be_is_bounded(folders, monkeypatch):
    monkeypatch.setattr("manta.families.decoder.UNBOUNDED", 5)
    lm = cast(DecoderLM, load(folders["llama"][0], device="cpu"))
    [done] = [e for e in lm.generate([Request(prompt="the cat")]) if e.kind == "done"]
    assert len(done.tokens) == 5


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    published(tmp_path, "neox")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load(tmp_path)


def test_tables_that_older_versions_stored_are_passed_over(tmp_path):
    theirs = published(tmp_path, "neox")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(weights, file)
    lm = cast(DecoderLM, load(tmp_path, device="cpu"))
    assert torch.equal(lm.model.embedding.weight, theirs.gpt_neox.embed_in.weight)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 100])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_one_typed_error(name, damage, tmp_path):
    published(tmp_path, "llama")
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ModelError):
        load(tmp_path)


def test_what_a_published_model_cannot_do_is_said(folders, tmp_path, capsys):
    model = folders["llama"][0]
    lm = cast(DecoderLM, load(model, device="cpu"))
    [event] = lm.generate([Request(prompt="the cat " * 40)])
    assert event.kind == "failed" and isinstance(event.error, RequestError)
    with pytest.raises(UsageError, match="the verified decoder needs a drafter"):
        list(lm.generate([Request(prompt="the")], GenerateOptions(decoder="verified")))
    with pytest.raises(ConfigError, match="has no teacher"):
        TrainingRun(Recipe(family="decoder", taught_by=str(model)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"decoder\.\w+ is for the family decoder"):
        TrainingRun(Recipe(family="ar", decoder=lm.model.config), tmp_path / "run")
    with pytest.raises(ConfigError, match="no part is taken"):
        TrainingRun(Recipe(inherit=str(model)), tmp_path / "run")
    assert main(["data", "shrink-vocab", str(model), "--data", "builtin:weather", "--out", str(tmp_path / "out")]) == 2
    assert "keeps its tokenizer" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no left-to-right model can use it"):
        converting(model, tmp_path / "run", conversion={"operator": {"kind": "pyramid_conv"}})
    with pytest.raises(ConfigError, match="kv_heads=4 is kept"):
        converting(model, tmp_path / "run", conversion={"operator": {"kind": "windowed", "kv_heads": 1}})
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
