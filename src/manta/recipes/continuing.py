"""Runs that train a model of manta on: its family, tokenizer and shape stay, and its stages are those of the family."""

from manta.errors import ConfigError
from manta.families import FAMILIES
from manta.recipes.origins import begun_model, of_shape, placed
from manta.recipes.recipe import Recipe


def for_continued(recipe: Recipe) -> Recipe:
    """The recipe of a run that goes on with `recipe.begin_from`: that model's family, shape and limits.

    Raises:
        ModelError: the folder holds no model of a family that is trained here, or one of integers.
        ConfigError: the recipe asks for another family or shape, or for a second model to begin with.
    """
    if recipe.taught_by is not None or recipe.drafter_of is not None or recipe.inherit is not None:
        raise ConfigError("a model that is trained on begins with itself; leave --teacher, --drafter and --inherit out")
    lm = begun_model(recipe)
    name = FAMILIES[lm.family].shape
    asked = getattr(recipe, name)
    if asked not in (type(asked)(), lm.model.config):
        raise ConfigError(f"the model keeps its shape; leave {name}.* out")
    return of_shape(recipe, lm.model.config, begin_from=placed(str(recipe.begin_from)))
