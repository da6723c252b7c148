"""What a GPU multiplies, holds and moves: by its vendor's data sheet, as stated, or measured on this machine."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

import torch

from manta.bench.planning.counting import Count, stage_of
from manta.bench.planning.unread import unread
from manta.config import nearest
from manta.errors import UsageError
from manta.runtime import keep_memory, matmul_rate
from manta.training import train_stage

Label = Literal["measured", "counted", "stated", "data sheet", "assumed"]

EFFICIENCY = 0.4
"""Share of the matrix rate that training reaches where nothing was measured."""
NETWORK = 50e9
"""Bytes a second of a GPU to other machines: 400 Gb/s, the usual of large clusters."""
PER_MACHINE = 8
"""GPUs of a machine."""
MOST_MEASURED = 30e9
"""FLOPs of a batch up to which real steps are timed."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A GPU by its vendor's public data sheet."""

    name: str
    flops: float
    """FLOP/s of bf16 matrix products without sparsity, a multiply and an add counted as two."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second in one direction to GPUs of the same machine."""


SHEETS: Final[Mapping[str, Sheet]] = {
    "l4": Sheet(name="NVIDIA L4", flops=121e12, memory=24e9, bandwidth=32e9),
    "4090": Sheet(name="NVIDIA GeForce RTX 4090", flops=165e12, memory=24e9, bandwidth=32e9),
    "a100": Sheet(name="NVIDIA A100 SXM 80GB", flops=312e12, memory=80e9, bandwidth=300e9),
    "h100": Sheet(name="NVIDIA H100 SXM 80GB", flops=989e12, memory=80e9, bandwidth=450e9),
    "h200": Sheet(name="NVIDIA H200 SXM", flops=989e12, memory=141e9, bandwidth=450e9),
    "b200": Sheet(name="NVIDIA B200", flops=2250e12, memory=180e9, bandwidth=900e9),
}
"""By short name. L4 and 4090 are joined by PCIe 4.0 x16, the others by NVLink, of which a direction is half."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What each of the GPUs is taken to be, and where each figure is from."""

    name: str
    flops: float
    """FLOP/s of matrix products."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second in one direction within a machine."""
    network: float = NETWORK
    """The same to other machines."""
    per_machine: int = PER_MACHINE
    """GPUs of a machine."""
    efficiency: float = EFFICIENCY
    """Share of `flops` that training reaches."""
    labels: Mapping[str, Label]
    """Of each figure, by its name."""

    def __post_init__(self) -> None:
        for name in ("flops", "memory", "bandwidth", "network"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} should be above 0 and finite, received {getattr(self, name)}")
        if not 0 < self.efficiency <= 1:
            raise UsageError(f"efficiency should lie above 0 and at most 1, received {self.efficiency}")
        if self.per_machine < 1:
            raise UsageError(f"a machine has at least 1 GPU, received {self.per_machine}")

    def rate(self, world: int) -> float:
        """Bytes a second between so many GPUs: that of the slowest link of a ring."""
        return self.bandwidth if world <= self.per_machine else min(self.bandwidth, self.network)


def device_of(gpu: str | None, stated: Mapping[str, float | None], count: Count, recipe: Any) -> Device:
    """What was stated, else a data sheet's, else what is measured here.

    Args:
        gpu: a key of `SHEETS`; None: this machine.
        stated: figures of `Device` by name; None: not stated.
        count: of the recipe, whose real steps are timed if the machine is this one.
        recipe: as asked for.

    Raises:
        UsageError: there is no such GPU, or a figure is out of range.
    """
    given: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    labels: dict[str, Label] = dict.fromkeys(("network", "per_machine", "efficiency"), "assumed")
    found: dict[str, Any] = {}
    if gpu is not None:
        sheet = sheet_of(gpu)
        found = {name: getattr(sheet, name) for name in ("name", "flops", "memory", "bandwidth")}
        labels |= dict.fromkeys(("flops", "memory", "bandwidth"), "data sheet")
    elif "flops" in given:
        found = {"name": "a GPU as stated", "memory": 80e9, "bandwidth": NETWORK}
        labels |= {"memory": "assumed", "bandwidth": "assumed"}
    else:
        found, measured = _here(count, recipe, timed="efficiency" not in given)
        labels |= measured
    labels |= dict.fromkeys(given, "stated")
    return Device(**{**found, **given}, labels=labels)


def sheet_of(gpu: str) -> Sheet:
    """The data sheet of a GPU.

    Raises:
        UsageError: there is no such GPU.
    """
    if gpu.lower() not in SHEETS:
        raise UsageError(f"no GPU {gpu!r}{nearest(gpu.lower(), SHEETS)}; there are {', '.join(SHEETS)}")
    return SHEETS[gpu.lower()]


def _here(count: Count, recipe: Any, *, timed: bool) -> tuple[dict[str, Any], dict[str, Label]]:
    """This machine's figures: its GPU's if it has one, else its processor's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), float(torch.cuda.mem_get_info(device)[1])
    else:
        name, memory = "this machine's processor", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {
        "name": name,
        "memory": memory,
        "bandwidth": NETWORK,
        "flops": matmul_rate(precision, device),
    }
    labels: dict[str, Label] = {"flops": "measured", "memory": "measured", "bandwidth": "assumed"}
    last = count.stages[-1]
    if timed and recipe.state != "tuned" and last.flops + last.optimizer_flops <= MOST_MEASURED:
        share = measured_efficiency(recipe, count, found["flops"], device)
        found["efficiency"], labels["efficiency"] = min(1.0, share), "measured"
    return found, labels


def measured_efficiency(recipe: Any, count: Count, flops: float, device: torch.device, steps: int = 3) -> float:
    """The share of a matrix rate that real steps of a recipe's last stage reach, by the median of some.

    Args:
        recipe: as asked for.
        count: of it.
        flops: the rate, FLOP/s.
        device: where the steps are taken.
        steps: that are timed, after one that is not; at least 1.
    """
    keep_memory()
    found = unread(recipe, device)
    stage = stage_of(found, found.specs[-1], "bfloat16" if device.type == "cuda" else "float32")
    stage.batches.batch = stage.batches.batch.to(device)  # pyright: ignore[reportAttributeAccessIssue]
    progress = train_stage(stage)
    next(progress)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        next(progress)
        seconds.append(time.perf_counter() - start)
    last = count.stages[-1]
    return (stage.config.accumulate * last.flops + last.optimizer_flops) / median(seconds) / flops
