"""What a run begins with: nothing, or a model that goes on, drafts, teaches, is converted or leaves a part."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from manta.errors import ConfigError
from manta.recipes.continuing import for_continued
from manta.recipes.inheritance import for_inherited
from manta.recipes.origins import for_drafter, for_taught
from manta.recipes.recipe import Recipe
from manta.recipes.text_conversion import for_converted


def begun_from(recipe: Recipe, tell: Callable[[str], None] = lambda line: None) -> Recipe:
    """The recipe of a run with what follows from the model that it begins with, if it begins with one.

    Args:
        recipe: as asked for.
        tell: takes what is measured on the way.

    Raises:
        ModelError, ConfigError: see `for_continued`, `for_drafter`, `for_taught`, `for_converted` and
            `for_inherited`.
    """
    if recipe.targets is not None:
        recipe = replace(recipe, targets=str(Path(recipe.targets).absolute()))
    if recipe.drafter_of is not None and recipe.taught_by is not None:
        raise ConfigError("a drafter has no teacher beside its own model; leave taught_by or drafter_of out")
    if recipe.converted_from is not None:
        return for_converted(recipe, tell)
    if recipe.begin_from is not None:
        return for_continued(recipe)
    if recipe.family == "decoder" and recipe.taught_by is not None:
        raise ConfigError("a decoder reads prompt and text as one row, and has no teacher; leave --teacher out")
    if recipe.inherit is not None:
        return for_inherited(recipe)
    if recipe.drafter_of is not None:
        return for_drafter(recipe)
    return recipe if recipe.taught_by is None else for_taught(recipe)
