"""The model card that every trained model gets."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manta.config import to_dict
from manta.families import FAMILIES
from manta.families.prompted import PromptedConfig
from manta.recipes.budget import undertrained
from manta.recipes.conversion import Cost, converted_words
from manta.recipes.recipe import Recipe
from manta.text import CorpusReport


def model_card(
    family: str,
    recipe: Recipe,
    plan: dict[str, int],
    minutes: dict[str, float],
    report: CorpusReport,
    scores: Sequence[Cost] = (),
    inherited: str = "",
) -> str:
    """Write the card: data, recipe, steps and minutes. Scores are added by whoever measures them.

    Args:
        family: of the model.
        recipe: as resolved.
        plan: steps of each stage.
        minutes: wall minutes of each stage, and of whatever else took time.
        report: what became of the data.
        scores: what a conversion cost.
        inherited: what it began with, in words.
    """
    inherited = f"Inherited from `{recipe.inherit}`: {inherited}.\n\n" if inherited else ""
    begun = f"{_begun_words(recipe)}\n\n" if recipe.begin_from else ""
    if recipe.drafter_of:
        begun = f"A copy of `{recipe.drafter_of}`, with the same texts, and a drafter, which alone was trained.\n\n"
    if classes := getattr(getattr(recipe, FAMILIES[recipe.family].shape), "classes", 0):
        begun += f"It settles classes of words before words: {classes} of them, learnt from its training texts.\n\n"
    heads = ("on held-out texts", "nats a word", "lost of the source's words, nats")
    converted = converted_words(recipe.converted_from, recipe.conversion, scores, heads)
    return written_card(
        f"{'An' if family[0] in 'aeiou' else 'A'} {family} model",
        recipe,
        f"({report}). The licence of the data applies to the texts it was made from.\n\n{converted}{begun}{inherited}",
        plan,
        minutes,
        "Load it with `manta.load(FOLDER)`; write with "
        f"`manta generate FOLDER {asked(bool(report.prompts), getattr(recipe, FAMILIES[recipe.family].shape))}`.",
    )


def asked(prompted: bool, shape: PromptedConfig) -> str:
    """How a model is asked for a text: by a prompt, or to go on from a beginning, where it can.

    Args:
        prompted: it was trained on prompts.
        shape: of the model, resolved.
    """
    if prompted:
        return "--prompt '…'"
    if shape.family in ("ar", "decoder") and any(operator.kind != "attention" for operator in shape.mix):
        return "--num-samples 3"
    return f"--infill '…___{{{min(60, max(1, (shape.max_text or 60) // 2))}}}'"


def _begun_words(recipe: Recipe) -> str:
    """What a model that was trained on began as, and what it learned."""
    config = recipe.distillation
    if config.num_steps is None:
        return f"Trained on from `{recipe.begin_from}`."
    calls = 1 + (config.actions << config.halvings)
    kind = (
        "every halving of its actions at once" if config.method == "flow_map" else "its actions halved again and again"
    )
    return f"Distilled from `{recipe.begin_from}`: {calls} calls in {config.num_steps}, {kind}."


def written_card(what: str, recipe: Any, told: str, plan: dict[str, int], minutes: dict[str, float], use: str) -> str:
    """What the cards of all models have in common.

    Args:
        what: the model is, with its article.
        recipe: as a model carries it away.
        told: of the data, from their name on, and of the model.
        plan: steps of each stage.
        minutes: wall minutes of each stage, and of whatever else took time.
        use: how the model is used.
    """
    lines = [f"| {name} | {steps} | {minutes.get(name, 0):.1f} |" for name, steps in plan.items()]
    lines += [f"| {name} | – | {spent:.1f} |" for name, spent in minutes.items() if name not in plan]
    rows, short = "\n".join(lines), undertrained(plan)
    warning = f"**This model is {short}.**\n\n" if short else ""
    return (
        f"# {what} trained by manta\n\nData: `{recipe.data.split(':')[0]}` {told}"
        f"{warning}| stage | steps | minutes |\n|---|---|---|\n{rows}\n\n{use}\n\n"
        f"Recipe:\n\n```json\n{json.dumps(to_dict(recipe), indent=1)}\n```\n"
    )


def portable(recipe: Recipe) -> Recipe:
    """The recipe as a model carries it away: of a path only the last part, which tells no folder's name."""
    kind, colon, place = recipe.data.rpartition(":")
    others = {
        name: getattr(recipe, name)
        for name in ("drafter_of", "taught_by", "converted_from", "begin_from", "inherit", "targets")
    }
    named = {name: path and Path(path).name for name, path in others.items()}
    return replace(recipe, data=kind + colon + Path(place).name, **named)
