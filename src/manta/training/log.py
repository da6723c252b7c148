"""What a run writes down as it goes: `metrics.jsonl` and, if wanted, the same as TensorBoard events."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manta.errors import CheckpointError, ConfigError
from manta.runtime import atomic_write

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
"""Folder of the events in a run folder."""


def require_tensorboard() -> None:
    """Make sure that events can be written.

    Raises:
        ConfigError: the package is missing.
    """
    try:
        import tensorboard as _  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "train.tensorboard needs the package tensorboard: run `pip install 'manta[log]'`, or leave it out"
        ) from error


class RunLog:
    """The log of a run, continued from the step that a checkpoint holds.

    Rows of later steps, written before an interruption, are cut off the file, and so is what is no whole row; events of
    later steps are hidden from TensorBoard, so that no step counts twice. `flush` belongs before every checkpoint: then
    none is missing.

    Args:
        run: the run folder.
        step: last global step that counts; 0 begins anew.
        tensorboard: write events too.

    Raises:
        ConfigError: the package tensorboard is wanted and missing.
        CheckpointError: the log cannot be read.
    """

    def __init__(self, run: Path, step: int, *, tensorboard: bool = False) -> None:
        self._board = None
        if tensorboard:
            require_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / EVENTS), purge_step=step + 1)
        _cut(run, step)
        self._file = (run / METRICS).open("a", encoding="utf-8")

    def row(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the figures of a global step; `row` has `global_step` and `stage`, and events are `stage/name`."""
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("global_step", "step"):
                    self._board.add_scalar(f"{row['stage']}/{name}", value, step)

    def samples(self, step: int, lines: Sequence[str]) -> None:
        """Show live samples, which have files of their own, among the events."""
        if self._board is not None:
            self._board.add_text("samples", "\n".join(lines).replace("\n", "  \n"), step)

    def flush(self) -> None:
        """Bring everything out of this process."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write what is left; nothing can be written after it."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class NoLog(RunLog):
    """The log of a process that leaves writing to another."""

    def __init__(self) -> None:
        self._board = None

    def row(self, step: int, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_log(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the rows of a run's log.

    Returns:
        The whole rows, and how many lines are none: a kill may leave half a row, and a disk may damage any.

    Raises:
        CheckpointError: the file cannot be read at all.
    """
    file = run / METRICS
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); move it elsewhere and resume") from error
    found = [row for line in lines if (row := _row(line)) is not None]
    return found, len(lines) - len(found)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(row, dict) and isinstance(row.get("stage"), str) and type(row.get("global_step")) is int):
        return None
    figures = (row.get(name, 0) for name in ("step", "loss", "seconds"))
    return row if all(type(figure) in (int, float) for figure in figures) else None


def _cut(run: Path, step: int) -> None:
    """Keep the whole rows up to a step."""
    rows, damaged = read_log(run)
    kept = [row for row in rows if row["global_step"] <= step]
    if damaged or len(kept) < len(rows) or not (run / METRICS).exists():
        atomic_write(run / METRICS, "".join(json.dumps(row) + "\n" for row in kept).encode())
