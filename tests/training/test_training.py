"""The loop and what it keeps: schedules, averages, checkpoints that survive damage."""

import json
import math
import os
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from manta.errors import CheckpointError, ConfigError, TrainingError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel, NextToken
from manta.families.batching import to_batch
from manta.runtime import make_generator
from manta.training import (
    ExponentialAverage,
    Stage,
    TrainConfig,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    train_stage,
)
from manta.training.checkpoint import pack_bytes, unpack_bytes
from manta.types import Loss


class Numbers:
    """Batches of a linear regression, with a position."""

    num_elements = 4

    def __init__(self) -> None:
        self.position = 0

    def __next__(self):
        self.position += 1
        generator = make_generator(self.position)
        self.x = torch.randn(8, 3, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]])
        return self

    def skip(self, count):
        self.position += count

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def squares(model, batch, generator) -> Loss:
    noise = 0.01 * torch.randn(8, 1, generator=generator)
    error = (model(batch.x) - batch.y - noise).square().mean()
    return Loss(error, {"error": error.detach()})


def make_stage(num_steps: int = 60, objective=squares, **config) -> Stage:
    torch.manual_seed(0)
    settings = {"optimizer": "adamw", "learning_rate": 0.05, "precision": "float32", "weight_decay": 0.0, **config}
    return Stage("fit", nn.Linear(3, 1), objective, Numbers(), num_steps, TrainConfig(**settings), make_generator(7))


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("adamw", 0.05), ("muon", 0.2)])
def test_a_stage_fits_a_line(optimizer, learning_rate):
    stage = make_stage(300, optimizer=optimizer, learning_rate=learning_rate)
    losses = [progress.loss for progress in train_stage(stage)]
    assert losses[-1] < 1e-3 < losses[0]
    torch.testing.assert_close(stage.model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.03, rtol=0)  # pyright: ignore


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cut", [1, 17, 59])
def test_state_taken_between_two_steps_continues_exactly(cut, optimizer):
    whole = make_stage(optimizer=optimizer)
    list(train_stage(whole))
    first = make_stage(optimizer=optimizer)
    run = train_stage(first)
    for _ in range(cut):
        next(run)
    tensors = {k: {n: t.clone() for n, t in group.items()} for k, group in first.tensors().items()}
    state, weights = json.loads(json.dumps(first.state_dict())), first.model.state_dict()
    second = make_stage(optimizer=optimizer)
    second.model.load_state_dict(weights)
    second.load(tensors, state)
    list(train_stage(second))
    assert torch.equal(second.model.weight, whole.model.weight)  # pyright: ignore


