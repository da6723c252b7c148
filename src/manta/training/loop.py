"""One training loop for every stage of every family: a generator that yields its progress.

The loop knows an objective, a source of batches and parameters; what they mean is the caller's. Logging, live samples,
checkpoints and early stops stay outside, between two yields.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from manta.errors import ConfigError, TrainingError
from manta.runtime import autocast, dtype_of
from manta.training.checkpoint import pack_bytes, unpack_bytes
from manta.training.ema import ExponentialAverage
from manta.training.optimizer import Kind, build_optimizers, load_moments, moments
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
    """Batches whose gradients are averaged into one step, each weighed by the elements that enter its loss."""
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
    """How they are drawn: by `loss`, or `uniform`, the control."""
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
        generator: all randomness of the objective.
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
    ) -> None:
        if config.learning_rate is None:
            raise ConfigError("learning_rate is not set; a recipe takes it from its width")
        if config.precision == "auto":
            raise ConfigError("precision is not set; a run takes the faster one of its device")
        self.peak_rate = config.learning_rate
        self.name, self.model, self.objective, self.batches = name, model, objective, batches
        self.num_steps, self.config, self.generator = num_steps, config, generator
        self.step = 0
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = build_optimizers(
            model,
            config.optimizer,
            learning_rate=self.peak_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            precision=config.precision,
        )
        self.average = ExponentialAverage(model, config.average_share * num_steps)
        self.device = next(iter(self.named.values())).device

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

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Restore `tensors()` and `state_dict()`; the weights of the model are the caller's."""
        self.step = state["stage_step"]
        load_moments(self.optimizers, self.named, tensors["optimizer"])
        self.average.load({k: v.to(self.device) for k, v in tensors["average"].items()}, state["average_step"])
        self.generator.set_state(unpack_bytes(state["generator"]))
        self.batches.load_state_dict(state["batches"])


def train_stage(stage: Stage) -> Iterator[Progress]:
    """Train a stage from where it stands, one step at a time, to its last step.

    At the end the model's weights are replaced by their average.

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
        total, means, num_elements = _accumulate(stage)
        norm = nn.utils.clip_grad_norm_(parameters, stage.config.clip_norm).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            stage.model.zero_grad()
            raise TrainingError(_diagnose(stage, total, norm, rate, means))
        for optimizer in stage.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        stage.average.update(stage.model)
        stage.step += 1
        seconds = time.perf_counter() - start
        yield Progress(stage.name, stage.step, stage.num_steps, total, means, num_elements, seconds, rate, norm)
    stage.average.copy_to(stage.model)


def _accumulate(stage: Stage) -> tuple[float, dict[str, float], int]:
    """Gradients of the batches of one step; loss, parts and elements.

        gradient = Σ_i w_i ∇loss_i / Σ_i w_i,   w_i the elements that loss_i is the mean over

    so that two batches are what one batch of both would be, however unlike their lengths. A part that a batch does not
    have is averaged over the others.
    """
    alone = stage.config.accumulate == 1
    num_elements, weights, totals = 0, 0.0, 0.0
    parts: dict[str, list[tuple[float, float]]] = {}
    for _ in range(stage.config.accumulate):
        batch = next(stage.batches)
        with autocast(stage.device, stage.config.precision):
            loss = stage.objective(stage.model, batch, stage.generator)
        weight = 1.0 if alone else float(batch.num_elements if loss.count is None else loss.count)
        (loss.total if alone else weight * loss.total).backward()
        totals, weights = totals + weight * loss.total.item(), weights + weight
        num_elements += batch.num_elements
        for name, value in loss.parts.items():
            parts.setdefault(name, []).append((float(value), weight))
    if not alone:
        for parameter in stage.named.values():
            if parameter.grad is not None:
                parameter.grad.div_(weights)
    means = {name: sum(v * w for v, w in found) / sum(w for _, w in found) for name, found in parts.items()}
    return totals / weights, means, num_elements


def _diagnose(stage: Stage, loss: float, norm: float, rate: float, parts: dict[str, float]) -> str:
    """Say which figure broke first and what to try."""
    broken = [name for name, value in parts.items() if not math.isfinite(value)]
    where = f"its part {broken[0]!r} is {parts[broken[0]]}" if broken else f"the gradient norm is {norm}"
    return (
        f"stage {stage.name!r} stopped at step {stage.step}: the loss is {loss} ({where}, step size {rate:.2g}); "
        "set a smaller train.learning_rate or train.precision float32 in the run's recipe.json and resume"
    )
