"""A conversion begins with a model's weights, trains what is new, and says what it cost."""

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manta.cli import main
from manta.config import apply_overrides, from_dict
from manta.errors import CheckpointError, ConfigError, ModelError, UsageError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel
from manta.hub import load, save_model
from manta.nets.trunk import Trunk
from manta.operators import KINDS, AttentionConfig, DijiangConfig, KernelAttention, LinearConfig, SelfAttention
from manta.recipes import Recipe, TrainingRun
from manta.recipes.conversion import chosen_blocks, reach_of
from manta.recipes.recipe import ConversionConfig, resolve

from .small import card, finish, same_weights, small, stop

FAMILIES = ("ar", "masked", "aligned", "manta")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp("models") / family
        finish(TrainingRun(from_dict(Recipe, small(2, family)), found[family], device="cpu"))
    return found


def converting(out: Path, model: Path, conversion: dict[str, Any] | None = None, **changes: Any) -> TrainingRun:
    recipe = {"data": "builtin:weather", "num_examples": 60, "batch_tokens": 300, "num_steps": 8, **changes}
    recipe |= {"converted_from": str(model), "conversion": conversion or {"operator": {"kind": "linear"}}}
    return TrainingRun(from_dict(Recipe, recipe), out, device="cpu")


def operators(folder: Path) -> list[Any]:
    lm = cast(Any, load(folder, device="cpu"))
    trunk = lm.trunk_of(lm.model)
    assert isinstance(trunk, Trunk)
    return [block.operator for block in trunk.blocks]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_is_converted_and_writes(family, models, tmp_path, capsys):
    run = converting(tmp_path / "run", models[family])
    finish(run)
    assert all(isinstance(operator, KernelAttention) for operator in operators(tmp_path / "run"))
    assert len(load(tmp_path / "run").write(["Monday: sunny"])) == 1
    names = [cost.name for cost in run.parts.scores]
    assert names == ["source", "right after the conversion", "after training"]
    assert run.parts.scores[0].apart == pytest.approx(0, abs=1e-6)
    assert all(cost.apart > 0 and cost.task > 0 for cost in run.parts.scores[1:])
    told = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"Converted from `{family}`: attention of the blocks 0, 1 became `linear`." in told
    assert f"| source | {run.parts.scores[0].task:.3f} | 0.000 |" in told


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_new_stays_as_it_was(family, models, tmp_path):
    """With `new_share = 1` only the new operators are trained; half of them are not new here."""
    finish(converting(tmp_path / "run", models[family], {"layers": "1", "new_share": 1.0}))
    before, after = (cast(Any, load(folder, device="cpu")) for folder in (models[family], tmp_path / "run"))
    assert isinstance(operators(tmp_path / "run")[0], SelfAttention)
    new = {id(value) for value in after.trunk_of(after.model).blocks[1].operator.state_dict().values()}
    was = before.model.state_dict()
    kept = [name for name, value in after.model.state_dict(keep_vars=True).items() if ".blocks.1.operator." not in name]
    assert len(kept) > 10 and new
    same = after.model.state_dict()
    assert all(torch.equal(same[name], was[name]) for name in kept)


def test_the_space_of_a_plan_is_not_trained(models, tmp_path):
    finish(converting(tmp_path / "run", models["manta"], {"new_share": 0.0}, consensus="none"))
    before, after = (cast(Any, load(folder, device="cpu")).model for folder in (models["manta"], tmp_path / "run"))
    space = after.space.state_dict()
    assert space and all(torch.equal(value, space[name]) for name, value in before.space.state_dict().items())
    assert not torch.equal(before.embedding.weight, after.embedding.weight)


