"""Conversions: attention of a model that is trained becomes another operator, and what that costs it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from manta.errors import ConfigError, DataError, ModelError
from manta.families import FAMILIES
from manta.families.batching import to_batch
from manta.families.imitation import Imitation, Objective
from manta.families.prompted import PromptedConfig, PromptedModel
from manta.hub.folder import LanguageModel
from manta.operators import OperatorChoice, SelfAttention, WindowedConfig, inherit_attention, near_share
from manta.recipes.origins import of_shape, placed, source_model
from manta.recipes.recipe import ConversionConfig, Recipe
from manta.runtime import make_generator
from manta.text import Batch, Example, read

REACH = 6
"""Places on either side that are near, for an operator that has no reach of its own."""
LOOKED_AT = 64
"""Texts whose attention is measured."""
MEASURED = 256
"""Held-out texts on which a conversion is measured."""
ROWS = 32
"""Texts of a batch that is measured."""
KEPT = ("heads", "rotary_base", "rotary_share", "bias", "kv_heads", "normalised")
"""Of attention, what the operator in its place has too."""


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
    default = ConversionConfig()
    if config.near or (config.layers != "local" and (config.reach, config.least_near) != (None, default.least_near)):
        raise ConfigError(
            "conversion.near is measured, and reach and least_near are for layers = local; leave them out"
        )
    trunk = lm.trunk_of(lm.model)
    near: tuple[float, ...] = ()
    if config.layers == "local":
        near = near_shares(lm, recipe, reach_of(config))
        tell(_told(near, reach_of(config)))
    chosen = chosen_blocks(config, near, len(trunk.blocks))
    operators = list(shape.mix[index % len(shape.mix)] for index in range(len(trunk.blocks)))
    for index in chosen:
        if type(trunk.blocks[index].operator) is not SelfAttention:
            raise ModelError(f"block {index} of {recipe.converted_from} is {operators[index].kind}, and not attention")
        operators[index] = _instead(config.operator, operators[index], shape.heads)
    shape = replace(shape, operators=tuple(operators))
    if lm.family == "ar":  # drafts are verified for attention
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


def reach_of(config: ConversionConfig) -> int:
    """Places on either side that are near: as asked, or as far as the new operator sees."""
    if config.reach is not None:
        return config.reach
    kernel = getattr(config.operator, "kernel", None)
    radius = config.operator.radius if isinstance(config.operator, WindowedConfig) else REACH
    return radius if kernel is None else kernel // 2


def chosen_blocks(config: ConversionConfig, near: tuple[float, ...], depth: int) -> tuple[int, ...]:
    """Blocks whose operator changes.

    Raises:
        ConfigError: one of them is not there, or none stays near.
    """
    if config.layers == "all":
        return tuple(range(depth))
    if config.layers == "local":
        if not (chosen := tuple(index for index, share in enumerate(near) if share >= config.least_near)):
            raise ConfigError(
                f"{_told(near, reach_of(config))}, and local takes blocks of {config.least_near:.0%} or more; set "
                "conversion.least_near, or name blocks with layers"
            )
        return chosen
    numbers = sorted({int(number) for number in config.layers.split(",")})
    if numbers[-1] >= depth:
        raise ConfigError(f"the model has the blocks 0 to {depth - 1}, received {config.layers}")
    return tuple(numbers)


def _told(near: tuple[float, ...], reach: int) -> str:
    shares = ", ".join(f"{share:.0%}" for share in near)
    return f"attention that stays within {reach} places, block by block: {shares}"


def _instead(operator: OperatorChoice, attention: OperatorChoice, heads: int) -> OperatorChoice:
    """An operator with the heads, the turn and the biases of the attention that it stands in for, where it has such.

    Raises:
        ConfigError: it is to have others.
    """
    kept = {name: getattr(attention, name) for name in KEPT if hasattr(attention, name) and hasattr(operator, name)}
    default = type(operator)()
    for name, own in kept.items():
        own = own or heads if name == "heads" else own
        if getattr(operator, name) not in (getattr(default, name), own):
            raise ConfigError(
                f"{name}={own} is kept, as queries and keys stay what they are; leave conversion.operator.{name} out"
            )
    return replace(operator, **kept)


def begin_as(source: LanguageModel, net: PromptedModel, blocks: tuple[int, ...]) -> None:
    """Give a net the weights of its source, and its new operators what they can take over.

    Args:
        source: the model that is converted.
        net: of the same shape, but for the operators of some blocks.
        blocks: those.
    """
    trunk, own = source.trunk_of(source.model), source.trunk_of(net)
    new = {f"{name}." for name, part in net.named_modules() if part in {own.blocks[i].operator for i in blocks}}
    weights = {name: value for name, value in source.model.state_dict().items() if not name.startswith("drafter.")}
    weights = {name: value for name, value in weights.items() if not name.startswith(tuple(new))}
    kept = {name: value for name, value in net.state_dict().items() if name.startswith(tuple(new))}
    net.load_state_dict({**weights, **kept})
    for index in blocks:
        attention: Any = trunk.blocks[index].operator
        scale = getattr(trunk.blocks[index], "scale", None)  # norms of others have gains
        inherit_attention(attention, own.blocks[index].operator, scale)  # pyright: ignore[reportArgumentType]


def new_parts(source: LanguageModel, net: PromptedModel, blocks: tuple[int, ...]) -> tuple[nn.Module, ...]:
    """The new operators of a net."""
    trunk: Any = source.trunk_of(net)
    return tuple(trunk.blocks[index].operator for index in blocks)


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


@torch.no_grad()
def near_shares(lm: LanguageModel, recipe: Recipe, reach: int) -> tuple[float, ...]:
    """Of each block, the share of its attention that stays within some places, while the model does its task.

    A block with another operator than attention has none that could stay.
    """
    trunk = lm.trunk_of(lm.model)
    shares: list[list[Tensor]] = [[] for _ in trunk.blocks]

    def looking(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(attention: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(attention, SelfAttention)
            into.append(near_share(attention, args[0], args[1], reach).cpu())

        return look

    hooks = []
    for block, into in zip(trunk.blocks, shares, strict=True):
        operator: Any = block.operator
        if type(operator) is SelfAttention:
            hooks.append(operator.register_forward_pre_hook(looking(into)))
    try:
        mean_parts(lm.model, task_of_model(lm, recipe), held_out(recipe, lm, LOOKED_AT))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(round(float(torch.cat(found).mean()), 4) if found else 0.0 for found in shares)


def task_of_model(lm: LanguageModel, recipe: Recipe) -> Objective:
    """The first thing that the family teaches, with what the model has measured while it was trained."""
    measured: dict[str, Any] = {}
    first = lm.stages(lm.model, recipe.teaching, measured)[0]
    for name, part in lm.measured().items():
        measured[name].load_state_dict(part.state_dict())
    return first.objective


@torch.no_grad()
def mean_parts(net: PromptedModel, objective: Objective, batches: list[Batch]) -> dict[str, float]:
    """Parts of an objective over some batches, each in proportion to what it is the mean of; the same draws for all."""
    generator, totals, count = make_generator(0), defaultdict(float), 0.0
    with _evaluating(net):
        for batch in batches:
            loss = objective(net, batch, generator)
            weight = float(batch.num_elements if loss.count is None else loss.count)
            for name, value in loss.parts.items():
                totals[name] += weight * float(value)
            count += weight
    return {name: total / count for name, total in totals.items()}


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def converted_blocks(recipe: Recipe) -> tuple[int, ...]:
    """Blocks that have a new operator, of the recipe of a run."""
    return tuple(map(int, recipe.conversion.layers.split(",")))


@dataclass(frozen=True)
class Cost:
    """What a conversion costs on held-out texts, in nats a word."""

    name: str
    """Of the net."""
    nats: float
    """Of the family's own task."""
    divergence: float
    """What the source's words lose when they are told by this net instead."""


def how_well(recipe: Recipe, source: LanguageModel, net: PromptedModel) -> list[Cost]:
    """Measure the source, the net right after the conversion, and the net now, on held-out texts.

    Args:
        recipe: of the run.
        source: the model that was converted.
        net: as trained.
    """
    blocks = converted_blocks(recipe)
    torch.manual_seed(recipe.seed)
    fresh = type(source).net_class(net.config).to(source.device)
    begin_as(source, fresh, blocks)
    task = Imitation(task_of_model(source, recipe), source.model, source.trunk_of, blocks, outputs=1.0, states=1.0)
    batches, found = held_out(recipe, source, MEASURED), []
    for name, each in (("source", source.model), ("right after the conversion", fresh), ("after training", net)):
        parts = mean_parts(each, task, batches)
        found.append(Cost(name, parts["nats" if "nats" in parts else "cross_entropy"], parts["outputs"]))
    return found
