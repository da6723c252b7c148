"""The processes that train one model together, as `torchrun` or Ray start them; alone, all of it is a matter of course.

They meet for the gradients, in PyTorch's own `DistributedDataParallel` or FSDP2, and once a step for a few numbers.
Whatever is decided (steps of a stage, whether to stop, when to save) the first one decides, and whatever is written,
but for shares of a checkpoint, the first one writes.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from manta.errors import MantaError, TrainingError

T = TypeVar("T")

WAIT = timedelta(days=7)
"""How long processes wait for the first one, which may be preparing data; one that has died is noticed at once."""
_GONE = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|TCPStore|DistNetworkError", re.IGNORECASE)


class Team:
    """One process by itself."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """The first process's value, for all."""
        return value

    def gather(self, value: T) -> list[T]:
        """Every process's value, for all."""
        return [value]

    def alone(self, work: Callable[[], T]) -> T:
        """Have the first process do something, and tell all what came of it.

        Raises:
            MantaError: what the first process met, in every one.
        """
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Have every process do something, the first one before all others: what it writes they read.

        Raises:
            MantaError: what the first process met, in every one, or what this one met.
        """
        return work()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Meet the others inside; alone there is no one to lose."""
        yield

    def close(self) -> None:
        """Part from the others."""


class Processes(Team):
    """This process and others, which have met already.

    Args:
        group: of all of them, for PyTorch's collectives on the CPU.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.size, self.group = dist.get_rank(), dist.get_world_size(), group
        self.saving: Any = dist.new_group(backend="gloo", timeout=WAIT)
        """For checkpoints, which are written while others talk."""

    def agree(self, value: T) -> T:
        """See `Team`."""
        box = [value if self.first else None]
        with self.meeting():
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # pyright: ignore[reportReturnType]

    def gather(self, value: T) -> list[T]:
        """See `Team`."""
        found: list[Any] = [None] * self.size
        with self.meeting():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def alone(self, work: Callable[[], T]) -> T:
        """See `Team`."""
        value, error = _tried(work) if self.first else (None, None)
        value, error = self.agree((value, error))
        if error is not None:
            raise self._told(error)
        return value  # pyright: ignore[reportReturnType]

    def in_turn(self, work: Callable[[], T]) -> T:
        """See `Team`."""
        value, error = _tried(work) if self.first else (None, None)
        error = self.agree(error)
        if error is not None:
            raise self._told(error)
        return value if self.first else work()  # pyright: ignore[reportReturnType]

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """See `Team`.

        Raises:
            TrainingError: another process has gone meanwhile.
        """
        try:
            yield
        except RuntimeError as error:
            if _GONE.search(f"{type(error).__name__} {error}") is None:
                raise
            raise Gone(
                f"process {self.rank + 1} of {self.size} has lost another one, which has ended or cannot be reached"
            ) from error

    def close(self) -> None:
        """See `Team`."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _told(self, error: MantaError) -> MantaError:
        """An error of the first process, which says it; the others leave in silence."""
        error.told = not self.first
        return error


class Gone(TrainingError):
    """Another process of the same run has ended."""


def _tried(work: Callable[[], T]) -> tuple[T | None, MantaError | None]:
    try:
        return work(), None
    except MantaError as error:
        return None, error


def several() -> int:
    """Processes that were started to train together, 1 if this one is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() and "RANK" in os.environ else 1


def own_device(device: str | None) -> str | None:
    """The device of this process among those on its machine: one GPU each, where there are any.

    Args:
        device: as asked for; None: the best there is.
    """
    if several() == 1 or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def assemble(device: torch.device, tell: Callable[[str], None] = lambda line: None) -> Team:
    """Meet the other processes of this run, if there are any; until they are met, signals end this one at once.

    Args:
        device: of this process.
        tell: takes a line about what is waited for.

    Raises:
        TrainingError: they cannot be reached.
    """
    if several() == 1:
        return Team()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if not dist.is_initialized():
            if os.environ.get("RANK") == "0":
                tell(f"meeting {several() - 1} other processes (RANK and WORLD_SIZE say so)")
            with _mortal():
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        return Processes(dist.new_group(backend="gloo", timeout=WAIT))
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the processes of this run cannot reach each other ({error}); RANK and WORLD_SIZE say that there are "
            f"{several()}: start them with torchrun, or unset these variables to train with one"
        ) from error


@contextmanager
def _mortal() -> Iterator[None]:
    """Let signals end this process at once, as Python's handlers cannot while PyTorch waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
