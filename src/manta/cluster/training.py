"""Training by Ray: it places the processes of a run on the machines of a cluster, and begins them anew when one dies.

The processes are those of `training.team`: what `torchrun` starts on one machine, Ray's `TorchTrainer` starts anywhere.
The run folder and the data have to be where all of them see them, under the same paths.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta import errors
from manta.cluster.local import connected
from manta.errors import MantaError, TrainingError, UsageError
from manta.recipes.run import Note, TrainingRun
from manta.recipes.runfolder import RECIPE
from manta.signals import Interrupted, on_signals
from manta.training import Progress, Sharding
from manta.training.team import Gone

LOOK = 0.3
"""Seconds between two looks at what the processes say, and at whether they are to stop."""
TWICE = 2.0
"""Seconds after which a second signal does not wait for a checkpoint."""
RESTARTS = 3
"""Times that a run is taken up again in which a process has died."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What every process of a run is told."""

    recipe: Any
    """See `TrainingRun`; None when resuming."""
    out: Path
    """The run folder, an absolute path that all machines see."""
    resume: bool
    """See `TrainingRun`."""
    time_budget: str | None
    """See `TrainingRun`."""
    sharding: Sharding
    """See `TrainingRun`."""
    folder: str
    """The working directory from which relative paths of data are named."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    unit: str
    """What elements of a batch are, in the plural."""
    state: str
    """What the model is of."""
    saved: str
    """Where the newest checkpoint stands, in words."""


@dataclass(frozen=True)
class _Stopped:
    """A run was stopped by a signal."""

    number: int


class _Board:
    """Where processes write what they do, and read whether they are to stop; an actor of Ray."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.asked = 0

    def tell(self, what: Any) -> int:
        """Write something; returns the signal by which the run is to stop, or 0."""
        self.told.append(what)
        return self.asked

    def look(self) -> int:
        """The signal by which the run is to stop, or 0."""
        return self.asked

    def stop(self, number: int) -> None:
        """Have the run stop."""
        self.asked = number

    def take(self) -> list[Any]:
        """What was written since the last time."""
        told, self.told = self.told, []
        return told


def train_many(
    placed: Placed,
    *,
    workers: int,
    gpus: bool = False,
    address: str | None = None,
    show: Callable[[Note | Progress, str], None] = lambda event, unit: None,
) -> Ended:
    """Train a model with several processes of a Ray cluster.

    A process that dies ends the others; the run is taken up again from its newest checkpoint, `RESTARTS` times at most.

    Args:
        placed: what is trained.
        workers: processes, at least 1.
        gpus: each has a GPU of its own.
        address: of a cluster that runs, see `connected`.
        show: takes the events of the run, and the unit of a batch's elements.

    Raises:
        MantaError: as `TrainingRun` raises it.
        UsageError: fewer than one process, or Ray is not there.
        TrainingError: processes die again and again.
        Interrupted: by a signal, after a checkpoint.
    """
    if workers < 1:
        raise UsageError(f"--workers should be at least 1, received {workers}")
    with connected(address, workers=workers) as ray:
        for attempt in range(RESTARTS + 1):
            ended, died = _attempt(ray, placed, workers, gpus, show)
            if not died:
                assert ended is not None, "a run that has not died has ended"
                return ended
            if not placed.resume and (placed.out / RECIPE).exists():
                placed = Placed(**{**vars(placed), "recipe": None, "resume": True})
            if attempt < RESTARTS:
                show(Note(f"a process has died ({died}); going on from the newest checkpoint"), "")
        raise TrainingError(f"a process of the run in {placed.out} has died ({died}); see to its cause, and resume")


def _attempt(
    ray: Any, placed: Placed, workers: int, gpus: bool, show: Callable[[Note | Progress, str], None]
) -> tuple[Ended | None, str]:
    """Have the processes train once; how it ended, and of what they died."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    board = ray.remote(num_cpus=0)(_Board).remote()
    scratch = placed.out.with_name(f".{placed.out.name}-ray")  # of Ray's own, which has nothing to keep
    shutil.rmtree(scratch, ignore_errors=True)
    trainer = TorchTrainer(
        _process,
        train_loop_config={"placed": placed, "board": board},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(storage_path=str(scratch), name="run"),
    )
    failure: list[str] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(re.split(r"[.:;(\n]", str(error).strip())[0][:100] or type(error).__name__)

    found: list[Ended | _Stopped | MantaError] = []
    unit = ""
    asked: list[float] = []

    def stop(number: int, frame: object) -> None:
        if asked and time.monotonic() - asked[0] > TWICE:
            raise Interrupted(number)
        asked.append(time.monotonic())
        board.stop.remote(number)

    with on_signals(stop):
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while True:
            alive = thread.is_alive()
            for told in ray.get(board.take.remote()):
                if isinstance(told, str):
                    unit = told
                elif isinstance(told, Note | Progress):
                    show(told, unit)
                else:
                    found.append(told)
            if not alive:
                break
            time.sleep(LOOK)
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    for told in found:
        if isinstance(told, _Stopped):
            raise Interrupted(told.number)
        if isinstance(told, MantaError) and not isinstance(told, Gone):
            raise told
    ended = next((told for told in found if isinstance(told, Ended)), None)
    if ended is not None and not failure:
        return ended, ""
    return None, failure[0] if failure else "its others have lost it"


def _process(told: dict[str, Any]) -> None:
    """One process of a run."""
    import ray
    from ray.train import get_context
    from ray.train.torch import get_device

    placed, board = told["placed"], told["board"]
    with suppress(OSError):  # another machine may have another one
        os.chdir(placed.folder)
    first = get_context().get_world_rank() == 0

    def tell(line: str) -> None:
        asked: Any = ray.get(board.tell.remote(Note(line)))
        if asked:
            raise Interrupted(asked)  # there is nothing to save yet

    try:
        run = TrainingRun(
            placed.recipe,
            placed.out,
            resume=placed.resume,
            device=str(get_device()),
            time_budget=placed.time_budget,
            sharding=placed.sharding,
            tell=tell,
        )
        if first:
            board.tell.remote(run.unit)
        _watch(ray, run, board, first)
        if first:
            ray.get(board.tell.remote(Ended(run.unit, run.recipe.state, run.saved)))
    except Interrupted as error:
        if first:
            ray.get(board.tell.remote(_Stopped(error.number)))
    except MantaError as error:
        if not error.told:
            ray.get(board.tell.remote(_plain(error)))
        if isinstance(error, Gone):
            raise RuntimeError("another process has ended") from error


def _watch(ray: Any, run: TrainingRun, board: Any, first: bool) -> None:
    """Train to the end; look now and then whether the run is to stop."""
    looked = time.monotonic()
    with closing(run.events()) as events:
        for event in events:
            if isinstance(event, Note):
                if first and (number := ray.get(board.tell.remote(event))):
                    run.stop(number)
                continue
            if first and time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                if number := ray.get(board.tell.remote(event)):
                    run.stop(number)


def _plain(error: MantaError) -> MantaError:
    """An error without what it was raised from, which may be of a kind that is not known elsewhere."""
    kind = getattr(errors, type(error).__name__, Gone if isinstance(error, Gone) else TrainingError)
    return kind(str(error))
