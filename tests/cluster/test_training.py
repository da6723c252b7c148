"""A run whose processes Ray places: the losses of one process, whoever dies, and errors that are a person's own."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from manta.cluster import training
from manta.cluster.training import RESTARTS, Ended, Placed, train_many
from manta.config import from_dict
from manta.errors import DataError, TrainingError, UsageError
from manta.recipes import Recipe, TrainingRun
from manta.recipes.run import Note
from manta.recipes.runfolder import RECIPE
from manta.signals import Interrupted
from manta.training import Progress, latest_checkpoint, read_log

from ..recipes.small import finish, small

HOW: dict[str, Any] = {"train": {"precision": "float32", "accumulate": 2}, "num_steps": 10, "family": "ar"}


def placed(out: Path, **changes: Any) -> Placed:
    told = {"recipe": from_dict(Recipe, small(2, **HOW)), "resume": False, "time_budget": None, "sharding": "full"}
    return Placed(**{**told, "out": out, "folder": os.getcwd(), **changes})


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run)[0]]


@pytest.mark.slow
def test_ray_trains_as_one_process_does_although_one_of_its_dies(cluster, tmp_path):
    notes, killed = [], []

    def show(event: Note | Progress, unit: str) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        elif not killed and latest_checkpoint(tmp_path / "run") is not None:
            assert unit == "tokens"
            workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.cmdline())]
            killed.append(workers[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    recipe = from_dict(Recipe, small(2, **{**HOW, "num_steps": 60, "checkpoint_minutes": 0.01}))
    ended = train_many(placed(tmp_path / "run", recipe=recipe), workers=2, show=show)
    whole = finish(TrainingRun(recipe, tmp_path / "whole"))
    assert killed and any("has died" in note for note in notes)
    assert ended.state == "text" and losses(tmp_path / "run") == pytest.approx(losses(whole.out), abs=1e-5)
    assert (tmp_path / "run" / "model" / "config.json").exists() and not (tmp_path / ".run-ray").exists()


class Inside:
    """In the place of Ray's trainer: one process of a run, in a thread of this one."""

    def __init__(
        self, process: Callable[[dict[str, Any]], None], train_loop_config: dict[str, Any], **rest: Any
    ) -> None:
        self.fit = lambda: process(train_loop_config)


@pytest.fixture
def one_process(monkeypatch) -> None:
    """Ray's words to a process, told to whoever asks."""
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Inside)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: "cpu")
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))


@pytest.mark.slow
def test_what_a_process_refuses_is_raised_here_and_a_signal_stops_it(cluster, one_process, tmp_path):
    """By way of the board, which is another process; that all of a team refuse and stop is tested with `torchrun`."""
    told = placed(tmp_path / "none", recipe=from_dict(Recipe, small(2, **{**HOW, "data": "nowhere.txt"})))
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        train_many(told, workers=1)

    def show(event: Note | Progress, unit: str) -> None:
        if isinstance(event, Progress):
            os.kill(os.getpid(), signal.SIGTERM)

    longer = from_dict(Recipe, small(2, **{**HOW, "num_steps": 400}))
    with pytest.raises(Interrupted):
        train_many(placed(tmp_path / "run", recipe=longer), workers=1, show=show)
    assert latest_checkpoint(tmp_path / "run") is not None and not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("before", [False, True])
def test_a_refusal_that_another_process_has_told_is_not_said_again(before, one_process, monkeypatch, tmp_path):
    def refuse(*given: Any, **named: Any) -> None:
        error = DataError("nowhere.txt does not exist")
        error.told = before
        raise error

    said: list[Any] = []
    board = SimpleNamespace(tell=SimpleNamespace(remote=said.append))
    monkeypatch.setattr(training, "TrainingRun", refuse)
    monkeypatch.setattr("ray.get", lambda value: value)
    training._process({"placed": placed(tmp_path), "board": board})
    assert [str(error) for error in said] == ([] if before else ["nowhere.txt does not exist"])


def test_a_run_that_died_before_its_first_checkpoint_is_taken_up_and_not_begun_again(tmp_path, monkeypatch):
    """The first process had written its recipe, so a second beginning would be refused."""
    tried: list[Placed] = []

    def attempt(ray, told, workers, gpus, show):
        tried.append(told)
        (told.out / RECIPE).write_text("{}")
        return (None, "it was killed") if len(tried) < 3 else (Ended("tokens", "text", ""), "")

    monkeypatch.setattr(training, "connected", lambda address, workers: nullcontext())
    monkeypatch.setattr(training, "_attempt", attempt)
    notes: list[str] = []
    train_many(placed(tmp_path), workers=2, show=lambda event, unit: notes.append(getattr(event, "text", "")))
    assert [told.resume for told in tried] == [False, True, True] and len(notes) == 2
    assert tried[0].recipe is not None and tried[1].recipe is None and "it was killed" in notes[0]
    tried.clear()
    monkeypatch.setattr(training, "_attempt", lambda *told: (tried.append(told[1]), (None, "it was killed"))[1])
    with pytest.raises(TrainingError, match="it was killed"):
        train_many(placed(tmp_path), workers=2)
    assert len(tried) == RESTARTS + 1


class Preparing(TrainingRun):
    """A run that has said two things and taken no step."""

    def __init__(self) -> None:
        self._stop = 0

    def events(self) -> Generator[Note | Progress, None, None]:
        yield from map(Note, ("first", "second"))


def test_a_run_is_stopped_before_its_first_step_too():
    board = SimpleNamespace(tell=SimpleNamespace(remote=lambda event: 15 if event.text == "second" else 0))
    run = Preparing()
    training._watch(SimpleNamespace(get=lambda value: value), run, board, True)
    assert run._stop == 15


def test_no_processes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--workers should be at least 1"):
        train_many(placed(tmp_path / "run"), workers=0)
