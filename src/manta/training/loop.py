"""One training loop for every stage of every family: a generator that yields its progress.

The loop knows an objective, a source of batches and parameters; what they mean is the caller's. Logging, live samples,
checkpoints and early stops stay outside, between two yields.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from manta.errors import ConfigError, TrainingError
from manta.runtime import autocast, dtype_of
from manta.step import Observer, shared_step, stream
from manta.training.checkpoint import pack_bytes, unpack_bytes
from manta.training.ema import ExponentialAverage
from manta.training.holding import Sharding, hold
from manta.training.optimizer import Kind, build_optimizers, load_moments, moments
from manta.training.shares import gathered
from manta.training.team import Team
from manta.types import Loss


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a stage is optimised."""

    optimizer: Kind = "muon"
    """`muon` for the weights of linear maps with AdamW for all else, or `adamw` for everything."""
    learning_rate: float | None = None
    """Peak step size; None: a recipe's width says it."""
    warmup_share: float = 0.03
    """Share of the stage over which the step size rises linearly from zero, [0, 1)."""
    decay: str = "linear"
    """How the step size falls to zero after the warm-up: `linear` or `cosine`."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices; vectors have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Averaging of AdamW's first and second moments."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, each weighed by the elements that enter its loss. Several
    processes share them out, so that their number changes no step; a new run of several has one for each at least."""
    average_share: float = 0.1
    """Horizon of the weight average as a share of the stage's steps, (0, 1]."""
    precision: str = "auto"
    """Precision of matrix products: `bfloat16`, `float32`, or `auto`: a run takes the one that its device multiplies
    faster, and keeps it."""
    rounds: int = 1
    """Rounds of a stage that trains a model on texts: each after the first learns from a share of the texts of the one
    before, drawn by their losses, and has that share of its steps. A run keeps its rounds."""
    round_share: float = 0.5
    """Share of a round's texts that the next learns from, and of its steps."""
    round_choice: str = "loss"
    """How they are drawn: by `loss`, or `uniform`, the control. Where slots learn answers alone
    (alignment.slots_learn), human texts are drawn by the losses of human texts, and answers by those of answers."""
    round_temperature: float = 1.0
    """Nats by which a loss has to be higher for e times the chance."""
    round_elements: int | None = None
    """Tokens of the groups that are drawn; None: those of a batch; 1: every text by itself."""
    tensorboard: bool = False
    """Write the log and the live samples as TensorBoard events too; needs the extra `log`."""

    def __post_init__(self) -> None:
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ConfigError(f"learning_rate should be above 0, received {self.learning_rate}")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share should lie in [0, 1), received {self.warmup_share}")
        if self.decay not in ("linear", "cosine"):
            raise ConfigError(f"decay should be 'linear' or 'cosine', received {self.decay!r}")
        if self.learning_rate is not None and not self.learning_rate <= 100:
            raise ConfigError(f"learning_rate should be at most 100, received {self.learning_rate}")
        if not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ConfigError(f"clip_norm should be above 0 and finite, received {self.clip_norm}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"weight_decay should be at least 0 and finite, received {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas should lie in [0, 1), received {', '.join(map(str, self.betas))}")
        if not 1 <= self.rounds <= 16 or not 0 < self.round_share <= 1:
            raise ConfigError("rounds should lie between 1 and 16, and round_share in (0, 1]")
        if self.round_choice not in ("loss", "uniform") or not 0 < self.round_temperature < math.inf:
            raise ConfigError("round_choice should be 'loss' or 'uniform', and round_temperature above 0 and finite")
        if self.round_elements is not None and self.round_elements < 1:
            raise ConfigError(f"round_elements should be at least 1, received {self.round_elements}")
        if self.precision != "auto":
            dtype_of(self.precision)
        if self.accumulate < 1:
            raise ConfigError(f"accumulate should be at least 1, received {self.accumulate}")
        if not 0 < self.average_share <= 1:
            raise ConfigError(f"average_share should lie in (0, 1], received {self.average_share}")


@runtime_checkable
class Batches(Protocol):
    """An endless source of batches whose position can be stored."""

    def __next__(self) -> Any: ...
    def skip(self, count: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Objective = Callable[..., Loss]
"""`objective(model, batch, generator) -> Loss`."""


@dataclass
class Progress:
    """What one step did."""

    stage: str
    step: int
    """Steps of this stage done, 1 … num_steps."""
    num_steps: int
    loss: float
    parts: dict[str, float]
    num_elements: int
    """Elements of the batches of this step, in the unit of whoever made them: the tokens of a text."""
    seconds: float
    learning_rate: float
    gradient_norm: float


class Stage:
    """One stage of a run: its objective, batches, optimiser, weight average and random stream.

    Args:
        name: names the stage in logs and checkpoints.
        model: passed to the objective; its parameters that require a gradient are trained.
        objective: `(model, batch, generator) → Loss`, run under autocast.
        batches: endless batches; each has `num_elements`, its size in a unit that is the same for all of a stage.
        num_steps: length of the stage.
        config: how to optimise.
        generator: all randomness of the objective; of a step with several batches its seed alone counts, see
            `manta.step`.
        team: the processes that train it.
        sharding: how they hold it, see `training.holding`.
        observers: what learns from batches beside the model and its parts.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        num_steps: int,
        config: TrainConfig,
        generator: torch.Generator,
        *,
        team: Team | None = None,
        sharding: Sharding = "none",
        observers: Sequence[Observer] = (),
    ) -> None:
        if config.learning_rate is None:
            raise ConfigError("learning_rate is not set; a recipe takes it from its width")
        if config.precision == "auto":
            raise ConfigError("precision is not set; a run takes the faster one of its device")
        self.peak_rate = config.learning_rate
        self.name, self.batches, self.team = name, batches, team or Team()
        self.device = next(p for p in model.parameters() if p.requires_grad).device
        self.held = hold(model, objective, self.team, self.device, sharding)
        self.model = self.held.model
        """What this process trains: the model, or its shares of it."""
        self.observers: list[object] = [*observers, *self.model.modules()]
        self.num_steps, self.config, self.generator = num_steps, config, generator
        self.step = 0
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizers = build_optimizers(
            self.model,
            config.optimizer,
            learning_rate=self.peak_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            precision=config.precision,
        )
        self.average = ExponentialAverage(self.model, config.average_share * num_steps)

    def learning_rate(self, step: int) -> float:
        """Step size at a step: linear warm-up, then linear or cosine decay to zero."""
        warmup = max(1, round(self.config.warmup_share * self.num_steps))
        if step < warmup:
            return self.peak_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.num_steps - warmup)
        fall = 1 - share if self.config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.peak_rate * fall

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything heavy that a resumed stage needs: moments of the optimisers and the weight average."""
        return {"optimizer": moments(self.optimizers, self.named), "average": self.average.tensors()}

    def state_dict(self) -> dict[str, Any]:
        """Everything light that a resumed stage needs, as plain JSON values."""
        return {
            "stage": self.name,
            "stage_step": self.step,
            "average_step": self.average.step,
            "generator": pack_bytes(self.generator.get_state()),
            "batches": self.batches.state_dict(),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
        """Restore `tensors()` and `state_dict()`; the weights of the model are the caller's."""
        self.step = state["stage_step"]
        load_moments(self.optimizers, self.named, tensors.get("optimizer", {}))
        self.average.load(tensors["average"], state["average_step"])
        self.generator.set_state(unpack_bytes(state["generator"]))
        self.batches.load_state_dict(state["batches"])


def train_stage(stage: Stage) -> Iterator[Progress]:
    """Train a stage from where it stands, one step at a time, to its last step.

    At the end the model's weights are replaced by their average, in every process.

    Yields:
        The progress of each step, after its update: state taken between two yields resumes exactly.

    Raises:
        TrainingError: when the loss or the gradient is no longer finite; the weights are those before that step.
    """
    parameters = list(stage.named.values())
    while stage.step < stage.num_steps:
        start = time.perf_counter()
        rate = stage.learning_rate(stage.step)
        for optimizer in stage.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        alone = stage.config.accumulate == 1
        total, means, num_elements = _one(stage) if alone else _several(stage, parameters)
        norm = gathered(nn.utils.clip_grad_norm_(parameters, stage.config.clip_norm)).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            stage.model.zero_grad()
            error = TrainingError(_diagnose(stage, total, norm, rate, means))
            error.told = not stage.team.first
            raise error
        for optimizer in stage.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        stage.average.update(stage.model)
        stage.step += 1
        seconds = time.perf_counter() - start
        yield Progress(stage.name, stage.step, stage.num_steps, total, means, num_elements, seconds, rate, norm)
    stage.average.copy_to(stage.model)
    stage.held.release()


def _one(stage: Stage) -> tuple[float, dict[str, float], int]:
    """Gradients of a step of one batch; loss, parts and elements. Of several processes all do the same."""
    batch = next(stage.batches)
    with autocast(stage.device, stage.config.precision):
        loss = stage.held.loss(batch, stage.generator)
    loss.total.backward()
    return loss.total.item(), {name: float(value) for name, value in loss.parts.items()}, batch.num_elements


@dataclass(frozen=True)
class _Told:
    """What one batch of a step leaves behind for all processes."""

    loss: float
    weight: float
    parts: dict[str, float]
    num_elements: int
    observed: list[tuple[int, tuple[Any, ...]]]
    """Number of an observer, and what it was told."""


def _several(stage: Stage, parameters: Sequence[Tensor]) -> tuple[float, dict[str, float], int]:
    """Gradients of the batches of one step, shared out among the processes; loss, parts and elements.

        gradient = Σ_i w_i ∇loss_i / Σ_i w_i,   w_i the elements that loss_i is the mean over

    so that two batches are what one batch of both would be, however unlike their lengths. A part that a batch does not
    have is averaged over the others. Batch i is the work of process i mod `size`; one for whom nothing is left does
    another's work with a weight of 0, since all have to call the nets together.
    """
    team, count = stage.team, stage.config.accumulate
    mine: list[_Told] = []
    for begin in range(0, count, team.size):
        present = min(team.size, count - begin)
        place = min(team.rank, present - 1)
        _leave(stage, place)
        batch = next(stage.batches)
        _leave(stage, present - 1 - place)
        with stage.held.summing(begin + team.size >= count):
            told = _taught(stage, batch, begin + place, idle=team.rank >= present)
        mine += [told] if team.rank < present else []
    told = [found for turn in zip(*_filled(team.gather(mine)), strict=True) for found in turn if found is not None]
    weights = sum(found.weight for found in told)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(team.size).div_(weights)  # processes average what is to be added up
    for found in told:
        for number, values in found.observed:
            observer = stage.observers[number]
            assert isinstance(observer, Observer), "it has observed"
            observer.take(*values)
    parts: dict[str, list[tuple[float, float]]] = {}
    for found in told:
        for name, value in found.parts.items():
            parts.setdefault(name, []).append((value, found.weight))
    means = {name: sum(v * w for v, w in found) / sum(w for _, w in found) for name, found in parts.items()}
    return sum(t.weight * t.loss for t in told) / weights, means, sum(found.num_elements for found in told)


def _leave(stage: Stage, count: int) -> None:
    """Leave batches to other processes; a loader for one process need not know how."""
    if count:
        stage.batches.skip(count)


def _taught(stage: Stage, batch: Any, index: int, *, idle: bool) -> _Told:
    """Gradients of one of a step's batches, added to those that are there."""
    seed = stage.generator.initial_seed()
    with shared_step(stream(seed, stage.step)) as step, autocast(stage.device, stage.config.precision):
        loss = stage.held.loss(batch, stream(seed, stage.step, index))
    weight = 0.0 if idle else float(batch.num_elements if loss.count is None else loss.count)
    (weight * loss.total).backward()
    numbers = {id(observer): number for number, observer in enumerate(stage.observers)}
    observed = [(numbers[id(observer)], tuple(map(_kept, values))) for observer, values in step.told]
    parts = {name: float(value) for name, value in loss.parts.items()}
    return _Told(loss.total.item(), weight, parts, batch.num_elements, observed)


def _filled(told: list[list[_Told]]) -> list[list[_Told | None]]:
    """Lists of one length: a process may have had a batch less."""
    longest = max(map(len, told))
    return [[*found, *[None] * (longest - len(found))] for found in told]


def _kept(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _diagnose(stage: Stage, loss: float, norm: float, rate: float, parts: dict[str, float]) -> str:
    """Say which figure broke first and what to try."""
    broken = [name for name, value in parts.items() if not math.isfinite(value)]
    where = f"its part {broken[0]!r} is {parts[broken[0]]}" if broken else f"the gradient norm is {norm}"
    return (
        f"stage {stage.name!r} stopped at step {stage.step}: the loss is {loss} ({where}, step size {rate:.2g}); "
        "set a smaller train.learning_rate or train.precision float32 in the run's recipe.json and resume"
    )
