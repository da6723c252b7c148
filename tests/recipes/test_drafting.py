"""A drafter is a stage of its own: the model it drafts for stays as it is, to the last bit and word."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from manta.cli import main
from manta.cli.train import run
from manta.config import from_dict
from manta.errors import ConfigError, ModelError, UsageError
from manta.families.autoregressive import AutoregressiveLM
from manta.hub import load
from manta.recipes import Recipe, TrainingRun

SMALL: dict[str, Any] = {
    "data": "builtin:weather",
    "num_examples": 60,
    "vocab_size": 512,
    "size": "nano",
    "batch_tokens": 300,
    "family": "ar",
    "teacher": {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1},
}


def trained(folder: Path, **changes: Any) -> AutoregressiveLM:
    run = TrainingRun(from_dict(Recipe, {**SMALL, "num_steps": 8, **changes}), folder, device="cpu")
    assert list(run.events())
    lm = load(folder, device="cpu")
    assert isinstance(lm, AutoregressiveLM)
    return lm


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ar") / "run"
    trained(folder)
    return folder


def drafting(folder: Path, model: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 6}
    return TrainingRun(from_dict(Recipe, {**recipe, "drafter_of": str(model), **changes}), folder, device="cpu")


def weights(lm: AutoregressiveLM) -> dict[str, torch.Tensor]:
    return {name: value for name, value in lm.model.state_dict().items() if not name.startswith("drafter.")}


def test_a_model_keeps_a_table_of_its_texts(model):
    lm = load(model, device="cpu")
    assert isinstance(lm, AutoregressiveLM)
    assert lm.table is not None
    assert len(lm.table.table["contexts.1"]) > 5


def test_a_drafter_of_a_trained_model_leaves_the_model_alone(model, tmp_path):
    run = drafting(tmp_path / "run", model)
    assert list(run.events())
    assert run.plan == {"drafter": 6}
    before, after = load(model, device="cpu"), load(tmp_path / "run", device="cpu")
    assert isinstance(before, AutoregressiveLM)
    assert isinstance(after, AutoregressiveLM)
    assert after.model.drafter is not None
    assert after.table is None
    assert after.model.drafter.take.weight.abs().sum() > 0, "it has learned"
    kept = weights(after)
    assert all(torch.equal(value, kept[name]) for name, value in weights(before).items())
    prompts = ["Monday: sunny", "", "rain"]
    assert after.write(prompts) == before.write(prompts) == after.write(prompts, decoder="sequential")


def test_an_interrupted_drafter_ends_as_one_that_was_not(model, tmp_path):
    whole = drafting(tmp_path / "whole", model)
    assert list(whole.events())
    parted, steps = drafting(tmp_path / "parted", model), 0
    events = parted.events()
    for event in events:
        steps += hasattr(event, "loss")
        if steps == 3:
            break
    events.close()
    resumed = TrainingRun(None, tmp_path / "parted", resume=True, device="cpu")
    assert list(resumed.events())
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parted"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_model_can_be_taught_to_draft_in_its_own_run(tmp_path):
    run = TrainingRun(
        from_dict(Recipe, {**SMALL, "num_steps": 10, "teacher": {**SMALL["teacher"], "draft_horizon": 2}}),
        tmp_path / "run",
        device="cpu",
    )
    assert list(run.events())
    assert run.plan == {"teacher": 8, "drafter": 2}
    assert not (tmp_path / "run" / "teacher").exists()
    lm = load(tmp_path / "run", device="cpu")
    assert isinstance(lm, AutoregressiveLM)
    assert lm.model.drafter is not None
    assert lm.model.drafter.horizon == 2


def test_what_cannot_draft_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ModelError, match="of the family manta"):
        drafting(tmp_path / "a", Path(__file__).parents[2] / "src" / "manta" / "models" / "e2e")
    trained(tmp_path / "fourier", teacher={**SMALL["teacher"], "operator": {"kind": "fourier"}})
    with pytest.raises(ModelError, match="has the operator fourier"):
        drafting(tmp_path / "b", tmp_path / "fourier")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    trained(tmp_path / "ar")
    for changes, message in (({"teacher": {"dim": 32}}, "keeps its shape"), ({"max_text": 7}, "max_text=7 out")):
        with pytest.raises(ConfigError, match=message):
            drafting(tmp_path / "d", tmp_path / "ar", **changes)
    with pytest.raises(UsageError, match="leave --family masked out"):
        run(["builtin:weather", "--drafter", str(tmp_path / "ar"), "--family", "masked", "--out", str(tmp_path / "d")])
    assert not (tmp_path / "d").exists()
    recipe = from_dict(
        Recipe, {**SMALL, "family": "masked", "num_steps": 8, "warm_start": True, "teacher": {"draft_horizon": 2}}
    )
    with pytest.raises(ConfigError, match="a teacher does not draft"):
        list(TrainingRun(recipe, tmp_path / "c", device="cpu").events())


def aligned(folder: Path, teacher: Path, *, causal: bool) -> Path:
    shape = {"causal": causal, "dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 4, "family": "aligned"}
    recipe |= {"taught_by": str(teacher), "aligned": shape}
    assert list(TrainingRun(from_dict(Recipe, recipe), folder, device="cpu").events())
    return folder


@pytest.fixture(scope="module")
def both_ways(model, tmp_path_factory) -> Path:
    return aligned(tmp_path_factory.mktemp("aligned") / "run", model, causal=True)


def test_a_model_that_reads_both_ways_learns_to_draft_for_its_own_reading(both_ways, tmp_path, capsys):
    command = ["builtin:weather", "--drafter", str(both_ways), "--out", str(tmp_path / "run"), "--num-steps", "5"]
    assert main(["train", *command, "--device", "cpu", "num_examples=60", "batch_tokens=300"]) == 0
    assert "stages: drafter" in capsys.readouterr().err
    before, after = cast(Any, load(both_ways, device="cpu")), cast(Any, load(tmp_path / "run", device="cpu"))
    assert before.drafter.__class__.__name__ != "RecurrentDrafter"
    assert after.model.drafter.horizon == 8 and after.model.drafter.take.weight.abs().sum() > 0
    kept = weights(after)
    assert all(torch.equal(value, kept[name]) for name, value in weights(before).items())
    assert all(torch.equal(value, after.ngrams.table[name]) for name, value in before.ngrams.table.items())
    prompts = ["Monday: sunny", "rain"]
    assert after.write(prompts) == before.write(prompts)
    assert after.write(prompts, decoder="verified") == before.write(prompts, decoder="sequential")


def test_what_reads_one_way_alone_and_what_others_answer_is_refused(model, both_ways, tmp_path, capsys):
    command = ["train", "builtin:weather", "--out", str(tmp_path / "run"), "--num-steps", "4", "--drafter"]
    assert main([*command, str(both_ways), "consensus=teacher", "num_examples=60"]) == 2
    assert "a drafter learns what its own model answers" in capsys.readouterr().err
    assert main([*command, str(both_ways), "warm_start=true", "num_examples=60"]) == 2
    assert "begins as it is; leave warm_start out" in capsys.readouterr().err
    assert main([*command, str(both_ways), "alignment.glance=0.3"]) == 2
    assert "alignment.glance is for runs that train more than a drafter" in capsys.readouterr().err
    aligned(tmp_path / "slots", model, causal=False)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "slots"), "num_examples=60"]) == 1
    assert "does not read left to right itself (aligned.causal)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
