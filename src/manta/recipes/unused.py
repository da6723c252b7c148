"""What a recipe says that its run would not read; it is refused by name, before anything is written.

Which families read a field is told by their rows of `FAMILIES`; what else decides whether one is read, by `CONDITIONS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from manta.config import leaves, to_dict
from manta.errors import ConfigError
from manta.families import FAMILIES, is_in, users
from manta.recipes.recipe import Recipe, resolve
from manta.text import task_of


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Fields of a recipe that only some runs read."""

    fields: tuple[str, ...]
    """Their dotted names; a group is all of its fields."""
    read: Callable[[Any], bool]
    """Whether the run of a recipe reads them, or may: what only its data decide counts as read."""
    by: str
    """Which runs do, in words."""


def begins_with_another(recipe: Any) -> bool:
    """Whether a run begins with a model that decides its family, or its teacher."""
    names = ("begin_from", "converted_from", "inherit")
    return any(getattr(recipe, name, None) for name in names)


def may_be_taught(recipe: Recipe) -> bool:
    """Whether a run has a teacher, or has one where its data have prompts; see `prepare.guided_by`."""
    if begins_with_another(recipe):
        return False
    if recipe.taught_by is not None or recipe.consensus == "teacher" or recipe.warm_start:
        return True
    left_open = recipe.warm_start is None or (recipe.consensus == "auto" and recipe.targets is None)
    return FAMILIES[recipe.family].guided and task_of(recipe.data) is None and left_open


def may_have_targets(recipe: Recipe) -> bool:
    """Whether a run learns from consensus targets, or from what is answered to its prompts, or may."""
    drafts = recipe.family in ("ar", "decoder") and getattr(recipe, FAMILIES[recipe.family].shape).draft_horizon > 0
    if recipe.drafter_of is not None or drafts:
        return True
    if recipe.consensus != "auto":
        return recipe.consensus != "none"
    return recipe.targets is not None or recipe.taught_by is not None or FAMILIES[recipe.family].guided


def may_be_answered(recipe: Recipe) -> bool:
    """Whether somebody answers the prompts of a run, or does where its data have any."""
    if recipe.drafter_of is not None or begins_with_another(recipe) or recipe.consensus == "teacher":
        return True
    asked = recipe.taught_by is not None or (FAMILIES[recipe.family].guided and task_of(recipe.data) is None)
    return asked and recipe.consensus == "auto" and recipe.targets is None


def has_latents(recipe: Recipe) -> bool:
    """Whether the space of a Manta-LM has an encoder."""
    return hasattr(recipe.model.space, "information")


