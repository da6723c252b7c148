"""What each of several ranks holds, sends and takes time for, by a recipe's count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from manta.bench.planning.counting import Count, StageCount, counted
from manta.bench.planning.devices import Device
from manta.errors import UsageError

Shard = Literal["none", "grad", "full"]
SHARDS: tuple[Shard, ...] = get_args(Shard)
MOST_GPUS = 65_536
PARTS = ("parameters", "gradients", "moments", "average", "activations", "workspace", "buffers")
"""Of a rank's bytes, in the order that they are told in."""


def predicted(recipe: Any, world: int, shard: Shard, *, precision: str = "bfloat16") -> dict[str, int]:
    """Bytes a rank of a recipe's largest stage, by part (`PARTS`).

    Args:
        recipe: of any state, as asked for.
        world: ranks, 1 to 65,536.
        shard: what is divided among them: `none`, or for `grad` and `full` all that is kept from step to step.
        precision: of matrix products, where the recipe leaves it open.

    Raises:
        UsageError: so many ranks there are not, or the recipe takes a second model along.
    """
    return largest(counted(recipe, precision=precision), world, shard)


def largest(count: Count, world: int, shard: Shard) -> dict[str, int]:
    """Bytes a rank of the stage that takes most, by part."""
    return max((bytes_of_rank(stage, world, shard) for stage in count.stages), key=lambda found: sum(found.values()))


def bytes_of_rank(stage: StageCount, world: int, shard: Shard) -> dict[str, int]:
    """Bytes of the rank that holds most, by part; their sum is at least the most that is held at once.

    `buffers` are what passes between ranks: of `none` a copy of the gradients; of `full` what is outside blocks, the
    block at work with its gradients, and the one that comes next; of `grad` all parameters, and a block's gradients.
    """
    check_world(world)
    parts = 1 if shard == "none" else world
    held = {name: sum(each.of_rank(parts) for each in getattr(stage, name)) for name in ("own", "trained")}
    whole = sum(each.bytes for each in stage.trained)
    buffers = 0
    if world > 1 and shard == "none":
        buffers = whole
    elif world > 1 and shard == "grad":
        buffers = sum(each.bytes for each in stage.own) + stage.largest_block
    elif world > 1:
        buffers = stage.outside_blocks + 3 * stage.largest_block
    return {
        "parameters": held["own"] + stage.other_bytes,
        "gradients": held["trained"],
        "moments": sum(each.of_rank(parts) for each in stage.moments),
        "average": sum(each.of_rank(parts) for each in stage.average),
        "activations": stage.saved_bytes,
        "workspace": max(0, stage.peak_bytes - stage.saved_bytes - whole),
        "buffers": buffers,
    }


def bytes_sent(stage: StageCount, world: int, shard: Shard, batches: int) -> float:
    """Bytes that a rank sends in a step, in rings.

        none:  2 (N-1)/N G                    gradients summed, once a step
        grad:  k ((N-1)/N P + (N-1)/N G)      parameters gathered once a batch, gradients scattered
        full:  k (2 (N-1)/N P + (N-1)/N G)    parameters gathered for either pass

    Args:
        stage: with G bytes of trained parameters of P in all.
        world: N.
        shard: see `predicted`.
        batches: k, of a rank in a step.
    """
    ring = (world - 1) / world
    gradients, own = (sum(each.bytes for each in kept) for kept in (stage.trained, stage.own))
    if shard == "none":
        return 2 * ring * gradients
    return batches * ring * ((1 if shard == "grad" else 2) * own + gradients)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recipe on some GPUs."""

    gpus: int
    shard: Shard
    bytes: dict[str, int]
    """A rank's, by part."""
    fits: bool
    accumulate: int
    """Batches of a step: the recipe's, or as many more that each GPU has as many."""
    elements_a_step: int
    """Of the stage that takes longest."""
    sent_bytes_a_step: float
    """A rank's, of that stage."""
    seconds_a_step: float
    """Of that stage, computing and sending one after the other."""
    overlapped_seconds_a_step: float
    """The same at once."""
    steps: int | None
    """Of all stages; None where no one says how much is to be learned."""
    hours: float | None
    """Of all stages, computing and sending one after the other."""
    cost: float | None
    """At the price of all GPUs."""

    @property
    def total(self) -> int:
        """Bytes a rank."""
        return sum(self.bytes.values())


