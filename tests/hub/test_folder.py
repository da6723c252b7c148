"""A model folder gives back the model that was saved, and says which file is wrong when one is."""

import json
import os
import re
import shutil

import pytest
import torch

from manta.errors import ModelError
from manta.families.aligned import AlignedLM
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.manta_lm import MantaLM, Split
from manta.hub import load, model_config, save_model, shipped

from ..families.conftest import make_lm, random_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lm = make_lm("latent")
    lm.splits = {4: Split(flow=2, silent=1)}
    lm.density.observe(torch.rand(5000, generator=torch.Generator().manual_seed(0)), torch.rand(5000))
    path = tmp_path_factory.mktemp("model")
    save_model(path, lm, recipe={}, card="# card\n", dtype=torch.float32)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_a_loaded_model_writes_what_the_saved_one_writes(kind, tmp_path):
    lm = make_lm(kind)
    save_model(tmp_path, lm, recipe={}, card="", dtype=torch.float32)
    prompts = ["the cat", "some old river", None]
    assert load(tmp_path).write(prompts, num_steps=6) == lm.write(prompts, num_steps=6)


def test_splits_and_the_calibrated_density_are_kept(folder):
    lm = load(folder)
    assert isinstance(lm, MantaLM)
    assert lm.splits == {4: Split(flow=2, silent=1)}
    assert lm.density.calibrated


def test_an_autoregressive_model_is_kept_too(tmp_path):
    lm = make_lm()
    model = AutoregressiveModel(
        AutoregressiveConfig(vocab_size=lm.tokenizer.vocab_size, dim=32, heads=2, depth=1, max_text=16)
    )
    random_weights(model)
    ar = AutoregressiveLM(model, lm.tokenizer)
    save_model(tmp_path, ar, recipe={}, card="", dtype=torch.float32)
    assert load(tmp_path).write(["the cat"], temperature=0.7) == ar.write(["the cat"], temperature=0.7)


def test_weights_may_be_stored_in_half_the_bytes(tmp_path):
    lm = make_lm()
    save_model(tmp_path / "half", lm, recipe={}, card="")
    save_model(tmp_path / "full", lm, recipe={}, card="", dtype=torch.float32)
    half, full = ((tmp_path / d / "model.safetensors").stat().st_size for d in ("half", "full"))
    assert half < 0.6 * full
    loaded = load(tmp_path / "half")
    assert isinstance(loaded, MantaLM)
    assert torch.equal(lm.model.embedding.weight.bfloat16().float(), loaded.model.embedding.weight)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish"])
def test_a_damaged_file_is_named(copy, name, damage):
    file = copy / name
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(b"\x80\x04rubbish" * 50)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(copy)


def test_the_tokenizer_of_another_model_is_refused(copy):
    from manta.text import Tokenizer

    Tokenizer.train(["entirely different words"] * 9, 512).save(copy / "tokenizer.json")
    with pytest.raises(ModelError, match="not the tokenizer"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].update(dim=64), "does not fit"),
        (lambda c: c["model"].update(rubbish=1), "rubbish"),
        (lambda c: c.update(format=99), "version"),
        (lambda c: c.update(family="other"), "family"),
        (lambda c: c.pop("model"), "model"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(copy, change, words):
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load(copy)


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ModelError, match="no model at"):
        load(tmp_path / "nothing" / "here" / "at-all")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_depth": 10**9},
        {"depth": 10**6},
        {"dim": 10**12},
        {"dim": 2**63},
        {"max_text": 10**10},
        {"max_prompt": -5},
        {"heads": 0},
        {"depth": True},
        {"vocab_size": 10**9},
        {"time": {"num_bins": 10**12}},
        {"time": {"gamma_limit": float("nan")}},
        {"space": {"kind": "latent", "encoder_depth": 10**9}},
        {"space": {"kind": ["latent"]}},
        {"operator": {"kind": "attention", "rotary_base": 1e400}},
    ],
    ids=str,
)
def test_sizes_that_no_weights_have_are_refused_before_anything_is_built(copy, change):
    config = json.loads((copy / "config.json").read_text())
    for key, value in change.items():
        config["model"][key] = config["model"][key] | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize("split", [{"flow": -1}, {"flow": 1, "refine": 0}, {"flow": 1, "rounds": -3}, {"flow": "1"}, 3])
def test_a_split_that_counts_no_calls_is_refused(copy, split):
    config = json.loads((copy / "config.json").read_text())
    config["splits"]["4"] = split
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(copy, value):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["embedding.weight"][3, 2] = value
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds embedding\.weight with values that are not finite"):
        load(copy)


def test_large_weights_that_are_finite_are_loaded(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["embedding.weight"].fill_(3e38)
    save_file(weights, copy / "model.safetensors")
    load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["pipe", "folder", "deep", "twice", "latin", "loop"])
def test_a_file_that_is_none_is_named_and_never_waited_for(copy, name, damage):
    file = copy / name
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "folder":
        file.mkdir()
    elif damage == "loop":
        file.symlink_to(file)
    else:
        texts = {"deep": b"[" * 100_000, "twice": b'{"a": 1, "a": 2}', "latin": '{"a": "é"}'.encode("latin-1")}
        file.write_bytes(texts[damage])
    with pytest.raises(ModelError, match=re.escape(name)):
        load(copy)


@pytest.mark.parametrize("path", ["runs/missing", "owner/name", "./x", "a\0b", "x" * 5000, ""])
def test_a_missing_path_is_not_looked_up_on_the_hub(path, monkeypatch):
    import huggingface_hub

    from manta.hub import load_causal

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for attempt in (load, load_causal):
        with pytest.raises(ModelError):
            attempt(path)


def test_a_model_of_the_hub_is_asked_for_by_its_name(folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: {"owner/name": folder}[name])
    assert load("hf:owner/name").family == "manta"


def test_a_model_that_ships_has_a_name():
    if not (shipped("e2e") / "config.json").exists():
        pytest.skip("no model ships with this copy")
    lm = load("builtin:e2e-aligned", device="cpu")
    assert isinstance(lm, AlignedLM)
    assert lm.drafter is not None
    assert model_config("builtin:e2e")["family"] == "manta"
    with pytest.raises(ModelError, match="no model 'other' ships with manta; there are e2e, e2e-aligned"):
        load("builtin:other")
    with pytest.raises(ModelError, match="ships with manta"):
        load("builtin:../models/e2e")
