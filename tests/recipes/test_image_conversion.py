"""Attention of an image flow becomes a convolution over the grid of its patches."""

from contextlib import closing

import numpy as np
import pytest
import torch

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, ModelError
from manta.families.image_flow import ImageFlow
from manta.hub import load
from manta.operators import SelfAttention
from manta.operators.pyramid_grid import PyramidGrid
from manta.recipes import TrainingRun
from manta.recipes.image_recipe import ImageRecipe
from manta.recipes.run import Note

DIT = {"kind": "dit", "width": 32, "depth": 2, "heads": 2}


def trained(folder, net=DIT, data="builtin:shapes"):
    recipe = from_dict(
        ImageRecipe,
        {"data": data, "size": "nano", "num_examples": 64, "batch_size": 8, "num_steps": 4, "model": {"net": net}},
    )
    run = TrainingRun(recipe, folder)
    for _ in run.events():
        pass
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("source") / "run")


def recipe_of(source, **conversion):
    return from_dict(
        ImageRecipe,
        {
            "data": "builtin:shapes",
            "num_examples": 64,
            "batch_size": 8,
            "num_steps": 4,
            "converted_from": str(source),
            "conversion": {"operator": {"kind": "pyramid_conv", "kernel": 3}, **conversion},
        },
    )


def converted(recipe, folder):
    run = TrainingRun(recipe, folder)
    lines = [event.text for event in run.events() if isinstance(event, Note)]
    return run, lines


def test_all_attention_becomes_convolution_and_the_rest_is_inherited(source, tmp_path):
    run, lines = converted(recipe_of(source), tmp_path / "run")
    flow, before = load(tmp_path / "run"), load(source)
    assert isinstance(flow, ImageFlow) and flow.codec == before.codec
    assert all(isinstance(block.operator, PyramidGrid) for block in flow.trunk_of(flow.model).blocks)
    assert flow.model.config.net.patch == before.model.config.net.patch
    assert flow.draw("one circle", num_samples=2, num_steps=2).shape == (2, *flow.codec.shape)
    source_cost, right_after, after = run.parts.scores
    assert source_cost.apart == pytest.approx(0, abs=1e-6) and right_after.apart > 0 and after.apart > 0
    assert any(line.startswith("error of the velocity, held out: source") for line in lines)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "attention of the blocks 0, 1 became `pyramid_conv`" in card and "| after training |" in card
    assert str(source) not in card


def test_new_operators_alone_leave_all_else_as_it_was(source, tmp_path):
    converted(recipe_of(source, layers="1", new_share=1.0), tmp_path / "run")
    flow, before = load(tmp_path / "run"), load(source)
    blocks = flow.trunk_of(flow.model).blocks
    assert isinstance(blocks[0].operator, SelfAttention) and isinstance(blocks[1].operator, PyramidGrid)
    old = before.model.state_dict()
    new = {name: value for name, value in flow.model.state_dict().items() if "blocks.1.operator" not in name}
    assert new and all(torch.equal(value, old[name]) for name, value in new.items())
    assert flow.model.net.trunk.blocks[1].operator.out.weight.abs().sum() > 0


def test_local_blocks_are_chosen_by_what_is_measured(source):
    told: list[str] = []
    from manta.recipes.states import resolved

    found = resolved(recipe_of(source, layers="local", least_near=0.01), told.append)
    assert found.conversion.layers == "0,1" and len(found.conversion.near) == 2
    assert all(0 < share <= 1 for share in found.conversion.near)
    assert "attention that stays within 1 places" in told[0]
    whole = resolved(recipe_of(source, layers="local", reach=100), told.append)
    assert all(share == pytest.approx(1) for share in whole.conversion.near)
    with pytest.raises(ConfigError, match="local takes blocks of 99%"):
        resolved(recipe_of(source, layers="local", least_near=0.99))


def test_a_conversion_resumes_exactly(source, tmp_path):
    converted(recipe_of(source), tmp_path / "whole")
    run = TrainingRun(recipe_of(source), tmp_path / "part")
    with closing(run.events()) as events:
        for event in events:
            if getattr(event, "step", 0) == 2:
                break
    again = TrainingRun(None, tmp_path / "part", resume=True)
    for _ in again.events():
        pass
    whole, part = (load(tmp_path / name).model.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(source, tmp_path, capsys):
    hourglass = trained(tmp_path / "dic", {"kind": "dic", "width": 16, "depths": [1, 1, 1, 1, 1]})
    arrays = tmp_path / "other.npz"
    np.savez(
        arrays,
        x_train=np.random.default_rng(0).integers(0, 256, (40, *load(source).codec.shape), np.uint8),
        y_train=np.arange(40) % 3,
    )
    out = tmp_path / "out"
    for model, data, more, told in (
        (hourglass, "builtin:shapes", [], "no blocks with attention between all patches"),
        (source, "builtin:shapes", ["conversion.operator.kind=linear"], "a grid has two"),
        (source, "builtin:shapes", ["--layers", "7"], "the blocks 0 to 1"),
        (source, "builtin:shapes", ["model.bits=2"], "keeps its shape"),
        (source, "builtin:shapes", ["height=12"], "leave height out"),
        (source, "builtin:weather", [], "is a model of images"),
        ("builtin:e2e", "builtin:shapes", [], "is no image flow (family manta)"),
    ):
        argv = ["convert", str(model), "--operator", "pyramid_conv", "--data", data, "--out", str(out)]
        assert main([*argv, "--num-steps", "4", *more]) != 0
        assert told in capsys.readouterr().err
        assert not out.exists()
    recipe = from_dict(
        ImageRecipe, {"data": str(arrays), "converted_from": str(source), "num_steps": 4, "batch_size": 4}
    )
    with pytest.raises(ConfigError, match="the images it was trained on"):
        converted(recipe, out)
    again, _ = converted(recipe_of(source), tmp_path / "once")
    with pytest.raises(ModelError, match="and not attention"):
        TrainingRun(recipe_of(again.out), tmp_path / "twice")


def test_the_verb_converts(source, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["convert", str(source), "--operator", "pyramid_conv", "--data", "builtin:shapes", "--out", str(out)]
    assert main([*argv, "--num-steps", "4", "num_examples=64", "batch_size=8", "conversion.operator.kernel=5"]) == 0
    assert "error of the velocity, held out" in capsys.readouterr().err
    assert load(out).trunk_of(load(out).model).blocks[0].operator.kernel == 5
