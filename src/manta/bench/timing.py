"""Seconds that can be compared: rivals take turns in one process, and the machine is named."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from manta.errors import UsageError

Row = dict[str, Any]
"""What was measured, by name; a row's values are text and numbers."""


def interleaved(rivals: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time rivals in turns, so that a passing load of the machine meets all of them.

    Each runs once unmeasured; then every round runs each once, in an order that is turned by one from round to round.
    Ratios of two rivals are to be taken within a round.

    Args:
        rivals: what to run, by name.
        repeats: rounds, at least 1.

    Returns:
        Seconds of each round, by name.

    Raises:
        UsageError: without a round.
    """
    if repeats < 1:
        raise UsageError(f"repeats should be at least 1, received {repeats}")
    names = list(rivals)
    for name in names:
        rivals[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            rivals[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def machine(device: torch.device | str = "cpu") -> Row:
    """The machine and what runs on it.

    Args:
        device: where models live.
    """
    device = torch.device(device)
    found = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return {**found, "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def rows_as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of plain text, numbers flush right, with three figures each.

    Args:
        rows: of one kind; a row may lack columns.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    numeric = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [heads, *cells]
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
