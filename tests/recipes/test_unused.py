"""What a recipe says and its run would not read is refused by name; what it reads, and what is derived, is not."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.cli import main
from manta.cli.options import parse_options
from manta.cli.train import TrainOptions, _recipe
from manta.config import apply_overrides, from_dict, leaves, load_toml, read_toml, to_dict
from manta.errors import ConfigError
from manta.families import FAMILIES, users
from manta.families.batching import to_batch
from manta.families.trained import Teaching
from manta.hub import shipped
from manta.recipes import Recipe, TrainingRun
from manta.recipes.image_recipe import ImageRecipe
from manta.recipes.restore_recipe import RestoreRecipe
from manta.recipes.runfolder import stored_recipe
from manta.recipes.states import recipe_class, resolved
from manta.recipes.unused import CONDITIONS, refuse_unread, refuse_written
from manta.runtime import make_generator

from ..families.conftest import MAKERS, make_aligned, make_lm
from ..hub.test_export import make_decoder
from .small import finish, small, stop

TRAINED = tuple(name for name, row in FAMILIES.items() if row.writer is not None)
ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
MODELS = sorted(shipped().parent.glob("*/config.json"))
OTHER = {
    "model.dim": 32,
    "aligned.slots_per_word": 4,
    "masked.classes": 8,
    "block.block_length": 2,
    "decoder.tied": True,
    "objective.levels": 2,
    "objective.prompt_drop": 0.5,
    "objective.max_blank": 4,
    "masking.masker": "span",
    "alignment.glance": 0.1,
    "shares.own": 0.3,
}
"""Fields that some families do not read, with a value that is not the default."""
FOREIGN = [(family, field) for family in TRAINED for field in OTHER if family not in users(field)]


SLOW = ("manta", "aligned")
LOOKED_AT = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TRAINED]


def nested(field: str, value: Any) -> dict[str, Any]:
    first, _, rest = field.partition(".")
    return {first: nested(rest, value) if rest else value}


def test_every_field_of_the_table_is_one_of_a_recipe_and_of_no_other_family():
    known = [name for name, _ in leaves(to_dict(Recipe()))]
    for row in FAMILIES.values():
        for group in (*row.uses, *filter(None, [row.shape])):
            assert any(f"{name}.".startswith(f"{group}.") for name in known), group
    for state, conditions in CONDITIONS.items():
        own = [name for name, _ in leaves(to_dict(recipe_class(state)()))]
        for group in (group for condition in conditions for group in condition.fields):
            nets = ("model.modulation",) if state == "photo" else ()
            assert any(f"{name}.".startswith(f"{group}.") for name in (*own, *nets)), group
    assert len(FOREIGN) > 30 and {family for family, _ in FOREIGN} == set(TRAINED)


@pytest.mark.parametrize(("family", "field"), FOREIGN)
def test_a_field_of_other_families_is_refused_by_name_and_nothing_is_written(family, field, tmp_path):
    recipe = from_dict(Recipe, {"family": family, "num_steps": 4, **nested(field, OTHER[field])})
    with pytest.raises(ConfigError) as caught:
        TrainingRun(recipe, tmp_path / "run", device="cpu")
    said = str(caught.value)
    assert said.startswith(f"{field} is for the famil") and f"this run trains the family {family};" in said
    assert all(re.search(rf"\b{name}\b", said) for name in users(field)) and "\n" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["builtin:weather", "--family", "ar", "masking.masker=uniform"],
            "masking.masker is for the families masked and",
        ),
        (["FILE", "--family", "ar"], "shares.policy is for the families manta, aligned, masked and block"),
        (["builtin:weather", "conversion.layers=all"], "conversion.layers is for manta convert"),
        (["builtin:weather", "--family", "masked", "retries=2"], "retries is for what a teacher answers"),
        (["builtin:weather", "--family", "masked", "teacher.depth=2"], "teacher.depth is for runs with a teacher"),
        (["builtin:shapes", "space_share=0.25"], "space_share is for a space of latents"),
        (["builtin:shapes", "--net", "dit", "model.net.depths=1,1"], "unknown key 'model.net.depths'"),
        (["restore:photos", "model.only=rain"], "set only instead"),
    ],
)
def test_the_command_line_also_refuses_what_is_given_as_the_default(given, said, tmp_path, capsys):
    file = tmp_path / "recipe.toml"
    file.write_text('data = "builtin:weather"\n[shares]\npolicy = 0.65\n')
    words = [str(file) if word == "FILE" else word for word in given]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1 and not (tmp_path / "run").exists()


READ: list[tuple[str, dict[str, Any], bool]] = [
    ("teacher.depth", {"family": "masked"}, False),
    ("teacher.depth", {"family": "masked", "warm_start": True}, True),
    ("teacher.depth", {"family": "block", "consensus": "teacher"}, True),
    ("teacher.depth", {"family": "aligned"}, True),
    ("teacher.depth", {"data": "builtin:sudoku4"}, False),
    ("teacher.depth", {"data": "builtin:sudoku4", "warm_start": True}, True),
    ("teacher.depth", {"consensus": "none", "warm_start": False}, False),
    ("teacher.depth", {"family": "ar"}, True),
    ("shares.teacher", {"family": "masked"}, False),
    ("shares.teacher", {"family": "masked", "shares": {"teacher": 0.0}}, True),
    ("shares.teacher", {"family": "masked", "taught_by": "a model"}, False),
    ("shares.teacher", {}, True),
    ("consensus_share", {"family": "ar"}, False),
    ("consensus_share", {"family": "ar", "targets": "mine.jsonl"}, True),
    ("consensus_share", {"family": "ar", "teacher": {"draft_horizon": 2}}, True),
    ("consensus_share", {"consensus": "none"}, False),
    ("consensus_share", {"family": "masked", "consensus": "medoid"}, True),
    ("recombined", {"consensus": "medoid"}, False),
    ("recombined", {"family": "ar", "drafter_of": "a model"}, True),
    ("objective.levels", {"model": {"space": {"kind": "embedding"}}}, False),
    ("objective.own_share", {"shares": {"own": 0.0}}, False),
    ("objective.own_share", {}, True),
    ("objective.code_dropout", {"model": {"bits": 2}}, True),
    ("alignment.causal_weight", {"family": "aligned"}, False),
    ("alignment.slots_learn", {"family": "aligned"}, False),
    ("alignment.glance", {"family": "aligned"}, True),
    ("alignment.glance", {"family": "aligned", "alignment": {"reveal_share": 0.0}}, False),
    ("alignment.causal_weight", {"family": "aligned", "aligned": {"causal": True}}, True),
    ("train.round_share", {"train": {"rounds": 2}}, True),
    ("train.round_share", {}, False),
    ("inheritance.layers", {"inherit": "a model"}, True),
    ("inheritance.layers", {}, False),
    ("num_examples", {"family": "ar"}, True),
]


@pytest.mark.parametrize(("field", "given", "read"), READ)
def test_some_fields_are_read_by_some_runs_of_a_family(field, given, read):
    recipe = from_dict(Recipe, given)
    if read:
        refuse_unread(recipe, [field])
        return
    with pytest.raises(ConfigError, match=rf"^{re.escape(field)} is for .*; leave it out$"):
        refuse_unread(recipe, [field])


def test_the_nets_of_images_and_of_photographs_have_theirs():
    latent = from_dict(ImageRecipe, {"space_share": 0.4, "model": {"space": {"kind": "latent"}}})
    assert resolved(latent).space_share == 0.4
    for recipe, field in (
        (from_dict(ImageRecipe, {"space_share": 0.4}), "space_share"),
        (from_dict(ImageRecipe, {"objective": {"code_dropout": 0.2}}), "objective.code_dropout"),
        (ImageRecipe(conversion=replace(ImageRecipe().conversion, outputs=2.0)), "conversion.outputs"),
        (from_dict(RestoreRecipe, {"model": {"modulation": {"kind": "full", "rank": 8}}}), "model.modulation.rank"),
        (
            from_dict(RestoreRecipe, {"model": {"modulation": {"kind": "none", "maps": ["mlp"]}}}),
            "model.modulation.maps",
        ),
    ):
        with pytest.raises(ConfigError, match=rf"^{re.escape(field)} is for "):
            resolved(recipe)
    assert resolved(from_dict(RestoreRecipe, {"only": "rain"})).model.only == "rain"


@pytest.mark.parametrize("family", TRAINED)
def test_a_recipe_that_was_resolved_may_be_given_again(family):
    found = resolved(from_dict(Recipe, small(1, family)))
    assert resolved(found) == found and resolved(from_dict(Recipe, json.loads(json.dumps(to_dict(found))))) == found
    with pytest.raises(ConfigError, match=r"^consensus_share is for runs with consensus targets"):
        resolved(replace(found, consensus_share=0.25))


def test_a_run_with_fields_that_are_not_read_goes_on(tmp_path):
    """A folder that an earlier release began may hold some: its recipe counts as it stands."""
    run = tmp_path / "run"
    stop(TrainingRun(from_dict(Recipe, small(1, "ar", num_examples=20, num_steps=4)), run, device="cpu"), 2)
    told = json.loads((run / "recipe.json").read_text())
    told["masking"]["masker"] = "span"
    (run / "recipe.json").write_text(json.dumps(told))
    finish(TrainingRun(None, run, resume=True, device="cpu"))
    assert stored_recipe(run).masking.masker == "span"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_what_ships_is_read(config):
    told = read_toml(config)
    recipe = load_toml(recipe_class(told.get("state", "text")), config)
    refuse_written(recipe, told, ())
    resolved(recipe)


def documented() -> list[str]:
    """What the documents give to `manta train` that begins with no other model, goes on with no run, and needs no file
    or operator that the reader is to write."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("*.toml")))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found = dict.fromkeys(re.findall(r"manta train ([^`\n#>|]*\w)", text))
    others = r"--help|--resume|--from|--drafter|--inherit|--teacher|…|\.\.\.|\[|recipe\.toml|kind=mean"
    return [words for words in found if not re.search(others, words)]


@pytest.mark.parametrize("words", documented())
def test_what_the_documents_give_is_read(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = parse_options(TrainOptions, shlex.split(words), "train")
    if options.data and options.out is not None:
        recipe = _recipe(options)
        resolved(recipe)


@pytest.mark.parametrize("model", MODELS, ids=lambda file: file.parent.name)
def test_the_recipes_of_the_models_that_ship_load_as_they_were_written(model):
    recipe = json.loads(model.read_text())["recipe"]
    stored = dict(leaves(recipe))
    told = dict(leaves(to_dict(from_dict(recipe_class(recipe.get("state", "text")), recipe))))
    assert {name: told.get(name) for name in stored} == stored


CHANGES: list[tuple[str, Any]] = [
    ("objective.prompt_drop", 1.0),
    ("objective.blank_share", 0.0),
    ("objective.max_blank", 1),
    ("objective.extra_cell", 1.0),
    ("objective.all_hidden", 0.0),
    ("objective.levels", 2),
    ("objective.known_share", 1.0),
    ("objective.velocity_weight", 3.0),
    ("objective.bare_share", 1.0),
    ("objective.own_share", 0.0),
    ("objective.code_dropout", 1.0),
    ("objective.flow.weight_cap", 1.0),
    ("objective.flow.self_cond_probability", 0.0),
    ("objective.flow.self_cond_noise", 3.0),
    ("objective.flow.start_share", 0.0),
    ("objective.flow.end_share", 0.0),
    ("masking.masker", "span"),
    ("masking.least_share", 0.9),
    ("masking.most_share", 0.5),
    ("masking.rates", "auto"),
    ("masking.copies", 2),
    ("masking.complementary", True),
    ("masking.weighting", "mean"),
    ("alignment.reveal_share", 0.0),
    ("alignment.glance", 1.0),
    ("alignment.least_room", 1.1),
    ("alignment.most_room", 3.0),
    ("alignment.slots_learn", "answers"),
    ("alignment.causal_weight", 2.0),
    ("shares.policy", 4.0),
    ("shares.own", 0.5),
]
"""Every field of the objectives with a value that tells, where blanks and bare prompts are common."""
COMMON = {"objective": {"blank_share": 0.5, "prompt_drop": 0.2, "own_share": 1.0}, "alignment": {"reveal_share": 1.0}}


def taught(family: str, lm: Any, given: dict[str, Any]) -> Iterator[float]:
    """Share of the time and two losses of every stage of a family by a recipe, with the same draws."""
    batch = to_batch([[10, 11], [12], [], [13, 14, 15]], [[20, 21, 22, 23, 24], [25, 26], [27] * 9, [28, 29]])
    for stage in FAMILIES[family].load().stages(lm.model, from_dict(Recipe, given), {}):
        yield stage.share
        for seed in range(2):
            with torch.no_grad():
                yield float(stage.objective(lm.model, batch, make_generator(seed)).total)


def test_the_changes_are_of_every_field_of_the_objectives():
    told = {name: value for name, value in to_dict(Teaching()).items() if name != "shares"}
    run = {"objective.coupling"}  # which takes the run's teacher: `test_taught.py`
    assert {name for name, _ in leaves(told)} - run <= {name for name, _ in CHANGES}


@pytest.mark.parametrize("family", LOOKED_AT)
def test_a_family_reads_those_fields_that_the_table_says_and_no_other(family):
    """A field that is read changes a loss or the time of a stage; one that is not changes nothing."""
    both = {"aligned": lambda: make_aligned(causal=True), "manta": lambda: make_lm(bits=2)}
    made = {**MAKERS, **both, "decoder": lambda: make_decoder(depth=1)}
    lm = made[family]()
    before, recipe = list(taught(family, lm, COMMON)), from_dict(Recipe, COMMON)
    for field, value in CHANGES:
        after = taught(family, lm, to_dict(apply_overrides(recipe, [f"{field}={value}"])))
        assert any(now != then for now, then in zip(after, before, strict=True)) == (family in users(field)), field