class Texts:
    """Batches of texts of unlike lengths, handed out one after the other."""

    def __init__(self, batches) -> None:
        self.batches = iter(batches)

    def __next__(self):
        return next(self.batches)

    def skip(self, count):
        for _ in range(count):
            next(self.batches)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def tiny_ar() -> AutoregressiveModel:
    torch.manual_seed(0)
    model = AutoregressiveModel(AutoregressiveConfig(vocab_size=64, dim=32, heads=2, depth=1, prompt_depth=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def test_two_accumulated_batches_of_unlike_lengths_are_one_batch_of_both():
    short, long = [[5, 6]], [[7, 8, 9, 10] * 8, [11, 12, 13]]
    found = []
    for groups in ([short + long], [short, long], [long, short]):
        config = TrainConfig(
            optimizer="adamw", learning_rate=1e-3, accumulate=len(groups), precision="float32", clip_norm=1e9
        )
        batches = Texts([to_batch([[] for _ in rows], rows) for rows in groups])
        stage = Stage("fit", tiny_ar(), NextToken(), batches, 1, config, make_generator(0))
        progress = next(train_stage(stage))
        found.append((progress.loss, progress.parts["nats"], progress.gradient_norm, progress.num_elements))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_batches_that_do_not_say_what_they_count_are_weighed_by_their_tokens():
    def objective(model, batch, generator):
        return Loss(model.weight.sum() * batch.scale, {"scale": batch.scale, **batch.rare})

    batches = [
        SimpleNamespace(num_elements=1, scale=8.0, rare={}),
        SimpleNamespace(num_elements=3, scale=4.0, rare={"r": 2}),
    ]
    config = TrainConfig(optimizer="adamw", learning_rate=0.1, accumulate=2, precision="float32", clip_norm=1e9)
    stage = Stage("fit", nn.Linear(1, 1, bias=False), objective, Texts(batches), 1, config, make_generator(0))
    progress = next(train_stage(stage))
    assert progress.gradient_norm == pytest.approx(5.0)
    assert progress.parts == {"scale": 5.0, "r": 2.0} and progress.num_elements == 4


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_step_size_rises_then_falls_to_zero(decay):
    stage = make_stage(100, warmup_share=0.1, decay=decay)
    rates = [stage.learning_rate(step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.02 * max(rates)


def test_a_loss_that_is_not_a_number_stops_before_the_update():
    def broken(model, batch, generator):
        loss = squares(model, batch, generator)
        return Loss(loss.total * math.nan, {"error": math.nan}) if batch.position == 3 else loss

    stage = make_stage(objective=broken)
    run, before = train_stage(stage), None
    with pytest.raises(TrainingError, match=r"'error' is nan"):
        for _ in run:
            before = stage.model.weight.clone()  # pyright: ignore
    assert torch.equal(stage.model.weight, before)  # pyright: ignore


def test_the_average_is_the_weighted_mean_of_the_weights():
    module = nn.Linear(1, 1, bias=False)
    average = ExponentialAverage(module, horizon=4.0)
    expected = module.weight.item()
    for step, value in enumerate([1.0, 5.0, -3.0, 2.0], 1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module)
        decay = min(1 - 1 / 4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.average["weight"].item() == pytest.approx(expected)
    average.swap(module)
    assert module.weight.item() == pytest.approx(expected)
    average.swap(module)
    assert module.weight.item() == 2.0


def test_checkpoints_round_trip_and_only_the_newest_stay(tmp_path):
    for step in (1, 20, 3):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.full((2,), float(step))}}, {"note": step})
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step-20"
    tensors, state = load_checkpoint(newest)
    assert tensors["model"]["w"].tolist() == [20, 20]
    assert state == {"step": 20, "note": 20}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-20", "step-3"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = save_checkpoint(tmp_path, 5, {"model": {"w": torch.zeros(9)}}, {})
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="step-5"):
        load_checkpoint(folder)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    (tmp_path / "checkpoints" / ".writing-3-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_a_generators_state_survives_json():
    generator = make_generator(3)
    torch.rand(5, generator=generator)
    text = json.loads(json.dumps(pack_bytes(generator.get_state())))
    expected = torch.rand(4, generator=generator)
    other = torch.Generator()
    other.set_state(unpack_bytes(text))
    assert torch.equal(torch.rand(4, generator=other), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1e300},
        {"learning_rate": float("nan")},
        {"warmup_share": 1.0},
        {"decay": "steps"},
        {"accumulate": 0},
        {"clip_norm": -1.0},
        {"clip_norm": 0.0},
        {"weight_decay": -50.0},
        {"betas": (2.0, 3.0)},
        {"precision": "float16"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)


def test_a_stage_without_a_learning_rate_is_refused():
    with pytest.raises(ConfigError, match="learning_rate is not set"):
        make_stage(learning_rate=None)


@pytest.mark.parametrize(("horizon", "kept"), [(0.2, 0.0), (1.0, 0.0), (1.25, 0.2), (100.0, 2 / 11)])
def test_an_average_keeps_by_its_horizon_and_reaches_back_a_step_at_least(horizon, kept):
    """After one step: 1 − 1/horizon of the beginning, but no more than the ramp's 2/11."""
    module = torch.nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    average = ExponentialAverage(module, horizon)
    with torch.no_grad():
        module.weight += 1
    average.update(module)
    kept = min(kept, 2 / 11)
    torch.testing.assert_close(average.average["weight"], before + 1 - kept)


def test_a_step_that_is_kept_again_is_the_newer_one(tmp_path):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 7, {"model": {"w": torch.full((2,), value)}}, {"note": value})
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    tensors, state = load_checkpoint(newest)
    assert tensors["model"]["w"].tolist() == [2, 2] and state["note"] == 2.0
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-7"]


@pytest.mark.parametrize(("said", "kind"), [("I/O error: No space (os error 28)", OSError), ("odd", SafetensorError)])
def test_a_full_disk_is_said_as_the_system_says_it(said, kind, tmp_path, monkeypatch):
    def full(tensors, file):
        raise SafetensorError(said)

    monkeypatch.setattr("manta.training.checkpoint.save_file", full)
    with pytest.raises(kind) as caught:
        save_checkpoint(tmp_path, 7, {"model": {"w": torch.zeros(2)}}, {})
    if kind is OSError:
        error = caught.value
        assert isinstance(error, OSError) and (error.errno, error.strerror) == (28, os.strerror(28))
        assert str(error.filename).endswith("model.safetensors")
