"""What is said of every family, in its table and by its flags, is what it is and does."""

from dataclasses import fields
from typing import Any, get_args

import pytest

from manta.errors import RequestError, UsageError
from manta.families import DRAWING, FAMILIES, FamilyName, TrainedName
from manta.families.batching import to_batch
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked_model import MaskedConfig
from manta.families.observer import Observer
from manta.families.prompted import resolved
from manta.families.trained import TrainedWriter
from manta.masked import LikelihoodBound, likelihood_bound
from manta.recipes import Recipe
from manta.recipes.recipe import resolve
from manta.runtime import make_generator

from .conftest import MAKERS


@pytest.fixture(scope="module", params=MAKERS)
def lm(request) -> TrainedWriter[Any]:
    return MAKERS[request.param]()


class Watching(Observer):
    """Someone who watches."""


def test_who_says_that_it_fills_changes_or_is_watched_does(lm):
    tries: dict[str, tuple[Request, Observer | None]] = {
        "fills": (Request(infill="the ___{2} mat"), None),
        "changes": (Request(infill="the [[cat sat]] on"), None),
        "observed": (Request(prompt="the cat"), Watching()),
    }
    shares: dict[str, Any] = {"num_steps": 4} if lm.family in ("manta", "masked") else {}
    for flag, (request, observer) in tries.items():
        events = lm.generate([request], GenerateOptions(**shares), observer)
        if getattr(lm, flag):
            assert next(iter(finished(events))).kind == "done", flag
        else:
            with pytest.raises((RequestError, UsageError)):
                list(finished(events))


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.writer is not None])
def test_a_family_of_the_table_is_the_one_of_its_name_and_its_shape_is_the_recipes(name):
    row = FAMILIES[name]
    writer = row.load()
    assert writer.family == name and row.words
    recipe = Recipe()
    assert row.shape in {field.name for field in fields(recipe)}
    assert getattr(recipe, row.shape).family == name and isinstance(getattr(recipe, row.shape), writer.config_class)


def test_a_recipe_resolves_the_shape_of_every_family_and_the_command_line_takes_it():
    ours = [name for name, row in FAMILIES.items() if row.writer is not None]
    assert {*get_args(TrainedName)} == {*ours, "joint"} and {*get_args(FamilyName)} == {*ours} - {"decoder"}
    assert {*MAKERS} == {*get_args(FamilyName)}, "what is said of every family is asked of each"
    for name in ours:
        recipe = resolve(Recipe(family=name, num_steps=4))  # pyright: ignore[reportArgumentType]
        shape = getattr(recipe, FAMILIES[name].shape)
        assert shape == resolved(shape) and shape.absolute_places == FAMILIES[name].absolute_places


def test_what_draws_is_what_its_name_says():
    assert {name: row.load().family for name, row in DRAWING.items()} == {name: name for name in DRAWING}
    assert [row.words for row in DRAWING.values()] == ["images", "images and captions", "photographs to restore"]


@pytest.mark.parametrize(("name", "how"), [("manta", {"num_steps": 2}), ("ar", {"temperature": 1.0, "max_tokens": 3})])
def test_a_seed_that_is_not_told_is_the_first(name, how):
    lm = MAKERS[name]()
    assert lm.write(["the cat"], **how) == [lm.write("the cat", seed=0, **how)]


@pytest.mark.parametrize(("name", "file"), [("masked", "masked_objective"), ("block", "block")])
def test_a_bound_looks_at_a_text_under_128_masks_unless_it_is_said_otherwise(name, file, monkeypatch):
    lm, asked = MAKERS[name](), []

    def noted(*args: Any, num_samples: int, **rest: Any) -> LikelihoodBound:
        asked.append(num_samples)
        return likelihood_bound(*args, num_samples=2, **rest)

    monkeypatch.setattr(f"manta.families.{file}.likelihood_bound", noted)
    batch = to_batch([[5]], [[11, 12]])
    lm.log_likelihood(batch, [make_generator(0)])
    lm.log_likelihood(batch, [make_generator(0)], 7)
    assert asked == [128, 7]


def test_a_shape_that_says_nothing_is_the_stated_one():
    shape = resolved(MaskedConfig())
    assert (shape.vocab_size, shape.dim, shape.heads, shape.depth, shape.prompt_depth) == (1024, 128, 4, 4, 2)
    assert (shape.max_prompt, shape.max_text, shape.absolute_places) == (128, 128, False)
    told = resolved(MaskedConfig(dim=24, heads=3, max_text=7, absolute_places=True))
    assert (told.dim, told.heads, told.max_text, told.depth, told.absolute_places) == (24, 3, 7, 4, True)