EVERY = (
    Condition(
        fields=("train.round_share", "train.round_choice", "train.round_temperature", "train.round_elements"),
        read=lambda recipe: recipe.train.rounds > 1,
        by="runs with train.rounds above 1",
    ),
)
CONVERTED = Condition(
    fields=("conversion",),
    read=lambda recipe: recipe.converted_from is not None,
    by="manta convert, or a recipe with converted_from",
)
CONDITIONS: Final[Mapping[str, tuple[Condition, ...]]] = {
    "text": (
        *EVERY,
        CONVERTED,
        Condition(
            fields=("distillation",),
            read=lambda recipe: recipe.distillation.num_steps is not None,
            by="manta distill, or a recipe with begin_from and distillation.num_steps",
        ),
        Condition(
            fields=("model.spans",),
            read=lambda recipe: recipe.distillation.num_steps is not None,
            by="manta distill --method flow_map, which sets it",
        ),
        Condition(
            fields=("inheritance",),
            read=lambda recipe: recipe.inherit is not None,
            by="a model that inherits from the larger one of --inherit",
        ),
        Condition(
            fields=("teacher",),
            read=lambda recipe: recipe.family == "ar" or may_be_taught(recipe),
            by="runs with a teacher, such as those with consensus = 'teacher' or warm_start",
        ),
        Condition(
            fields=("teacher.modulation", "teacher.tasks"),
            read=lambda recipe: recipe.family == "ar",
            by="a left-to-right model, family = 'ar'; a teacher knows one task",
        ),
        Condition(
            fields=("shares.teacher",),
            read=lambda recipe: recipe.shares.teacher == 0 or (recipe.taught_by is None and may_be_taught(recipe)),
            by="runs that train a teacher, such as those with consensus = 'teacher' or warm_start",
        ),
        Condition(
            fields=("consensus_share",),
            read=may_have_targets,
            by="runs with consensus targets, see consensus and targets",
        ),
        Condition(fields=("retries", "recombined"), read=may_be_answered, by="what a teacher answers"),
        Condition(
            fields=("objective.levels", "objective.known_share", "objective.velocity_weight", "objective.coupling"),
            read=has_latents,
            by="a space of latents, model.space.kind = 'latent'",
        ),
        Condition(
            fields=("objective.own_share",),
            read=lambda recipe: has_latents(recipe) and recipe.shares.own > 0,
            by="a space of latents and shares.own above 0",
        ),
        Condition(
            fields=("objective.code_dropout",),
            read=lambda recipe: recipe.model.bits > 0,
            by="an adaptive condition, model.bits above 0",
        ),
        Condition(
            fields=("masking.least_share", "masking.most_share", "masking.rates", "masking.complementary"),
            read=lambda recipe: recipe.family != "block" or recipe.block.block_length > 1,
            by="blocks of several words, block.block_length above 1",
        ),
        Condition(
            fields=("alignment.causal_weight", "alignment.slots_learn"),
            read=lambda recipe: recipe.aligned.causal,
            by="an aligned model that reads left to right, too, aligned.causal = true",
        ),
        Condition(
            fields=("alignment", "objective"),
            read=lambda recipe: recipe.drafter_of is None,
            by="runs that train more than a drafter",
        ),
        Condition(
            fields=("alignment.glance",),
            read=lambda recipe: recipe.alignment.reveal_share > 0,
            by="runs that give parts of alignments, alignment.reveal_share above 0",
        ),
    ),
    "image": (
        *EVERY,
        CONVERTED,
        Condition(
            fields=("space_share",),
            read=lambda recipe: recipe.model.space.kind == "latent" and recipe.converted_from is None,
            by="a space of latents that is trained, model.space.kind = 'latent'",
        ),
        Condition(
            fields=("objective.code_dropout",),
            read=lambda recipe: recipe.model.bits > 0,
            by="an adaptive condition, model.bits above 0",
        ),
    ),
    "photo": (
        *EVERY,
        Condition(
            fields=("model.modulation.rank",),
            read=lambda recipe: recipe.model.modulation.kind == "low_rank",
            by="changes of model.modulation.kind = 'low_rank'",
        ),
        Condition(
            fields=("model.modulation.maps",),
            read=lambda recipe: recipe.model.modulation.kind != "none",
            by="a model whose faults change something, model.modulation.kind",
        ),
    ),
}
"""By the state of a recipe; of others, `EVERY`."""


def refuse_unread(recipe: Any, said: Iterable[str]) -> None:
    """Refuse what a recipe says and its run would not read.

    Args:
        recipe: of any state, its family known.
        said: dotted names of the fields that somebody has set.

    Raises:
        ConfigError: as said; the field is named, who reads it, and what this run trains.
    """
    for field in said:
        families = users(field) if recipe.state == "text" else ()
        if families and recipe.family not in families:
            kind = "families" if len(families) > 1 else "family"
            raise ConfigError(
                f"{field} is for the {kind} {_listed(families)}, and this run trains the family {recipe.family}; leave "
                "it out"
            )
        for condition in CONDITIONS.get(recipe.state, EVERY):
            if any(is_in(field, group) for group in condition.fields) and not condition.read(recipe):
                raise ConfigError(f"{field} is for {condition.by}, and this run would not read it; leave it out")


def refuse_written(recipe: Any, told: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """The same of what a file or a command line says, the defaults that it names included.

    Args:
        recipe: that they describe.
        told: the file as it was read; empty without one.
        overrides: entries such as `masking.masker=span`.

    Raises:
        ConfigError: see `refuse_unread`.
    """
    if begins_with_another(recipe) or getattr(recipe, "drafter_of", None) is not None:
        return  # its family is not known yet
    names = (name for name, _ in leaves(told))
    refuse_unread(recipe, [*names, *(entry.partition("=")[0].strip() for entry in overrides)])


def set_by_hand(asked: Any, found: Any) -> Iterator[str]:
    """Dotted names of the fields of a recipe that are neither the default nor what would follow without them.

    A recipe that was resolved before says all of its nets' shapes, of which most are derived.

    Args:
        asked: the recipe.
        found: as resolved.
    """
    default, derived = dict(leaves(to_dict(type(asked)()))), {}
    if asked.state == "text":
        shapes = {row.shape for row in FAMILIES.values() if row.shape} - {FAMILIES[found.family].shape}
        filled = {name: getattr(Recipe(), name) for name in (*shapes, "consensus_share")}
        alone = to_dict(resolve(replace(found, **filled)))
        derived = dict(leaves({name: alone[name] for name in filled}))
    for name, value in leaves(to_dict(asked)):
        if name.endswith(".vocab_size"):  # of every net it is the tokenizer's, once there is one
            continue
        if all(name not in known or known[name] != value for known in (default, derived)):
            yield name


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
