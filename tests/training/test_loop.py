"""What a step of the loop does to the weights, told by plain gradient descent on losses of known gradient."""

import math

import pytest
import torch
from torch import nn

from manta.runtime import make_generator
from manta.training import Stage, TrainConfig, loop, train_stage
from manta.types import Loss


class Ones:
    """Batches of nothing."""

    num_elements = 3

    def __next__(self):
        return self

    def skip(self, count):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def pulling(*slopes: float):
    """A loss whose gradient is `slopes`, whatever the weights."""

    def objective(model, batch, generator) -> Loss:
        total = (model.weight * torch.tensor([slopes])).sum()
        return Loss(total, {"pull": total.detach()})

    return objective


def descending(monkeypatch, objective, num_steps: int = 20, **config) -> Stage:
    monkeypatch.setattr(
        loop, "build_optimizers", lambda model, kind, learning_rate, **_: [torch.optim.SGD(model.parameters(), 9.0)]
    )
    torch.manual_seed(0)
    settings = {"learning_rate": 0.5, "precision": "float32", "warmup_share": 0.2, **config}
    return Stage(
        "fall", nn.Linear(2, 1, bias=False), objective, Ones(), num_steps, TrainConfig(**settings), make_generator(0)
    )


def moves(stage: Stage) -> list[torch.Tensor]:
    weights = [stage.model.weight.detach().clone()]  # pyright: ignore
    moved = []
    for _ in train_stage(stage):
        weights.append(stage.model.weight.detach().clone())  # pyright: ignore
        moved.append((weights[-2] - weights[-1])[0])
    return moved


def test_a_gradient_is_clipped_to_its_norm_and_told_unclipped(monkeypatch):
    stage = descending(monkeypatch, pulling(30.0, 40.0), clip_norm=2.0)
    progress = next(iter(train_stage(stage)))
    assert progress.gradient_norm == pytest.approx(50.0)
    moved = moves(descending(monkeypatch, pulling(30.0, 40.0), clip_norm=2.0))
    torch.testing.assert_close(moved[4], 0.5 * 2.0 * torch.tensor([0.6, 0.8]), rtol=1e-4, atol=1e-6)
    small = moves(descending(monkeypatch, pulling(0.3, 0.4), clip_norm=2.0))
    torch.testing.assert_close(small[4], 0.5 * torch.tensor([0.3, 0.4]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_every_step_has_the_size_of_its_schedule(monkeypatch, decay):
    moved = [float(move[0]) for move in moves(descending(monkeypatch, pulling(1.0, 0.0), decay=decay))]
    shares = [step / 16 for step in range(16)]
    fall = [1 - s if decay == "linear" else (1 + math.cos(math.pi * s)) / 2 for s in shares]
    assert moved == pytest.approx([0.125, 0.25, 0.375, 0.5, *(0.5 * f for f in fall)], abs=1e-5)


def test_at_the_end_of_a_stage_its_weights_are_their_average(monkeypatch):
    stage = descending(monkeypatch, pulling(1.0, -1.0), average_share=0.25)
    assert stage.average.horizon == 5.0
    run = train_stage(stage)
    average = stage.model.weight.detach().clone()  # pyright: ignore
    for step in range(1, 21):
        next(run)
        decay = min(1 - 1 / 5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * stage.model.weight.detach()  # pyright: ignore
    last = stage.model.weight.detach().clone()  # pyright: ignore
    assert not torch.allclose(last, average)
    assert list(run) == []
    torch.testing.assert_close(stage.model.weight.detach(), average)  # pyright: ignore


def test_progress_tells_what_a_step_did(monkeypatch):
    stage = descending(monkeypatch, pulling(1.0, 0.0))
    weight = stage.model.weight[0, 0].item()  # pyright: ignore
    told = list(train_stage(stage))
    assert [progress.step for progress in told] == list(range(1, 21))
    assert {(progress.stage, progress.num_steps, progress.num_elements) for progress in told} == {("fall", 20, 3)}
    assert told[0].loss == told[0].parts["pull"] == pytest.approx(weight)
    assert told[0].learning_rate == pytest.approx(0.125)


def test_gradients_do_not_pile_up_from_step_to_step(monkeypatch):
    moved = moves(descending(monkeypatch, pulling(0.1, 0.0), clip_norm=100.0, warmup_share=0.0))
    assert float(moved[1][0]) == pytest.approx(0.05, rel=1e-4)
