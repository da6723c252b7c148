"""Exponential moving average of the weights, with a horizon that follows the length of the run."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from manta.training.shares import local, share_of


class ExponentialAverage:
    """Average of a module's trainable parameters over the last steps: average ← d·average + (1−d)·weights.

    The decay d is `1 − 1/horizon`, ramped as (1 + step)/(10 + step) at the start so that the random initialisation is
    forgotten. A horizon longer than the run returns nearly untrained weights (ELF's 0.9999 on short runs gives empty
    samples), so the horizon is stated as a share of the run and not as a constant. PyTorch's `AveragedModel` holds a
    second module, frozen weights included, starts from a copy of the first step's weights, and does not swap.

    Args:
        module: its parameters that require a gradient are averaged.
        horizon: steps over which the average reaches back, ≥ 1.
    """

    def __init__(self, module: nn.Module, horizon: float) -> None:
        self.horizon = max(1.0, horizon)
        self.step = 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step of the average towards the module's present weights."""
        self.step += 1
        decay = min(1 - 1 / self.horizon, (1 + self.step) / (10 + self.step))
        weights = [local(p.detach()) for name, p in module.named_parameters() if name in self.average]
        get_ema_multi_avg_fn(decay)([local(average) for average in self.average.values()], weights, self.step)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's weights with their average."""
        for name, parameter in module.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange weights and average in place; a second call restores both exactly."""
        for name, parameter in module.named_parameters():
            if name in self.average:
                kept = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Give the averages by parameter name, to be stored."""
        return self.average

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore averages and step count from a checkpoint."""
        self.step = step
        for name, average in self.average.items():
            average.copy_(share_of(tensors[name].to(average.device), average))
