"""Conversions of any state: attention of a model that is trained becomes another operator, and what that costs it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from manta.errors import ConfigError, ModelError
from manta.families.imitation import Imitation
from manta.nets.trunk import Trunk
from manta.operators import OperatorChoice, SelfAttention, WindowedConfig, inherit_attention, near_share
from manta.recipes.recipe import ConversionConfig
from manta.runtime import make_generator
from manta.types import Loss

REACH = 6
"""Places on either side that are near, for an operator that has no reach of its own."""
LOOKED_AT = 64
"""Texts or images whose attention is measured."""
MEASURED = 256
"""Held-out texts or images on which a conversion is measured."""
ROWS = 32
"""Of them, those of a batch that is measured."""
KEPT = ("heads", "rotary_base", "rotary_share", "bias", "kv_heads", "normalised")
"""Of attention, what the operator in its place has too."""

Objective = Callable[[Any, Any, torch.Generator], Loss]


@runtime_checkable
class Convertible(Protocol):
    """A model whose blocks can change."""

    @property
    def model(self) -> Any:
        """Its nets."""
        ...

    @staticmethod
    def trunk_of(net: Any) -> Trunk:
        """The blocks of such a net."""
        ...


def new_operators(
    config: ConversionConfig, trunk: Trunk, mix: Sequence[OperatorChoice], heads: int, near: tuple[float, ...]
) -> tuple[tuple[OperatorChoice, ...], tuple[int, ...]]:
    """Operators of a model's blocks once it is converted, and the blocks that change.

    Args:
        config: what changes.
        trunk: of the model.
        mix: its operators, repeated where there are fewer than blocks.
        heads: of operators that are not told their own.
        near: of each block, the share of its attention that stays near, where it was measured.

    Raises:
        ModelError: a block that should change has no attention.
        ConfigError: a block is not there, none stays near, or its operator should have other heads.
    """
    chosen = chosen_blocks(config, near, len(trunk.blocks))
    operators = [mix[index % len(mix)] for index in range(len(trunk.blocks))]
    for index in chosen:
        if type(trunk.blocks[index].operator) is not SelfAttention:
            raise ModelError(f"block {index} of the model is {operators[index].kind}, and not attention")
        operators[index] = _instead(config.operator, operators[index], heads)
    return tuple(operators), chosen


def check_measured(config: ConversionConfig) -> None:
    """Refuse what only a measurement can say, or what nothing measures.

    Raises:
        ConfigError: as said.
    """
    default = ConversionConfig()
    if config.near or (config.layers != "local" and (config.reach, config.least_near) != (None, default.least_near)):
        raise ConfigError(
            "conversion.near is measured, and reach and least_near are for layers = local; leave them out"
        )


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
                f"{told_near(near, reach_of(config))}, and local takes blocks of {config.least_near:.0%} or more; set "
                "conversion.least_near, or name blocks with layers"
            )
        return chosen
    numbers = sorted({int(number) for number in config.layers.split(",")})
    if numbers[-1] >= depth:
        raise ConfigError(f"the model has the blocks 0 to {depth - 1}, received {config.layers}")
    return tuple(numbers)


def told_near(near: tuple[float, ...], reach: int) -> str:
    """How much of each block's attention stays near, in words."""
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


def begin_as(source: Convertible, net: nn.Module, blocks: tuple[int, ...]) -> None:
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


def new_parts(source: Convertible, net: nn.Module, blocks: tuple[int, ...]) -> tuple[nn.Module, ...]:
    """The new operators of a net."""
    trunk = source.trunk_of(net)
    return tuple(trunk.blocks[index].get_submodule("operator") for index in blocks)


@torch.no_grad()
def near_shares(source: Convertible, task: Objective, batches: Sequence[Any], reach: int) -> tuple[float, ...]:
    """Of each block, the share of its attention that stays within some places, while the model does its task.

    A block with another operator than attention has none that could stay.

    Args:
        source: the model.
        task: what it does.
        batches: of held-out examples.
        reach: places along every axis.
    """
    trunk = source.trunk_of(source.model)
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
        mean_parts(source.model, task, batches)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(round(float(torch.cat(found).mean()), 4) if found else 0.0 for found in shares)


@torch.no_grad()
def mean_parts(net: nn.Module, objective: Objective, batches: Sequence[Any]) -> dict[str, float]:
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


def converted_blocks(config: ConversionConfig) -> tuple[int, ...]:
    """Blocks that have a new operator, of the recipe of a run."""
    return tuple(map(int, config.layers.split(",")))


@dataclass(frozen=True)
class Cost:
    """What a conversion costs on held-out examples."""

    name: str
    """Of the net."""
    task: float
    """Of the family's own task."""
    apart: float
    """From what the source answers."""


def costs(
    nets: Sequence[tuple[str, nn.Module]], imitation: Imitation, batches: Sequence[Any], part: Sequence[str]
) -> list[Cost]:
    """Measure nets on held-out examples.

    Args:
        nets: with their names: the source, the net right after the conversion, and the net now.
        imitation: the task, and what the source answers.
        batches: of held-out examples.
        part: names of the task's part that is told; the first that the task has.
    """
    found = []
    for name, net in nets:
        parts = mean_parts(net, imitation, batches)
        found.append(Cost(name, parts[next(each for each in part if each in parts)], parts["outputs"]))
    return found


def converted_words(
    source: str | None, config: ConversionConfig, scores: Sequence[Cost], heads: tuple[str, str, str]
) -> str:
    """Of a card: from what a model was converted, to what, and what that cost; empty for one that was not.

    Args:
        source: name of the model that was converted.
        config: what has changed.
        scores: what it cost.
        heads: of the table: where it was measured, the task, and how far the answers are from the source's.
    """
    if source is None:
        return ""
    near = (
        f" Its attention stayed within reach by {', '.join(f'{share:.0%}' for share in config.near)}, block by block."
    )
    rows = "\n".join(f"| {cost.name} | {cost.task:.3f} | {cost.apart:.3f} |" for cost in scores)
    table = f"| {' | '.join(heads)} |\n|---|---|---|\n{rows}\n\n" if scores else ""
    return (
        f"Converted from `{source}`: attention of the blocks {config.layers.replace(',', ', ')} became "
        f"`{config.operator.kind}`.{near if config.near else ''}\n\n{table}"
    )
