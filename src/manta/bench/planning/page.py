"""A plan as plain text and as JSON, every figure with where it is from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from manta.bench.planning.counting import Count
from manta.bench.planning.devices import Device
from manta.bench.planning.spreading import Row, Shard, doublings, least_shard, remedies, spread
from manta.bench.timing import rows_as_table

MOST_ROWS = 1024
"""GPUs of the last row, where no number is given."""


def planned(
    count: Count,
    device: Device,
    *,
    gpus: int | None = None,
    shard: Shard | None = None,
    elements: float | None = None,
    price: float | None = None,
) -> list[Row]:
    """The rows of a plan.

    Args:
        count: of the recipe.
        device: what each GPU is.
        gpus: their number; None: 1, 2, 4, … 1,024, a row each.
        shard: see `predicted`; None: the first of `none`, `grad` and `full` that fits.
        elements: see `spread`.
        price: see `spread`.

    Raises:
        UsageError: a number is out of range.
    """
    given: dict[str, Any] = {"elements": elements, "price": price}
    numbers = doublings(MOST_ROWS) if gpus is None else (gpus,)
    if gpus is not None and shard is None:
        spread(count, device, gpus, "none")
        return [spread(count, device, gpus, each, **given) for each in ("none", "grad", "full")]
    return [spread(count, device, n, shard or least_shard(count, device, n), **given) for n in numbers]


def plan_as_text(count: Count, device: Device, rows: Sequence[Row]) -> str:
    """A plan for a person."""
    recipe = count.recipe
    whole = sum(count.parameters.values())
    parts = ", ".join(f"{name} {number:,}" for name, number in count.parameters.items())
    stages = [
        {
            "stage": stage.name,
            f"{count.unit} a batch": stage.elements,
            "GFLOP a batch": stage.flops / 1e9,
            "GFLOP an update": stage.optimizer_flops / 1e9,
            "GB between passes": stage.saved_bytes / 1e9,
        }
        for stage in count.stages
    ]
    label = device.labels
    flops = (
        f"{_short(device.flops / 1e12)} TFLOP/s ({label['flops']}), of which training reaches {device.efficiency:.0%}"
    )
    links = f"{_short(device.bandwidth / 1e9)} GB/s between {device.per_machine} of a machine ({label['bandwidth']})"
    beyond = f"{_short(device.network / 1e9)} GB/s to others ({label['network']})"
    lines = [
        f"{recipe.family}, {recipe.size}, on {recipe.data}: {whole:,} parameters (counted)",
        f"  {parts}",
        "",
        f"A batch of each stage (counted; {'; '.join(count.notes)})",
        rows_as_table(stages),
        "",
        f"A GPU: {device.name}",
        f"  {flops} ({label['efficiency']})",
        f"  {_short(device.memory / 1e9)} GB ({label['memory']}); {links}, {beyond}",
        "",
        "GB a rank at most (counted; what passes between ranks assumed)",
        rows_as_table([_memory(row) for row in rows]),
        "",
        "Time, computing and sending one after the other, or at once (from the figures above)",
        rows_as_table([_time(row, count.unit) for row in rows]),
    ]
    told = [_remedy(count, device, row) for row in rows if not row.fits]
    more = max(row.accumulate for row in rows)
    if more > recipe.train.accumulate:
        told.append(
            f"A step has a batch for each GPU at least: train.accumulate grows from {recipe.train.accumulate} to "
            f"{more:,}, and steps become fewer."
        )
    if rows[0].hours is None:
        told.append("No one says how much is to be learned: give num_steps or --tokens for hours.")
    if len(count.stages) > 1:
        told.append("Hours are those of the stages' steps; what a teacher writes between them is not counted.")
    return "\n".join([*lines, *([""] if told else []), *told])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(row: Row) -> dict[str, Any]:
    parts = {name: number / 1e9 for name, number in row.bytes.items()}
    return {
        "GPUs": row.gpus,
        "shard": row.shard,
        **parts,
        "in all": row.total / 1e9,
        "fits": "yes" if row.fits else "no",
    }


def _time(row: Row, unit: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "GPUs": row.gpus,
        "shard": row.shard,
        f"{unit} a step": row.elements_a_step,
        "GB sent a step": row.sent_bytes_a_step / 1e9,
        "s a step": row.seconds_a_step,
        "s at once": row.overlapped_seconds_a_step,
    }
    if row.hours is not None:
        found |= {"steps": row.steps, "hours": row.hours}
    return found if row.cost is None else {**found, "cost": row.cost}


def _remedy(count: Count, device: Device, row: Row) -> str:
    ways = remedies(count, device, row)
    what = f"{row.gpus:,} GPU{'s' if row.gpus > 1 else ''} with --shard {row.shard}"
    head = f"Does not fit: {what}, {_short(row.total / 1e9)} GB of {_short(device.memory / 1e9)}"
    return f"{head}. What would: {'; '.join(ways)}." if ways else f"{head}, and nothing here makes it fit."


def plan_as_json(count: Count, device: Device, rows: Sequence[Row]) -> dict[str, Any]:
    """A plan for a program; `labels` say where figures are from."""
    stages = [
        {
            "name": stage.name,
            "share": stage.share,
            "elements_a_batch": stage.elements,
            "flops_a_batch": stage.flops,
            "flops_an_update": stage.optimizer_flops,
            "saved_bytes": stage.saved_bytes,
            "peak_bytes": stage.peak_bytes,
        }
        for stage in count.stages
    ]
    labels = dict.fromkeys(("parameters", "stages", "bytes"), "counted")
    return {
        "family": count.recipe.family,
        "data": count.recipe.data,
        "unit": count.unit,
        "parameters": count.parameters,
        "stages": stages,
        "device": {**asdict(device), "labels": dict(device.labels)},
        "rows": [
            {**asdict(row), "total_bytes": row.total, "remedies": [] if row.fits else remedies(count, device, row)}
            for row in rows
        ],
        "notes": list(count.notes),
        "labels": {**labels, "buffers": "assumed", "seconds": "from the figures of counting and of the device"},
    }
