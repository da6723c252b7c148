"""Runs that begin with a model: one that goes on, is to draft, teaches, or is converted."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from manta.config import filled
from manta.errors import ConfigError, ModelError
from manta.families import FAMILIES
from manta.families.aligned import AlignedLM
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM
from manta.families.decoder import UNBOUNDED, DecoderLM
from manta.families.events import Writer
from manta.families.kept import KeptModel
from manta.families.prompted import PromptedConfig
from manta.families.trained import TrainedWriter
from manta.hub import load_writer
from manta.hub.causal import HUB
from manta.hub.digest import digest_of
from manta.hub.folder import BUILTIN, LanguageModel
from manta.recipes.recipe import SIZES, Recipe

HORIZON = 8
"""Words ahead that a drafter is taught, where the recipe does not say it."""


def placed(model: str) -> str:
    """A model's folder as an absolute path; a name of the hub, or of a model that ships, as it is."""
    return model if model.startswith((HUB, BUILTIN)) else str(Path(model).absolute())


def for_drafter(recipe: Recipe) -> Recipe:
    """The recipe of a run that teaches `recipe.drafter_of` to draft: that model's family, shape and limits.

    An aligned model drafts for its own left-to-right reading. A decoder keeps its limits, too, and learns from texts
    and prompts of up to `UNBOUNDED` tokens where the recipe says nothing else: the rows of published models are longer
    than one would train on.

    Raises:
        ModelError: the folder is none of a left-to-right model whose drafts could be verified.
        ConfigError: the recipe asks for another shape than the model has.
    """
    lm = drafting_model(recipe)
    shape: Any = lm.model.config
    name = FAMILIES[lm.family].shape
    asked = getattr(recipe, name)
    if replace(asked, draft_horizon=0) != type(asked)():
        raise ConfigError(f"the model keeps its shape; of {name}.* only draft_horizon is for its drafter to say")
    if recipe.family not in (Recipe().family, lm.family):
        raise ConfigError(f"the model to draft for is of the family {lm.family}; leave family={recipe.family} out")
    if recipe.train.rounds > 1:
        raise ConfigError("a drafter is taught in one round; leave train.rounds out")
    horizon = asked.draft_horizon or shape.draft_horizon or HORIZON
    given = replace(
        recipe,
        family=lm.family,
        drafter_of=placed(str(recipe.drafter_of)),
        vocab_size=max(512, min(32768, shape.vocab_size)),
        **{name: replace(shape, draft_horizon=horizon)},
    )
    if isinstance(lm, DecoderLM):
        limits = {limit: min(UNBOUNDED, getattr(shape, limit)) for limit in ("max_prompt", "max_text")}
        return kept_limits(filled(given, limits), shape, ("absolute_places",))
    return kept_limits(given, shape)


def drafting_model(recipe: Recipe) -> AutoregressiveLM | AlignedLM:
    """The model that is to draft.

    Raises:
        ModelError: see `for_drafter`.
    """
    lm = _left_to_right(recipe.drafter_of, "words are drafted for", ("ar", "decoder", "aligned"))
    if isinstance(lm, AlignedLM) and not lm.model.config.causal:
        raise ModelError(
            f"{recipe.drafter_of} does not read left to right itself (aligned.causal); words are drafted for what does"
        )
    if not lm.model.trunk.answers_alone:
        raise ModelError(
            f"{recipe.drafter_of} has the operator {lm.model.config.kinds}; drafts are verified for attention"
        )
    return lm


def for_taught(recipe: Recipe) -> Recipe:
    """The recipe of a run whose teacher is there already: with its shape, and its limits where none are set.

    Raises:
        ModelError: the folder is none of an autoregressive model.
        ConfigError: the recipe trains one itself, or asks for another shape of the teacher.
    """
    shape = teaching_model(recipe).model.config
    if recipe.teacher != AutoregressiveConfig():
        raise ConfigError("the teacher keeps its shape; leave teacher.* out")
    given = replace(
        recipe,
        taught_by=placed(str(recipe.taught_by)),
        vocab_size=max(512, min(32768, shape.vocab_size)),
        teacher=shape,
    )
    if recipe.family == "ar":  # drafts of the teacher's words would not be of its own
        return kept_limits(replace(given, teacher=replace(shape, draft_horizon=0)), shape)
    return filled(given, {"max_prompt": shape.max_prompt, "max_text": shape.max_text})


def of_shape(recipe: Recipe, shape: Any, **changes: Any) -> Recipe:
    """The recipe of a run whose model has the family and limits of another.

    Args:
        recipe: as asked for.
        shape: of the run's model, resolved.
        changes: other fields that follow.

    Raises:
        ConfigError: the recipe asks for other limits, or for what the other model decides.
    """
    default = Recipe()
    decided = [name for name in ("size", "vocab_size") if getattr(recipe, name) != getattr(default, name)]
    decided += ["family"] if recipe.family not in (default.family, shape.family) else []
    decided += ["warm_start"] if recipe.warm_start else []
    shapes = {row.shape for row in FAMILIES.values() if row.shape} - {FAMILIES[shape.family].shape}
    decided += [f"{name}.*" for name in sorted(shapes) if getattr(recipe, name) != getattr(default, name)]
    if decided:
        raise ConfigError(
            f"the model that it begins with, of the family {shape.family}, decides {decided[0]}; leave it out"
        )
    given = replace(
        recipe,
        warm_start=False,
        family=shape.family,
        size=min(SIZES, key=lambda size: abs(SIZES[size][0] - shape.dim)),
        vocab_size=max(512, min(32768, shape.vocab_size)),
        **{FAMILIES[shape.family].shape: shape},
        **changes,
    )
    return kept_limits(given, shape)


