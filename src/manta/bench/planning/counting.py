"""What a batch of each stage of a recipe computes and holds, counted on a step that has no numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manta.bench.planning.tracing import StepMemory, imagine, weightless
from manta.bench.planning.unread import Unread, unread
from manta.recipes.parts import StageSpec
from manta.runtime import make_generator
from manta.training import Stage, train_stage
from manta.types import Loss


@dataclass(frozen=True)
class Held:
    """A tensor that a rank keeps from step to step, or its part of one."""

    shape: tuple[int, ...]
    itemsize: int

    @property
    def bytes(self) -> int:
        """Of the whole."""
        return self.itemsize * torch.Size(self.shape).numel()

    def of_rank(self, world: int) -> int:
        """Bytes of the rank with the largest part, the first axis being divided; what has none is held whole."""
        if not self.shape:
            return self.bytes
        return -(-self.shape[0] // world) * (self.bytes // max(1, self.shape[0]))


@dataclass(frozen=True, kw_only=True)
class StageCount:
    """A batch of a stage on one rank, and its step."""

    name: str
    share: float
    """Of the run's steps; only ratios count."""
    elements: int
    """Tokens of a text, images or tiles, in a batch."""
    rows: int
    """Of a batch."""
    flops: int
    """Of a batch's forward and backward pass."""
    optimizer_flops: int
    """Of a step's update."""
    saved_bytes: int
    """Held between forward and backward pass."""
    peak_bytes: int
    """Most that a step holds beside what it keeps, gradients included."""
    own: tuple[Held, ...]
    """Parameters of the net of the stage."""
    trained: tuple[Held, ...]
    """Those of them that are trained."""
    moments: tuple[Held, ...]
    """Of the optimisers."""
    average: tuple[Held, ...]
    """Of the weights."""
    other_bytes: int
    """Parameters of the run's other nets, which every rank holds whole."""
    largest_block: int
    """Bytes of the block with the most parameters."""
    outside_blocks: int
    """Bytes of the parameters that are in no block."""


@dataclass(frozen=True)
class Count:
    """A recipe, counted."""

    recipe: Any
    """As resolved."""
    unit: str
    """What elements of a batch are, in the plural."""
    parameters: dict[str, int]
    """Of each part of each net."""
    stages: tuple[StageCount, ...]
    """In order."""
    notes: tuple[str, ...]
    """What was assumed of the data."""


class OneBatch:
    """The same batch without end."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __next__(self) -> Any:
        return self.batch

    def skip(self, count: int) -> None:
        """Leaves batches out, which are all the same."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def counted(recipe: Any, *, precision: str = "bfloat16") -> Count:
    """Count a recipe of any state; a net of any size takes seconds and no memory.

    Args:
        recipe: as asked for.
        precision: of matrix products, where the recipe leaves it open.

    Raises:
        ConfigError: what it asks for does not fit together.
        UsageError: it takes a second model along.
    """
    with weightless():
        found = unread(recipe, torch.device("meta"))
    imagine([found.parts.modules, *(net for spec in found.specs for net in (spec.model, *spec.trained))])
    stages = tuple(counted_stage(found, spec, precision) for spec in found.specs)
    parameters = {
        f"{module}.{part}": sum(p.numel() for p in tensors)
        for module, net in found.parts.modules.items()
        for part, tensors in _by_part(net)
    }
    return Count(found.recipe, found.parts.unit, parameters, stages, found.notes)


def counted_stage(found: Unread, spec: StageSpec, precision: str) -> StageCount:
    """Count a stage on one step of it."""
    memory, counter, marks = StepMemory(), FlopCounterMode(display=False), {"saved": 0, "flops": 0, "peak": 0}
    stage = stage_of(found, spec, precision)
    objective = stage.held.objective

    def watched(model: Any, batch: Any, generator: torch.Generator) -> Loss:
        loss = objective(model, batch, generator)
        marks["saved"] = max(marks["saved"], memory.live)
        return loss

    def before_update(*_: Any) -> None:
        if not marks["flops"]:
            marks["flops"], marks["peak"] = counter.get_total_flops(), memory.peak
            memory.restart()

    stage.held.objective = watched
    for optimizer in stage.optimizers:
        optimizer.register_step_pre_hook(before_update)
    with memory, counter:
        done = next(train_stage(stage))
    batches = stage.config.accumulate
    tensors = stage.tensors()
    moments = _held(tensors["optimizer"].values())
    peak = max(marks["peak"], memory.peak - sum(each.bytes for each in moments))
    own = list(spec.model.parameters())
    mine = set(map(id, own))
    blocks = _blocks(spec.model)
    largest = max((_bytes(block.parameters()) for block in blocks), default=0)
    inside = {id(p) for block in blocks for p in block.parameters()}
    return StageCount(
        name=spec.name,
        share=spec.share,
        elements=done.num_elements // batches,
        rows=len(stage.batches.batch),  # pyright: ignore[reportAttributeAccessIssue]
        flops=marks["flops"] // batches,
        optimizer_flops=counter.get_total_flops() - marks["flops"],
        saved_bytes=marks["saved"],
        peak_bytes=peak,
        own=_held(own),
        trained=_held(stage.named.values()),
        moments=moments,
        average=_held(tensors["average"].values()),
        other_bytes=_bytes(p for p in found.parts.modules.parameters() if id(p) not in mine),
        largest_block=largest,
        outside_blocks=_bytes(p for p in own if id(p) not in inside),
    )


def stage_of(found: Unread, spec: StageSpec, precision: str) -> Stage:
    """A stage of a recipe as a run makes it, on one batch without end."""
    found.parts.modules.requires_grad_(False)
    for part in spec.trained:
        part.requires_grad_(True)
    train = found.recipe.train
    accumulate = min(2, train.accumulate)  # gradients of batches before are held during a pass, however many
    chosen = precision if train.precision == "auto" else train.precision
    config = replace(train, accumulate=accumulate, precision=chosen, tensorboard=False)
    batches = OneBatch(found.batch(spec))
    return Stage(spec.name, spec.model, spec.objective, batches, 64, config, make_generator(found.recipe.seed))


def _held(tensors: Any) -> tuple[Held, ...]:
    return tuple(Held(tuple(each.shape), each.element_size()) for each in tensors)


def _bytes(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _by_part(net: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """The parameters of a net by its children; those of its own last."""
    for name, part in net.named_children():
        if found := list(part.parameters()):
            yield name, found
    if own := list(net.parameters(recurse=False)):
        yield "own", own


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of a net that are gathered by themselves where processes hold shares, see `training.holding`."""
    if hasattr(type(net), "gathers"):
        return [net]
    return [block for part in net.children() for block in _blocks(part)]
