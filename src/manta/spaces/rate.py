"""What a regularised encoder needs whatever it encodes: a rate that is held, and channels that are standardised."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.step import observe

STATISTICS_MOMENTUM = 0.02
"""Weight of a batch in the running mean and deviation of the channels."""


class Standardised(nn.Module):
    """A module whose latents have zero mean and unit variance in every channel, over the training examples."""

    mean: Tensor
    std: Tensor

    def hold_statistics(self, channels: int) -> None:
        """Begin with a mean of 0 and a deviation of 1; part of the module's state."""
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def standardise(self, latents: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
        """Latents with zero mean and unit variance in every channel."""
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def track(self, latents: Float[Tensor, "k c"]) -> None:
        """Take samples of the encoder into the running mean and deviation; one alone has no deviation."""
        if len(latents) >= 2:
            observe(self, latents.mean(0), latents.std(0))

    def take(self, mean: Float[Tensor, "c"], std: Float[Tensor, "c"]) -> None:
        """Move the running mean and deviation towards those of a batch."""
        self.mean.lerp_(mean.to(self.mean), STATISTICS_MOMENTUM)
        self.std.lerp_(std.clamp_min(1e-3).to(self.std), STATISTICS_MOMENTUM)


class RateController:
    """Holds the rate of the latents at a set value by adapting the weight β of their KL divergence.

    `log β ← log β + gain · clip((R̄ − R*)/R*, −1, 1)` with R̄ a running mean of the measured nats an example.

    Args:
        target: R*, nats an example, > 0.
        weight: first β.
        gain: step of log β.
    """

    def __init__(self, target: float, *, weight: float = 0.1, gain: float = 0.02) -> None:
        self.target, self.gain = target, gain
        self.log_weight = math.log(weight)
        self.rate: float | None = None

    @property
    def weight(self) -> float:
        """β, in [1e-4, 1]."""
        return math.exp(self.log_weight)

    def observe(self, rate: float) -> None:
        """Take in the nats an example of one batch, see `step.observe`."""
        observe(self, rate)

    def take(self, rate: float) -> None:
        """Adapt β to the nats an example of a batch."""
        self.rate = rate if self.rate is None else 0.95 * self.rate + 0.05 * rate
        error = max(-1.0, min(1.0, (self.rate - self.target) / self.target))
        self.log_weight = max(math.log(1e-4), min(0.0, self.log_weight + self.gain * error))

    def state_dict(self) -> dict[str, Any]:
        """State as plain JSON values."""
        return {"log_weight": self.log_weight, "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.log_weight, self.rate = state["log_weight"], state["rate"]


def gaussian_rate(mean: Float[Tensor, "*s c"], std: Float[Tensor, "*s c"]) -> Float[Tensor, "*s"]:
    """KL divergence of N(mean, std²) from the unit Gaussian, in nats, summed over channels."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)