def kept_limits(
    recipe: Recipe, shape: PromptedConfig, names: tuple[str, ...] = ("max_prompt", "max_text", "absolute_places")
) -> Recipe:
    """A recipe with the limits of a model that keeps its shape.

    Args:
        recipe: as asked for.
        shape: of the model.
        names: of the limits.

    Raises:
        ConfigError: it asks for others.
    """
    limits = {name: getattr(shape, name) for name in names}
    for name, own in limits.items():
        if (asked := getattr(recipe, name)) not in (None, own):
            raise ConfigError(f"the model has {name}={own} and keeps it; leave {name}={asked} out")
    return replace(recipe, **limits)


def teaching_model(recipe: Recipe) -> AutoregressiveLM:
    """The teacher that is there already.

    Raises:
        ModelError: the folder is none of an autoregressive model.
    """
    return cast(AutoregressiveLM, _left_to_right(recipe.taught_by, "a teacher is one of the", ("ar",)))


def _left_to_right(folder: str | None, purpose: str, families: tuple[str, ...]) -> AutoregressiveLM | AlignedLM:
    lm = load_writer(folder, device="cpu")
    if lm.family not in families:
        known = " and ".join(f"{FAMILIES[name].words} ({name})" for name in families)
        raise ModelError(f"{folder} is of the family {lm.family}; {purpose} {known}")
    refuse_quantised(lm, folder)  # pyright: ignore[reportArgumentType]
    refuse_tasks(lm, folder)
    return cast(AutoregressiveLM | AlignedLM, lm)


def refuse_quantised(model: KeptModel, path: str | Path | None) -> None:
    """Refuse to begin a run with a model of integers.

    Raises:
        ModelError: as said.
    """
    if model.quantised is not None:
        raise ModelError(f"{path} is quantised, and integers are not trained; give the model that it was made of")


def refuse_tasks(model: Writer, path: str | Path | None) -> None:
    """Refuse a model that tells tasks apart, where one of one task is needed.

    Raises:
        ModelError: as said.
    """
    if model.tasks:
        raise ModelError(
            f"{path} tells tasks apart ({', '.join(model.tasks)}); take the model of one out first: manta export "
            f"{path} --task {model.tasks[0]} --out FOLDER"
        )


def source_model(recipe: Recipe) -> LanguageModel:
    """The model that is to be converted.

    Raises:
        ModelError: the folder is none of a family that is trained here.
    """
    return trained_model(recipe.converted_from, "cpu")


def larger_model(recipe: Recipe) -> LanguageModel:
    """The model that a smaller one inherits from.

    Raises:
        ModelError: the folder is none of a family that is trained here.
    """
    return trained_model(recipe.inherit, "cpu")


def begun_model(recipe: Recipe) -> LanguageModel:
    """The model that is trained on.

    Raises:
        ModelError: the folder is none of a family that is trained here.
    """
    return trained_model(recipe.begin_from, "cpu", tasked=True)


def trained_model(path: str | None, device: str | None, *, tasked: bool = False) -> LanguageModel:
    """A model of a family that is trained here.

    Args:
        path: of its folder.
        device: where it goes.
        tasked: it may tell tasks apart.

    Raises:
        ModelError: there is none, or it is of another.
    """
    lm = load_writer(path, device=device)
    if not isinstance(lm, TrainedWriter):
        families = ", ".join(name for name, row in FAMILIES.items() if row.writer is not None)
        raise ModelError(f"{path} is of the family {lm.family}, which is not trained here; give one of {families}")
    refuse_quantised(lm, path)
    if not tasked:
        refuse_tasks(lm, path)
    return lm


def digests(recipe: Recipe) -> dict[str, str]:
    """What tells the models that a run begins with from every other, by what they are to it."""
    found = {}
    if recipe.drafter_of is not None:
        found["drafter of"] = digest_of(drafting_model(recipe))
    if recipe.taught_by is not None:
        found["taught by"] = digest_of(teaching_model(recipe))
    if recipe.converted_from is not None:
        found["converted from"] = digest_of(source_model(recipe))
    if recipe.begin_from is not None:
        found["begun from"] = digest_of(begun_model(recipe))
    if recipe.inherit is not None:
        found["inherited from"] = digest_of(larger_model(recipe))
    return found


def begin_drafter(recipe: Recipe, net: Any) -> torch.dtype:
    """Give a net the weights of the model that it is to draft for.

    Returns:
        The precision that its matrices are stored in, so that those stay what they are: bfloat16, or float32 where a
        published model has more.
    """
    lm = drafting_model(recipe)
    take_over(lm, net)
    if isinstance(lm, DecoderLM):
        net.longest = recipe.max_text
    matrices = [value for value in lm.model.state_dict().values() if value.ndim >= 2 and value.is_floating_point()]
    exact = all(torch.equal(value.bfloat16().to(value.dtype), value) for value in matrices)
    return torch.bfloat16 if exact else torch.float32


def take_over(lm: AutoregressiveLM | AlignedLM, net: nn.Module) -> None:
    """Give a net the weights of a model, except for its drafter."""
    weights = {name: value for name, value in lm.model.state_dict().items() if not name.startswith("drafter.")}
    kept = {name: value for name, value in net.state_dict().items() if name.startswith("drafter.")}
    net.load_state_dict({**kept, **weights})
