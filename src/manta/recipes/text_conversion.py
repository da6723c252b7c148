"""Conversions of models of texts, those of published causal models among them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from manta.errors import ConfigError, DataError
from manta.families import FAMILIES
from manta.families.batching import to_batch
from manta.families.imitation import WordImitation
from manta.families.prompted import PromptedConfig, PromptedModel
from manta.hub.folder import LanguageModel
from manta.recipes.conversion import (
    LOOKED_AT,
    MEASURED,
    ROWS,
    Cost,
    Objective,
    begin_as,
    check_measured,
    converted_blocks,
    costs,
    near_shares,
    new_operators,
    reach_of,
    told_near,
)
from manta.recipes.origins import of_shape, placed, source_model
from manta.recipes.recipe import Recipe
from manta.text import Batch, Example, read


def for_converted(recipe: Recipe, tell: Callable[[str], None] = lambda line: None) -> Recipe:
    """The recipe of a run that converts `recipe.converted_from`: that model's family, shape and limits.

    Args:
        recipe: as asked for.
        tell: takes the measurement by which `local` chooses.

    Raises:
        ModelError: the folder holds no model of manta, or one without attention where it is to be converted.
        ConfigError: the recipe asks for another shape, for a block that is not there, or for an operator that the
            model's family cannot use; or no block's attention stays near.
    """
    if recipe.taught_by is not None or recipe.drafter_of is not None:
        raise ConfigError("a conversion begins with one model; leave taught_by and drafter_of out")
    lm = source_model(recipe)
    row, config = FAMILIES[lm.family], recipe.conversion
    shape: Any = lm.model.config
    if getattr(recipe, row.shape) != type(shape)():
        raise ConfigError(f"the model keeps its shape; leave {row.shape}.* out")
    check_measured(config)
    near: tuple[float, ...] = ()
    if config.layers == "local":
        reach = reach_of(config)
        near = near_shares(lm, task_of_model(lm, recipe), held_out(recipe, lm, LOOKED_AT), reach)
        tell(told_near(near, reach))
    operators, chosen = new_operators(config, lm.trunk_of(lm.model), shape.mix, shape.heads, near)
    shape = replace(shape, operators=operators)
    if getattr(shape, "draft_horizon", 0):  # drafts are verified for attention
        shape = replace(shape, draft_horizon=0)
    if lm.family == "decoder":  # rows of others may be longer than what one would train on
        longest = min(shape.max_text, recipe.max_text or shape.max_text)
        shape = replace(shape, max_text=longest, max_prompt=min(longest - 1, recipe.max_prompt or longest))
    try:
        with torch.device("meta"):
            type(lm).net_class(shape)
    except ConfigError as error:
        raise ConfigError(f"{recipe.converted_from}, a model of the family {lm.family}: {error}") from None
    config = replace(config, layers=",".join(map(str, chosen)), near=near)
    return of_shape(recipe, shape, converted_from=placed(str(recipe.converted_from)), conversion=config)


def held_out(recipe: Recipe, lm: LanguageModel, num: int) -> list[Batch]:
    """Batches of the development split, or of the training texts where it is empty; long prose is cut.

    Raises:
        DataError: there is nothing that the model could read.
    """
    for split in ("dev", recipe.split):
        if found := to_batches(lm, read(recipe.data, split, num)):
            return found
    raise DataError(f"{recipe.data} has no text that the model could read")


def to_batches(lm: LanguageModel, examples: Iterable[Example]) -> list[Batch]:
    """Examples in batches of `ROWS`; prompts that are too long are left out, and long texts are cut."""
    shape: PromptedConfig = lm.model.config
    assert shape.max_prompt is not None and shape.max_text is not None, "a net's shape is resolved"
    rows = []
    for example in examples:
        prompt = lm.tokenizer.encode(example.prompt) if example.prompt else []
        text = lm.tokenizer.encode(example.text)[: shape.max_text]
        if text and len(prompt) <= shape.max_prompt:
            rows.append((prompt, text))
    groups = [tuple(zip(*rows[i : i + ROWS], strict=True)) for i in range(0, len(rows), ROWS)]
    return [to_batch(prompts, texts, lm.device) for prompts, texts in groups]


def task_of_model(lm: LanguageModel, recipe: Recipe) -> Objective:
    """The first thing that the family teaches, whoever wrote the texts, with what was measured while it was trained."""
    measured: dict[str, Any] = {}
    recipe = replace(recipe, alignment=replace(recipe.alignment, slots_learn="all"))
    first = lm.stages(lm.model, recipe, measured)[0]
    for name, part in lm.measured().items():
        measured[name].load_state_dict(part.state_dict())
    return first.objective


def how_well(recipe: Recipe, source: LanguageModel, net: PromptedModel) -> list[Cost]:
    """What a conversion costs on held-out texts, in nats a word: the source, the net right after it, and the net now.

    Args:
        recipe: of the run.
        source: the model that was converted.
        net: as trained.
    """
    blocks = converted_blocks(recipe.conversion)
    torch.manual_seed(recipe.seed)
    fresh = type(source).net_class(net.config).to(source.device)
    begin_as(source, fresh, blocks)
    task = WordImitation(task_of_model(source, recipe), source.model, source.trunk_of, blocks, outputs=1.0, states=1.0)
    nets = [("source", source.model), ("right after the conversion", fresh), ("after training", net)]
    return costs(nets, task, held_out(recipe, source, MEASURED), ("nats", "cross_entropy"))