def spread(
    count: Count, device: Device, world: int, shard: Shard, *, elements: float | None = None, price: float | None = None
) -> Row:
    """A recipe on some GPUs.

    The same is learned on any number: where a step has more batches than the recipe's, there are fewer steps.

    Args:
        count: of the recipe.
        device: what each GPU is.
        world: GPUs, 1 to 65,536.
        shard: see `predicted`.
        elements: tokens, images or tiles to learn from; None: those of the recipe's steps.
        price: of a GPU's hour.

    Raises:
        UsageError: a number is out of range.
    """
    check_world(world)
    for name, value in (("tokens", elements), ("price", price)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} should be above 0 and finite, received {value}")
    each = -(-max(count.recipe.train.accumulate, world) // world)
    batches = batches_of_stages(count, elements)
    times = [step_seconds(stage, device, world, shard, each) for stage in count.stages]
    longest = max(range(len(times)), key=lambda i: count.stages[i].share * sum(times[i]))
    steps = None if batches is None else [math.ceil(number / (each * world)) for number in batches]
    hours = None if steps is None else sum(n * sum(t) for n, t in zip(steps, times, strict=True)) / 3600
    held, stage = largest(count, world, shard), count.stages[longest]
    return Row(
        gpus=world,
        shard=shard,
        bytes=held,
        fits=sum(held.values()) <= device.memory,
        accumulate=each * world,
        elements_a_step=stage.elements * each * world,
        sent_bytes_a_step=bytes_sent(stage, world, shard, each),
        seconds_a_step=sum(times[longest]),
        overlapped_seconds_a_step=max(times[longest]),
        steps=None if steps is None else sum(steps),
        hours=hours,
        cost=None if hours is None or price is None else hours * world * price,
    )


def batches_of_stages(count: Count, elements: float | None) -> list[float] | None:
    """Batches of each stage in a whole run; None where neither the recipe nor anyone says how much is learned."""
    whole, recipe = sum(stage.share for stage in count.stages), count.recipe
    shares = [stage.share / whole for stage in count.stages]
    if elements is not None:
        mean = sum(share * stage.elements for share, stage in zip(shares, count.stages, strict=True))
        return [share * elements / mean for share in shares]
    if recipe.num_steps is None:
        return None
    return [float(max(1, round(recipe.num_steps * share)) * recipe.train.accumulate) for share in shares]


def step_seconds(stage: StageCount, device: Device, world: int, shard: Shard, batches: int) -> tuple[float, float]:
    """Seconds of a step's computing and of its sending."""
    flops = batches * stage.flops + stage.optimizer_flops
    sent = bytes_sent(stage, world, shard, batches)
    return flops / (device.flops * device.efficiency), sent / device.rate(world)


def least_shard(count: Count, device: Device, world: int) -> Shard:
    """The first of `none`, `grad` and `full` that fits; `full` where none does."""
    for shard in SHARDS:
        if sum(largest(count, world, shard).values()) <= device.memory:
            return shard
    return "full"


def remedies(count: Count, device: Device, row: Row) -> list[str]:
    """What would make a row fit that does not: another shard, smaller batches, more GPUs."""
    found = [
        f"--shard {shard}"
        for shard in SHARDS[SHARDS.index(row.shard) + 1 :]
        if row.gpus > 1 and sum(largest(count, row.gpus, shard).values()) <= device.memory
    ][:1]
    if rows := fitting_rows(count, device, row.gpus, row.shard):
        return [*found, f"batches of {_rows(count, rows)}"]
    for world in (n for n in doublings(MOST_GPUS) if n > row.gpus):
        if sum(largest(count, world, "full").values()) <= device.memory:
            return [*found, f"{world:,} GPUs with --shard full"]
        if rows := fitting_rows(count, device, world, "full"):
            return [*found, f"{world:,} GPUs with --shard full and batches of {_rows(count, rows)}"]
    return found


def fitting_rows(count: Count, device: Device, world: int, shard: Shard) -> int:
    """Rows of a batch that fit about, if what a batch holds grows as its rows do; 0: none does."""

    def of_stage(stage: StageCount) -> int:
        held = bytes_of_rank(stage, world, shard)
        passing = held["activations"] + held["workspace"]
        room = device.memory - sum(held.values()) + passing
        return max(0, math.floor(stage.rows * room / max(1, passing)))

    return min(map(of_stage, count.stages))


def _rows(count: Count, rows: int) -> str:
    stage = max(count.stages, key=lambda each: each.saved_bytes)
    return f"about {rows:,} rows, {rows * stage.elements // stage.rows:,} {count.unit} (estimated)"


def doublings(most: int) -> Sequence[int]:
    """1, 2, 4, … up to a number."""
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def check_world(world: int) -> None:
    """Refuse a number of GPUs that there is not.

    Raises:
        UsageError: as said.
    """
    if not 1 <= world <= MOST_GPUS:
        raise UsageError(f"GPUs should number between 1 and {MOST_GPUS:,}, received {world:,}")
