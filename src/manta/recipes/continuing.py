"""Runs that train a model of manta on: its family, tokenizer and shape stay, and its stages are those of the family."""

from dataclasses import replace

from manta.errors import ConfigError
from manta.families import FAMILIES
from manta.recipes.origins import begun_model, of_shape, placed
from manta.recipes.recipe import Recipe


def for_continued(recipe: Recipe) -> Recipe:
    """The recipe of a run that goes on with `recipe.begin_from`: that model's family, shape and limits.

    A Manta-LM that is distilled has another shape in one thing: it knows for how many actions, or is told how far a
    step goes. An aligned model may be asked to tell styles, or not to.

    Raises:
        ModelError: the folder holds no model of a family that is trained here, or one of integers.
        ConfigError: the recipe asks for another family or shape, or for a second model to begin with.
    """
    if recipe.taught_by is not None or recipe.drafter_of is not None or recipe.inherit is not None:
        raise ConfigError("a model that is trained on begins with itself; leave --teacher, --drafter and --inherit out")
    lm = begun_model(recipe)
    name = FAMILIES[lm.family].shape
    asked, shape = getattr(recipe, name), lm.model.config
    usual, own = vars(type(asked)()), vars(shape)
    changed = {key: value for key, value in vars(asked).items() if value not in (usual[key], own[key])}
    if others := ", ".join(f"{name}.{key}" for key in changed if key != "styles"):
        raise ConfigError(f"the model keeps its shape; leave {others} out")
    shape = replace(shape, **changed)
    if recipe.distillation.num_steps is not None:
        if lm.family != "manta":
            raise ConfigError(
                f"{recipe.begin_from} is of the family {lm.family}; what is distilled is a flow, which Manta-LM has"
            )
        if lm.model.config.classes:
            raise ConfigError(
                f"{recipe.begin_from} settles classes of words before words, and a distillation teaches words alone; "
                "distill a model of model.classes=0"
            )
        actions, known = recipe.distillation.actions << recipe.distillation.halvings, lm.model.config.flow_calls
        if 0 < known < actions:
            raise ConfigError(
                f"the model was distilled for {known} actions and cannot teach {actions} of them; set --halvings or "
                "--num-steps lower, or distill the model that it was made of"
            )
        if recipe.train.rounds > 1:
            raise ConfigError("a distillation has one round; set train.rounds=1")
        if recipe.distillation.method == "flow_map":
            shape = replace(shape, spans=True, flow_calls=0)
        else:
            shape = replace(shape, flow_calls=recipe.distillation.actions)
    return of_shape(recipe, shape, begin_from=placed(str(recipe.begin_from)))
