"""A model of manta is trained on: from its own weights, in its family's stages, its shape and space as they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import manta
from manta.cli import main
from manta.cli.train import TrainOptions, _recipe
from manta.config import from_dict
from manta.errors import ConfigError
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.continuing import for_continued

from .small import card, finish, same_weights, small, stop

SLOW = ("ar", "masked", "aligned", "block")
FAMILIES = ("manta", *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW))


class Models:
    """A small model of each family, trained when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, family: str) -> Path:
        out = self.folder / family
        if not out.exists():
            recipe = small(1, family, num_steps=4, train={"precision": "float32"})
            finish(TrainingRun(from_dict(Recipe, recipe), out, device="cpu"))
        return out


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def continuing(out: Path, model: Path, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 4}
    changes["train"] = {"precision": "float32", **changes.get("train", {})}
    return TrainingRun(from_dict(Recipe, {**recipe, "begin_from": str(model), **changes}), out, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_goes_on_from_its_weights(family, models, tmp_path):
    before = cast(Any, load(models[family], device="cpu"))
    run = continuing(tmp_path / "run", models[family], train={"learning_rate": 1e-9, "weight_decay": 0.0})
    finish(run)
    after = cast(Any, load(tmp_path / "run", device="cpu"))
    assert run.recipe.consensus == "none"  # it learns the texts, not what it would answer by now
    assert after.family == family and after.model.config == before.model.config
    assert after.tokenizer.fingerprint() == before.tokenizer.fingerprint()
    own, was = after.model.state_dict(), before.model.state_dict()
    for name, value in own.items():  # steps of 1e-9 leave the weights where they began
        torch.testing.assert_close(value, was[name], rtol=1e-2, atol=1e-4)
    assert {spec.name.split("-")[0] for spec in run.specs} == {
        stage.name for stage in run.parts.writer.stages(after.model, run.recipe, {})
    }
    assert f"Trained on from `{family}`." in (tmp_path / "run" / "model" / "README.md").read_text()
    assert len(after.write(["Monday: sunny"])) == 1


def test_it_learns_and_a_space_stays_as_it_is(models, tmp_path):
    finish(continuing(tmp_path / "run", models["manta"], train={"learning_rate": 1e-2}))
    before, after = (cast(Any, load(folder, device="cpu")).model for folder in (models["manta"], tmp_path / "run"))
    space = after.space.state_dict()
    assert space and all(torch.equal(value, space[name]) for name, value in before.space.state_dict().items())
    assert (before.embedding.weight - after.embedding.weight).abs().max() > 1e-3


@pytest.mark.parametrize("family", [pytest.param("ar", marks=pytest.mark.slow), "manta"])
def test_an_interrupted_run_ends_as_one_that_was_not(family, models, tmp_path):
    finish(continuing(tmp_path / "whole", models[family]))
    stop(continuing(tmp_path / "parted", models[family]), 2)
    assert main(["train", "--resume", "--out", str(tmp_path / "parted"), "--device", "cpu"]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parted")
    assert card(tmp_path / "whole") == card(tmp_path / "parted")


@pytest.mark.slow
def test_python_and_the_command_line_say_the_same(models, tmp_path):
    given = {"num_examples": 60, "batch_tokens": 300, "num_steps": 4}
    how = {"begin_from": str(models["ar"]), "device": "cpu", "progress": False}
    manta.train("builtin:weather", tmp_path / "one", train={"precision": "float32"}, **given, **how)
    command = ["train", "builtin:weather", "--from", str(models["ar"]), "--out", str(tmp_path / "two")]
    settings = [f"{name}={value}" for name, value in given.items() if name != "num_steps"]
    assert main([*command, "--num-steps", "4", "--device", "cpu", "train.precision=float32", *settings]) == 0
    assert same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--lora", "4"], 2, "--lora is for published models, named with --from"),
        (["--merge"], 2, "--merge is for published models"),
        (["--family", "masked"], 2, "decides family; leave it out"),
        (["--size", "tiny"], 2, "decides size; leave it out"),
        (["vocab_size=600"], 2, "decides vocab_size; leave it out"),
        (["model.depth=3"], 2, "the model keeps its shape; leave model.depth out"),
        (["max_text=20"], 2, "leave max_text=20 out"),
        (["--teacher", "builtin:e2e"], 2, "leave --teacher, --drafter and --inherit out"),
    ],
)
def test_what_would_change_the_shape_is_refused_by_name(given, code, said, models, tmp_path, capsys):
    command = ["train", "builtin:weather", "--from", str(models["manta"]), "--out", str(tmp_path / "run")]
    assert main([*command, "--num-steps", "4", "--device", "cpu", "num_examples=60", *given]) == code
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1] and not (tmp_path / "run").exists()


def test_an_aligned_model_that_goes_on_may_be_asked_to_tell_styles_or_not_to():
    asked = {"data": "builtin:weather", "begin_from": "builtin:e2e-aligned"}
    assert for_continued(from_dict(Recipe, asked)).aligned.styles is True
    told = for_continued(from_dict(Recipe, {**asked, "aligned": {"causal": True, "styles": False}}))
    assert told.aligned == replace(load("builtin:e2e-aligned", device="cpu").model.config, styles=False)
    with pytest.raises(ConfigError, match=r"keeps its shape; leave aligned\.depth out"):
        for_continued(from_dict(Recipe, {**asked, "aligned": {"depth": 3, "styles": False}}))


def test_images_are_refused(models, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--num-steps", "4"]
    assert main(["train", "builtin:shapes", "--from", str(models["manta"]), *out]) == 2
    assert "--from trains models of texts and restorers on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_quantised_model_is_refused(models, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--num-steps", "4"]
    small_model = tmp_path / "integers"
    assert (
        main(
            [
                "quantize",
                str(models["manta"]),
                "--data",
                "builtin:weather",
                "--num",
                "16",
                "--calls",
                "4",
                "--out",
                str(small_model),
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["train", "builtin:weather", "--from", str(small_model), *out]) == 1
    assert "is quantised, and integers are not trained" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_beginnings_are_one_too_many(models, tmp_path):
    with pytest.raises(ConfigError, match="begins with itself"):
        continuing(tmp_path / "run", models["manta"], inherit=str(models["manta"]))
    assert not (tmp_path / "run").exists()


def test_a_restorer_goes_on_from_what_its_faults_share():
    recipe = _recipe(TrainOptions(data="restore:photos", from_="builtin:nothing"))
    assert recipe.state == "photo" and recipe.begin_from == "builtin:nothing"
