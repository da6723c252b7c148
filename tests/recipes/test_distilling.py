"""`manta distill`: a Manta-LM learns to write in few calls, in stages that halve them, or as a flow map."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError
from manta.hub import load
from manta.recipes import Recipe, TrainingRun

from .small import card, finish, same_weights, small, stop

TINY = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "manta"
    recipe = small(1, num_steps=4, train={"precision": "float32"})
    finish(TrainingRun(from_dict(Recipe, recipe), out, device="cpu"))
    return out


def distilling(out: Path, model: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 6}
    recipe |= {"train": {"precision": "float32"}, "distillation": {"num_steps": 2, "halvings": 2}}
    return TrainingRun(from_dict(Recipe, {**recipe, "begin_from": str(model), **changes}), out, device="cpu")


def test_calls_are_halved_stage_by_stage(model, tmp_path):
    run = finish(distilling(tmp_path / "run", model))
    assert list(run.plan) == ["2 actions", "one action"]
    before, after = (cast(Any, load(folder, device="cpu")) for folder in (model, tmp_path / "run"))
    assert after.model.config.flow_calls == 1 and len(after.write(["Monday: sunny"], num_steps=2)) == 1
    space = after.model.space.state_dict()
    assert all(torch.equal(value, space[name]) for name, value in before.model.space.state_dict().items())
    own, was = after.model.state_dict(), before.model.state_dict()
    assert {name for name in was if not torch.equal(own[name], was[name])} == {n for n in was if n.startswith("field.")}
    assert torch.equal(before.density.grid(4), after.density.grid(4)), "the student acts at its teacher's times"
    told = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Distilled from `manta`: 5 calls in 2, its actions halved again and again." in told


@pytest.mark.slow
def test_tokens_and_prompts_of_a_flow_over_embeddings_stay_what_states_are_read_by(tmp_path):
    recipe = small(1, num_steps=4, train={"precision": "float32"}, model={**TINY, "space": {"kind": "embedding"}})
    finish(TrainingRun(from_dict(Recipe, recipe), tmp_path / "model", device="cpu"))
    finish(distilling(tmp_path / "run", tmp_path / "model"))
    before, after = (cast(Any, load(tmp_path / name, device="cpu")).model.state_dict() for name in ("model", "run"))
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("field.") for name in changed)


def test_a_flow_map_is_one_stage(model, tmp_path):
    how = {"num_steps": 2, "halvings": 2, "method": "flow_map"}
    run = finish(distilling(tmp_path / "run", model, distillation=how))
    assert list(run.plan) == ["flow map"]
    after = cast(Any, load(tmp_path / "run", device="cpu")).model
    assert after.config.spans and after.config.flow_calls == 0
    assert after.field.span.mlp[-1].weight.abs().max() > 0


def test_a_student_teaches_no_more_calls_than_it_knows(model, tmp_path, capsys):
    finish(distilling(tmp_path / "once", model))
    command = ["distill", str(tmp_path / "once"), "--num-steps", "2", "--data", "builtin:weather", "--train-steps", "4"]
    assert main([*command, "--out", str(tmp_path / "twice")]) == 2
    assert "distilled for 1 actions and cannot teach 8" in capsys.readouterr().err
    recipe = from_dict(Recipe, small(1, distillation={"num_steps": 2}))
    with pytest.raises(ConfigError, match="name it with begin_from"):
        list(TrainingRun(recipe, tmp_path / "alone", device="cpu").events())


@pytest.mark.parametrize("step", [2, 5])
def test_an_interrupted_run_ends_as_one_that_was_not(step, model, tmp_path):
    finish(distilling(tmp_path / "whole", model))
    stop(distilling(tmp_path / "parted", model), step)
    assert main(["distill", "--resume", "--out", str(tmp_path / "parted"), "--device", "cpu"]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parted")
    assert card(tmp_path / "whole") == card(tmp_path / "parted")


def test_the_command_line_says_the_same(model, tmp_path):
    finish(distilling(tmp_path / "one", model))
    command = ["distill", str(model), "--num-steps", "2", "--halvings", "2", "--data", "builtin:weather"]
    settings = ["num_examples=60", "batch_tokens=300", "train.precision=float32"]
    assert main([*command, "--train-steps", "6", "--out", str(tmp_path / "two"), "--device", "cpu", *settings]) == 0
    assert same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--num-steps", "1"], "distillation.num_steps should lie between 2 and 64"),
        (["--num-steps", "2", "--halvings", "9"], "distillation.halvings should lie between 1 and 6"),
        (["--num-steps", "2", "train.rounds=2"], "a distillation has one round"),
        (["--num-steps", "2", "model.depth=3"], "the model keeps its shape"),
        ([], "say in how many network calls"),
        (["--num-steps", "2", "--data", "builtin:shapes"], "what is distilled is a Manta-LM"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, said, model, tmp_path, capsys):
    data = [] if "--data" in given else ["--data", "builtin:weather"]
    command = ["distill", str(model), *data, "--out", str(tmp_path / "run"), "--train-steps", "4", "--device", "cpu"]
    assert main([*command, *given]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "run").exists()


def test_other_families_and_other_runs_are_refused(model, tmp_path, capsys):
    finish(TrainingRun(from_dict(Recipe, small(1, "masked", num_steps=4)), tmp_path / "masked", device="cpu"))
    command = ["distill", str(tmp_path / "masked"), "--num-steps", "2", "--data", "builtin:weather"]
    assert main([*command, "--train-steps", "4", "--out", str(tmp_path / "run")]) == 2
    assert "is of the family masked; what is distilled is a flow" in capsys.readouterr().err
    assert main(["distill", "--resume", "--out", str(model)]) == 2
    assert "is no distillation" in capsys.readouterr().err
    assert main(["distill", "--resume", "--num-steps", "4", "--out", str(model)]) == 2
    assert "leave num_steps out" in capsys.readouterr().err
