"""A smaller model begins as a part of a larger one, says which, and can be taken up again."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, ModelError
from manta.hub import load
from manta.recipes import Recipe, TrainingRun

from .small import card, finish, same_weights, small, stop

FAMILIES = {"ar": "teacher", "masked": "masked", "aligned": "aligned", "manta": "model"}
INHERITANCE = {"batches": 2, "mask_steps": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp("models") / family
        finish(TrainingRun(from_dict(Recipe, small(3, family)), found[family], device="cpu"))
    return found


def inheriting(out: Path, model: Path, source: str, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 6, "consensus": "none"}
    recipe |= {"inherit": str(model), "inheritance": INHERITANCE, FAMILIES[source]: {"depth": 2, "hidden": 24}}
    return TrainingRun(from_dict(Recipe, {**recipe, **changes}), out, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_model_of_any_family_is_trained_and_writes(family, models, tmp_path):
    finish(inheriting(tmp_path / "run", models[family], family))
    lm = cast(Any, load(tmp_path / "run", device="cpu"))
    trunk = lm.trunk_of(lm.model)
    assert len(trunk.blocks) == 2 and {network.hidden for network in trunk.networks} == {24}
    assert len(lm.write(["Monday: sunny"])) == 1
    told = json.loads((tmp_path / "run" / "inheritance.json").read_text())
    assert (
        len(told["blocks"]) == 2 and told["neurons"] == 24 and set(told["losses"]) == {"whole", "blocks", "inherited"}
    )
    written = card(tmp_path / "run")
    first, second = told["blocks"]
    assert f"Inherited from `{family}`: the blocks {first}, {second} with 24 neurons each" in written


def test_all_of_a_model_is_inherited_where_nothing_is_left_out(models, tmp_path):
    stop(inheriting(tmp_path / "run", models["ar"], "ar", teacher={}))
    told = json.loads((tmp_path / "run" / "inheritance.json").read_text())
    assert told["losses"]["whole"] == told["losses"]["inherited"] == told["losses"]["blocks"]
    assert told["blocks"] == [0, 1, 2]


def test_an_interrupted_run_ends_as_one_that_was_not(models, tmp_path):
    finish(inheriting(tmp_path / "whole", models["masked"], "masked"))
    stop(inheriting(tmp_path / "parted", models["masked"], "masked"), 3)
    finish(TrainingRun(None, tmp_path / "parted", resume=True, device="cpu"))
    assert same_weights(tmp_path / "whole", tmp_path / "parted")
    assert card(tmp_path / "whole") == card(tmp_path / "parted")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"teacher": {"depth": 4}}, ConfigError, "the model has 3 blocks of 64 neurons"),
        ({"teacher": {"hidden": 65}}, ConfigError, "the model has 3 blocks of 64 neurons"),
        ({"teacher": {"dim": 32}}, ConfigError, "only depth and hidden can differ"),
        ({"family": "masked"}, ConfigError, "of the family ar, decides family"),
        ({"masked": {"depth": 2}}, ConfigError, "decides masked"),
        ({"size": "large"}, ConfigError, "decides size"),
        ({"warm_start": True}, ConfigError, "decides warm_start"),
        ({"retries": 1}, ConfigError, "leave retries out"),
        ({"taught_by": "builtin:e2e"}, ConfigError, "a model begins with one other"),
        ({"inherit": "nowhere"}, ModelError, "no model at"),
        ({"max_text": 7}, ConfigError, "the model has max_text=40"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(change, error, said, models, tmp_path):
    with pytest.raises(error, match=said):
        finish(inheriting(tmp_path / "run", models["ar"], "ar", **change))
    assert not (tmp_path / "run").exists()


def test_a_model_whose_operator_was_changed_everywhere_can_be_inherited(models, tmp_path):
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 4}
    recipe |= {"converted_from": str(models["ar"]), "conversion": {"operator": {"kind": "linear"}}}
    finish(TrainingRun(from_dict(Recipe, recipe), tmp_path / "linear", device="cpu"))
    finish(inheriting(tmp_path / "run", tmp_path / "linear", "ar"))
    lm = cast(Any, load(tmp_path / "run", device="cpu"))
    assert [type(block.operator).__name__ for block in lm.model.trunk.blocks] == ["LinearAttention"] * 2


def test_the_larger_model_answers_and_lends_what_it_has_measured(models, tmp_path):
    """No teacher is trained where prompts have to be answered; times are drawn as the larger model drew them."""
    run = inheriting(tmp_path / "run", models["manta"], "manta", consensus="auto", num_steps=200)
    stop(run)
    assert list(run.parts.modules) == ["model"]
    assert list((tmp_path / "run").glob("targets-teacher-*.jsonl"))
    before = cast(Any, load(models["manta"], device="cpu")).density.state_dict()
    begun = inheriting(tmp_path / "other", models["manta"], "manta")
    events = begun.events()
    while not hasattr(begun, "specs"):
        next(events)
    after = begun.parts.measured["density"].state_dict()
    events.close()
    assert str(before) == str(after)


def test_settings_without_a_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"inheritance\.batches is for a model that inherits"):
        TrainingRun(from_dict(Recipe, {"inheritance": {"batches": 3}}), tmp_path / "run")


def test_the_command_line(models, tmp_path, capsys):
    given = ["train", "builtin:weather", "--inherit", str(models["ar"]), "--out", str(tmp_path / "run")]
    given += ["--num-steps", "4", "--device", "cpu", "num_examples=60", "batch_tokens=300", "teacher.depth=1"]
    assert main([*given, "inheritance.batches=1", "inheritance.neurons=l2"]) == 0
    assert "inherited: the blocks" in capsys.readouterr().err
