"""What a run writes down as it goes: `metrics.jsonl` and, if wanted, the same as TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.errors import ConfigError
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

    Rows of later steps, written before an interruption, are cut off the file, and events of later steps are hidden
    from TensorBoard, so that no step counts twice. `flush` belongs before every checkpoint: then none is missing.

    Args:
        run: the run folder.
        step: last global step that counts; 0 begins anew.
        tensorboard: write events too.

    Raises:
        ConfigError: the package tensorboard is wanted and missing.
    """

    def __init__(self, run: Path, step: int, *, tensorboard: bool = False) -> None:
        self._board = None
        if tensorboard:
            require_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / EVENTS), purge_step=step + 1)
        _cut(run / METRICS, step)
        self._file = (run / METRICS).open("a", encoding="utf-8")

    def row(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the figures of a global step; `row` has `global_step` and `stage`, and events are `stage/name`."""
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("global_step", "step"):
                    self._board.add_scalar(f"{row['stage']}/{name}", value, step)

    def text(self, step: int, text: str) -> None:
        """Show live samples, which have files of their own, among the events."""
        if self._board is not None:
            self._board.add_text("samples", text.replace("\n", "  \n"), step)

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


def _cut(file: Path, step: int) -> None:
    """Keep the rows up to a step; a kill may have left half a row at the end."""
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            if json.loads(line)["global_step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    atomic_write(file, "".join(kept).encode())