@pytest.mark.parametrize("family", ["ar", "manta"])
def test_an_interrupted_conversion_ends_as_one_that_was_not(family, models, tmp_path):
    finish(converting(tmp_path / "whole", models[family]))
    stop(converting(tmp_path / "parted", models[family]), 4)
    assert main(["convert", "--resume", "--out", str(tmp_path / "parted"), "--device", "cpu"]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parted")
    assert card(tmp_path / "whole") == card(tmp_path / "parted")


def test_a_finished_conversion_needs_its_source_no_more(models, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "run"
    shutil.copytree(models["ar"], source)
    run = finish(converting(out, source))
    shutil.rmtree(source)
    again = TrainingRun(None, out, resume=True, device="cpu")
    finish(again)
    assert again.plan == run.plan == {"teacher": 8}
    own = again.model.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in load(out, device="cpu").model.state_dict().items())
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert f"this run is finished; its model is in {out / 'model'}" in capsys.readouterr().err
    lm = load(out, device="cpu")  # something is left to do: the model is not the run's
    with torch.no_grad():
        lm.model.embedding.weight.add_(1)
    save_model(out / "model", lm, recipe={}, card="")
    with pytest.raises(ModelError, match="source"):
        finish(TrainingRun(None, out, resume=True, device="cpu"))


def test_another_source_than_at_the_beginning_is_refused(models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models["ar"] / "model", model)
    stop(converting(tmp_path / "run", model))
    lm = cast(Any, load(model))
    with torch.no_grad():
        lm.model.embedding.weight.add_(1)
    save_model(model, lm, recipe={}, card="")
    with pytest.raises(CheckpointError, match="the converted from of this run has changed"):
        finish(TrainingRun(None, tmp_path / "run", resume=True, device="cpu"))


def test_local_measures_and_chooses(models, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["convert", str(models["masked"]), "--operator", "pyramid_conv", "--layers", "local", "--out", str(out)]
    given += ["--data", "builtin:weather", "--num-steps", "8", "num_examples=60", "batch_tokens=300"]
    assert main([*given, "--device", "cpu", "conversion.least_near=0.999"]) == 2
    said = capsys.readouterr().err
    assert "attention that stays within 6 places, block by block: " in said and "local takes blocks of 100%" in said
    assert not out.exists()
    assert main([*given, "--device", "cpu", "conversion.least_near=0.01"]) == 0
    assert "attention that stays within 6 places" in capsys.readouterr().err
    assert "Its attention stayed within reach by" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_has_a_reach(kind):
    assert reach_of(ConversionConfig(operator=KINDS[kind]())) == {"windowed": 2}.get(kind, 6)
    assert reach_of(ConversionConfig(operator=KINDS[kind](), reach=3)) == 3


def test_local_leaves_other_operators_as_they_are(models, tmp_path):
    finish(converting(tmp_path / "once", models["ar"], {"layers": "0", "operator": {"kind": "linear"}}))
    local = {"layers": "local", "least_near": 0.01, "operator": {"kind": "dijiang"}}
    run = converting(tmp_path / "more", tmp_path / "once", local)
    assert run.asked.conversion.near[0] == 0 < run.asked.conversion.near[1]
    assert [operator.kind for operator in run.asked.teacher.operators] == ["linear", "dijiang"]


def test_blocks_are_chosen_by_what_was_measured():
    config = ConversionConfig(layers="local", least_near=0.5)
    assert chosen_blocks(config, (0.4, 0.5, 0.9), 3) == (1, 2)
    assert chosen_blocks(ConversionConfig(layers="2,0,2"), (), 3) == (0, 2)
    with pytest.raises(ConfigError, match="the model has the blocks 0 to 2"):
        chosen_blocks(ConversionConfig(layers="0,3"), (), 3)
    with pytest.raises(ConfigError, match="layers should be all, local or numbers"):
        ConversionConfig(layers="first")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"conversion": {"operator": {"kind": "pyramid_conv"}}}, ConfigError, "no left-to-right model can use it"),
        ({"conversion": {"layers": "0,9"}}, ConfigError, "the model has the blocks 0 to 1"),
        ({"conversion": {"operator": {"kind": "linear", "heads": 4}}}, ConfigError, "heads=2 is kept"),
        (
            {"conversion": {"operator": {"kind": "windowed", "rotary_base": 5}}},
            ConfigError,
            "rotary_base=1000.0 is kept",
        ),
        ({"conversion": {"reach": 3}}, ConfigError, "reach and least_near are for layers = local"),
        ({"conversion": {"near": [0.5]}}, ConfigError, "near is measured"),
        ({"conversion": {"layers": "local", "reach": -4}}, ConfigError, "reach should be at least 0"),
        ({"model": {"depth": 9}}, ConfigError, "of the family ar, decides model"),
        ({"family": "masked"}, ConfigError, "decides family"),
        ({"size": "large"}, ConfigError, "decides size"),
        ({"vocab_size": 600}, ConfigError, "decides vocab_size"),
        ({"warm_start": True}, ConfigError, "decides warm_start"),
        ({"max_text": 7}, ConfigError, "the model has max_text="),
        ({"teacher": {"depth": 5}}, ConfigError, "leave teacher"),
        ({"taught_by": "builtin:e2e"}, ConfigError, "a conversion begins with one model"),
        ({"retries": 2}, ConfigError, "leave retries out"),
        ({"converted_from": "nowhere"}, ModelError, "no model at"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(change, error, said, models, tmp_path):
    recipe = {"data": "builtin:weather", "num_examples": 60, "num_steps": 8, "batch_tokens": 300}
    recipe |= {"converted_from": str(models["ar"]), **change}
    with pytest.raises(error, match=said):
        finish(TrainingRun(from_dict(Recipe, recipe), tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_only_attention_is_converted(models, tmp_path):
    finish(converting(tmp_path / "once", models["ar"], {"layers": "0", "operator": {"kind": "linear"}}))
    with pytest.raises(ModelError, match=r"block 0 of .* is linear, and not attention"):
        converting(tmp_path / "twice", tmp_path / "once")
    finish(converting(tmp_path / "more", tmp_path / "once", {"layers": "1"}))
    kinds = [type(operator).__name__ for operator in operators(tmp_path / "more")]
    assert kinds == ["LinearAttention", "DijiangAttention"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--out", "RUN"], "say what to convert"),
        (["MODEL", "--out", "RUN"], "say what attention becomes"),
        (["MODEL", "--operator", "linear", "--out", "RUN"], "say what to train on"),
        (["MODEL", "--operator", "lineer", "--out", "RUN"], "did you mean 'linear'"),
        (["MODEL", "--operator", "linear"], "say where the run goes"),
        (["MODEL", "--operator", "linear", "--data", "", "--out", "RUN"], "say what to train on"),
        (["--resume", "--operator", "linear", "--out", "RUN"], "leave operator out"),
        (["--resume", "--seed", "0", "--out", "RUN"], "leave seed out"),
        (["--resume", "--out", "MODEL"], "is no conversion"),
    ],
)
def test_slips_of_the_command_line(given, said, models, tmp_path, capsys):
    words = [word.replace("MODEL", str(models["ar"])).replace("RUN", str(tmp_path / "run")) for word in given]
    assert main(["convert", *words]) == UsageError.exit_code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_conversion_asks_for_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"conversion\.new_share is for manta convert"):
        TrainingRun(Recipe(conversion=ConversionConfig(new_share=0.5)), tmp_path / "run")


def test_operators_block_by_block():
    """A mix is repeated, can be said in words, and is bounded by the blocks."""
    recipe = apply_overrides(Recipe(family="ar", size="nano"), ["teacher.operators=attention,dijiang"])
    shape = resolve(recipe).teacher
    assert shape.mix == (AttentionConfig(), DijiangConfig()) and shape.kinds == "attention, dijiang"
    assert AutoregressiveConfig(operator=LinearConfig()).mix == (LinearConfig(),)
    net = AutoregressiveModel(AutoregressiveConfig(vocab_size=16, dim=16, heads=2, depth=3, operators=shape.mix))
    kinds = [type(block.operator).__name__ for block in net.trunk.blocks]
    assert kinds == ["SelfAttention", "DijiangAttention", "SelfAttention"]
    with pytest.raises(ConfigError, match="operators holds 2, and there are 1 blocks"):
        AutoregressiveConfig(depth=1, operators=shape.mix)
    with pytest.raises(ConfigError, match="operators"):
        apply_overrides(recipe, ["teacher.operators=attention,dijang"])
