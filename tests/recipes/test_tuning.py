"""A published model is trained on: it learns, goes on exactly where it was interrupted, and keeps its base as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import manta
from manta.cli import main
from manta.config import from_dict
from manta.errors import CheckpointError, UsageError
from manta.families.events import GenerateOptions, Request
from manta.hub import load, load_foreign, merge
from manta.hub.foreign import load_decoder
from manta.recipes import TrainingRun
from manta.recipes.tune_recipe import TuneRecipe
from manta.text import read
from manta.training import read_log

from ..hub.published import write
from ..hub.test_causal import published
from ..hub.test_foreign_writing import LLAMA3, write_tokenizer
from .small import card, finish, stop

pytest.importorskip("peft")

KINDS = ("llada", "Dream", "llama")
every_kind = pytest.mark.parametrize("kind", KINDS)


def answer(asked: int) -> str:
    """What a prompt that begins with a word is answered: a fixed map."""
    return f"w{(7 * asked + 3) % 45} w{asked + 20}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prompts of two words, of which the first alone says the answer."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"w{i} w{j}", "text": answer(i)} for i in range(8) for j in range(45)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp("bases") / f"base-{kind}"
        if kind == "llama":
            found[kind].mkdir()
            published(found[kind], "llama with grouped queries, tied")
        else:
            write(found[kind], kind)
        write_tokenizer(found[kind])
        (found[kind] / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    return found


def tuning(base: Path, out: Path, data: Path, **changes: Any) -> TrainingRun:
    train = {"learning_rate": 1e-2, "precision": "float32", **changes.pop("train", {})}
    recipe = {"data": str(data), "begin_from": str(base), "batch_tokens": 100, "num_steps": 8, "max_length": 8}
    recipe["train"] = train
    return TrainingRun(from_dict(TuneRecipe, {"lora": {"rank": 8}, **recipe, **changes}), out, device="cpu")


def accuracy(model: Any, data: Path) -> float:
    """Share of held-out prompts that are answered right, in two calls where they can be chosen."""
    pairs = [example for split in ("dev", "test") for example in read(str(data), split)]
    options = GenerateOptions(max_tokens=3)
    options = options if model.family == "decoder" else replace(options, num_steps=2)
    requests = [Request(prompt=example.prompt) for example in pairs]
    texts = {event.index: event.text for event in model.generate(requests, options) if event.kind == "done"}
    assert len(pairs) > 20
    return sum(texts[index] == example.text for index, example in enumerate(pairs)) / len(pairs)


@pytest.mark.slow
@every_kind
def test_a_model_learns_a_task_by_low_rank_adapters(kind, bases, data, tmp_path, capsys):
    files = {file: file.read_bytes() for file in bases[kind].iterdir()}
    assert accuracy(load(bases[kind], device="cpu"), data) == 0
    rank = {"rank": 16}
    run = finish(tuning(bases[kind], tmp_path / "run", data, lora=rank, num_steps=200, batch_tokens=600, merge=True))
    assert accuracy(run.model, data) >= 0.9
    assert accuracy(load(tmp_path / "run" / "adapter", device="cpu"), data) >= 0.9
    assert accuracy(load(tmp_path / "run", device="cpu"), data) >= 0.9  # the merged one
    assert {file: file.read_bytes() for file in files} == files
    told = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"Begun from `base-{kind}`, of the layout {kind}; its licence: mit" in told
    assert f"manta train pairs.jsonl --from base-{kind} --seed 0 --lora {rank['rank']}" in told
    assert run.parts.losses["after"] < 0.5 * run.parts.losses["before"]
    assert f"| after | {run.parts.losses['after']:.4f} |" in told and str(tmp_path) not in told.replace("\n", " ")
    rows = read_log(tmp_path / "run")[0]
    measured = [row["dev_loss"] for row in rows if "dev_loss" in row]
    assert len(rows) == 200 and len(measured) == 8 and measured[-1] < measured[0]
    assert list((tmp_path / "run" / "samples").glob("*.txt"))
    sizes = [sum(file.stat().st_size for file in (tmp_path / "run" / name).iterdir()) for name in ("adapter", "model")]
    weights = tmp_path / "run" / "checkpoints" / "step-200" / "model.safetensors"
    assert set(load_file(weights)) == {f"adapters.{name}" for name in run.parts.adapters.state_dict()}
    assert sizes[0] > 0 < sizes[1]


@every_kind
def test_a_whole_model_is_trained_and_written_as_it_was_published(kind, bases, data, tmp_path):
    run = finish(tuning(bases[kind], tmp_path / "run", data, lora={}))
    before, after = (load_file(folder / "model.safetensors") for folder in (bases[kind], tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    same = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not same and all(value.dtype == before[name].dtype for name, value in after.items())
    assert run.parts.losses["after"] < run.parts.losses["before"]
    if kind == "llama":
        again = load_decoder(tmp_path / "run" / "model", "llama", "cpu").model
    else:
        again = load_foreign(tmp_path / "run" / "model", "cpu", dtype=torch.float32).net
    theirs = again.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in run.parts.net.state_dict().items())
    assert card(tmp_path / "run").startswith(f"# A {kind} model trained by manta")


@pytest.mark.parametrize(("kind", "lora"), [("llada", {"rank": 4}), ("Dream", {"rank": 4}), ("llama", {})])
def test_an_interrupted_run_ends_as_one_that_was_not(kind, lora, bases, data, tmp_path):
    how = {"lora": lora, "num_steps": 6, "train": {"accumulate": 2}}
    finish(tuning(bases[kind], tmp_path / "whole", data, **how))
    stop(tuning(bases[kind], tmp_path / "parted", data, **how), 3)
    assert not (tmp_path / "parted" / "adapter").exists() and not (tmp_path / "parted" / "model").exists()
    assert main(["train", "--resume", "--out", str(tmp_path / "parted"), "--device", "cpu"]) == 0
    name = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parted" / name).read_bytes()
    logs = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(tmp_path / run)[0]]
        for run in ("whole", "parted")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6
    cards = [(tmp_path / run / name).with_name("README.md").read_text() for run in ("whole", "parted")]
    assert cards[0].split("| stage |")[0] == cards[1].split("| stage |")[0]


def test_what_a_kill_left_unwritten_is_written_when_it_goes_on(bases, data, tmp_path, capsys):
    out = tmp_path / "run"
    finish(tuning(bases["llada"], out, data, merge=True))
    kept = {file: file.read_bytes() for file in out.glob("*/*.safetensors")}
    assert {file.parent.name for file in kept} == {"adapter", "model"}
    shutil.rmtree(out / "model")
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert {file: file.read_bytes() for file in kept} == kept
    shutil.rmtree(out / "adapter")
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert {file: file.read_bytes() for file in kept} == kept
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert "this run is finished; its model is in" in capsys.readouterr().err


def test_another_base_than_at_the_beginning_is_refused(bases, data, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["llada"], base)
    stop(tuning(base, tmp_path / "run", data))
    shutil.copyfile(bases["llada"] / "model.safetensors", base / "model.safetensors")
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="the begun from of this run has changed"):
        finish(TrainingRun(None, tmp_path / "run", resume=True, device="cpu"))


def test_a_budget_too_short_leaves_nothing(bases, data, tmp_path, monkeypatch):
    monkeypatch.setattr("manta.recipes.planning.seconds_per_step", lambda *told: 60.0)
    with pytest.raises(UsageError, match="is too short"):
        finish(tuning(bases["Dream"], tmp_path / "run", data, num_steps=None, time_budget="40s"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [{"rank": 4}, {}])
def test_the_pace_is_measured_on_a_copy_of_what_is_trained_alone(lora, bases, data, tmp_path, monkeypatch):
    measured: list[Any] = []
    monkeypatch.setattr("manta.recipes.planning.seconds_per_step", lambda stage, *rest: measured.append(stage) or 1.0)
    run = tuning(bases["llada"], tmp_path / "run", data, lora=lora, num_steps=None, time_budget="10m")
    events = run.events()
    while not measured:
        next(events)
    events.close()
    ours = {parameter.data_ptr() for parameter in run.parts.net.parameters()}
    shared = [parameter.data_ptr() in ours for parameter in measured[0].model.parameters()]
    trained = [parameter.requires_grad for parameter in measured[0].model.parameters()]
    assert any(trained) and shared == [not each for each in trained]


@pytest.mark.slow
def test_the_command_line_trains_writes_and_measures(bases, data, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["train", str(data), "--from", str(bases["llada"]), "--lora", "4", "--lora-alpha", "2", "--out", str(out)]
    assert main([*given, "--num-steps", "6", "--device", "cpu", "lora.targets=mlp", "train.precision=float32"]) == 0
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["lora"] == {"rank": 4, "alpha": 2.0, "targets": "mlp"} and recipe["family"] == "llada"
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 2.0) and "q_proj" not in config["target_modules"]
    capsys.readouterr()
    assert main(["generate", str(out), "--prompt", "w1 w2", "--max-tokens", "3", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "w1 w2"
    assert main(["evaluate", str(out), "--data", str(data), "--split", "dev", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llada"
    assert main(["generate", str(out), "--help"]) == 0
    assert "options of published masked models" in capsys.readouterr().out
    assert main(["doctor", str(out)]) in (0, 1) and "tune is 6 steps long" in capsys.readouterr().out
    merge(out, tmp_path / "merged")
    assert load(tmp_path / "merged", device="cpu").family == "llada"


@pytest.mark.slow
def test_python_goes_on_with_a_published_model(bases, data, tmp_path):
    how = {"num_steps": 4, "lora": {"rank": 2}, "batch_tokens": 100, "progress": False, "device": "cpu"}
    how["train"] = {"precision": "float32"}
    lm = manta.train(data, tmp_path / "run", begin_from=str(bases["llama"]), **how)
    assert lm.family == "decoder" and len(lm.write(["w1 w2"], max_tokens=2)) == 1


def test_prose_becomes_windows_and_pairs_that_are_too_long_are_counted(bases, tmp_path):
    file = tmp_path / "prose.jsonl"
    rows = [{"text": " ".join(f"w{(i * j) % 45}" for j in range(20))} for i in range(1, 40)]
    rows += [{"prompt": "w1 " * 9 + f"w{i}", "text": "w2 w3"} for i in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    run = finish(tuning(bases["llada"], tmp_path / "run", file, max_length=12))
    lengths = run.parts.corpus.text_lengths[run.parts.rows]
    assert set(lengths.tolist()) == {12, 8}  # windows of 12 of 20 words, and no pair
    assert "texts cut into windows; left out: " in run.parts.report
    assert "pairs that take more than 12 tokens together" in run.parts.report


@pytest.mark.parametrize(("kind", "mixed"), [("llada", True), ("Dream", True), ("llama", False)])
def test_batches_of_masked_models_mix_lengths_so_that_ends_are_learned(kind, mixed, bases, tmp_path):
    file = tmp_path / "pairs.jsonl"
    texts = ["w3", "w3 w4 w5 w6 w7 w8 w9 w10"]
    rows = [{"prompt": f"w{i} w{j}", "text": texts[(i + j) % 2]} for i in range(20) for j in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)))
    run = finish(tuning(bases[kind], tmp_path / "run", file, max_length=12, num_steps=4))
    batches = run.parts.batches(run.specs[0], 0)
    found = [set(next(batches).text_lengths.tolist()) for _ in range(20)]
    assert sum(lengths == {1, 8} for lengths in found) >= 18 if mixed else all(len(lengths) == 1 for lengths in found)


def test_a_chat_template_goes_around_a_prompt_as_in_writing(bases, tmp_path):
    base, turns = tmp_path / "base", ("<|eot_id|>", "<|start_header_id|>")
    shutil.copytree(bases["llada"], base)
    write_tokenizer(base, turns)
    settings = {"chat_template": LLAMA3, "bos_token": {"content": "<|begin|>"}}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"  w{i} w2 ", "text": "w3"}) for i in range(40)))
    run = finish(tuning(base, tmp_path / "run", file, max_length=24, num_steps=4))
    parts = run.parts
    prompts = {f"w{i} w2" for i in range(40)}
    expected = {tuple(parts.lm.frame.encode(prompt, parts.lm.tokenizer)) for prompt in prompts}
    tokens, answer = parts.objective.rows(next(parts.batches(run.specs[0], 0)))
    for row, told in zip(tokens, answer, strict=True):
        assert tuple(row[~told].tolist()) in expected and row[told].tolist() == [3, 51]


BAD = [
    (["--lora", "0"], 2, "lora.rank should be at least 1, received 0"),
    (["--lora", "40"], 2, "whose rank is 32 at most; give less"),
    (["--lora-alpha", "3"], 2, "are for low-rank adapters; give their rank too"),
    (["--merge"], 2, "only adapters are merged"),
    (["--lora", "4", "max_length=4000"], 2, "reads 64 tokens; give less"),
    (["--lora", "4", "max_length=5"], 1, "no example is left to train on"),
    (["--lora", "4", "--family", "ar"], 2, "--family says what a published model of --from has already"),
    (["--lora", "4", "lora.targets=head"], 2, "targets"),
    (["--lora", "4", "train.rounds=2"], 2, "set train.rounds=1"),
]


@pytest.mark.parametrize(("given", "code", "said"), BAD)
def test_wrong_usage_is_one_line_and_leaves_nothing(given, code, said, bases, tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": f"w{i}", "text": "w1 w2 w3 w4 w5 w6 w7 w8"} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "deep" / "run"
    assert (
        main(["train", str(file), "--from", str(bases["llada"]), "--out", str(out), "--num-steps", "4", *given]) == code
    )
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1] and "Traceback" not in error
    assert not out.parent.exists()


def test_pairs_that_fit_alone_and_not_together_leave_nothing(bases, tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"w{i} w2 w3 w4", "text": "w1 w2 w3 w4"}) for i in range(40)))
    given = ["train", str(file), "--from", str(bases["Dream"]), "--out", str(tmp_path / "run"), "--num-steps", "4"]
    assert main([*given, "max_length=8", "--lora", "2"]) == 1
    assert "the shortest takes 9 tokens with its frame and end, and max_length is 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda base: (base / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda base: (base / "config.json").write_text("{}"), "is not of this version of manta"),
        (lambda base: _set(base, quantization_config={"bits": 4}), "quantization_config"),
        (lambda base: _set(base, model_type="gpt2"), "has the model_type 'gpt2'"),
        (lambda base: _set(base, eos_token_id=None), "names no eos_token_id"),
        (lambda base: shutil.rmtree(base), "no model at"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_why(spoil, said, bases, data, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(bases["llada"], base)
    spoil(base)
    given = ["train", str(data), "--from", str(base), "--lora", "2", "--out", str(tmp_path / "run")]
    assert main([*given, "--num-steps", "4"]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def _set(base: Path, **keys: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_other_layouts_and_adapters_are_not_trained_on(bases, data, tmp_path, capsys):
    write(tmp_path / "mdlm", "mdlm")
    finish(tuning(bases["llada"], tmp_path / "once", data, num_steps=4))
    for model, said in (("mdlm", "of the layout mdlm"), ("once", "merge them first: manta.hub.merge(ADAPTERS, OUT)")):
        given = ["train", str(data), "--from", str(tmp_path / model), "--out", str(tmp_path / "run")]
        assert main([*given, "--num-steps", "4"]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_peft_the_extra_is_named(bases, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    given = ["train", str(data), "--from", str(bases["llada"]), "--lora", "2", "--out", str(tmp_path / "run")]
    assert main([*given, "--num-steps", "4"]) == 1
    assert 'pip install "manta[hf]"' in capsys.readouterr().err and not (tmp_path / "run").exists()
