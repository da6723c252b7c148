"""Tensors of integers: what is small beside the maps, and is read as floating-point numbers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.nets.products import LARGEST


class IntegerTensor(nn.Module):
    """A tensor of eight-bit integers, read entry by entry of its first axis.

    Args:
        shape: of the tensor.
        axis: that has a scale a place, in each entry; 1 or more.
    """

    weight_scale: Tensor
    integers: Tensor

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        super().__init__()
        self.spread_over = [size if at == axis else 1 for at, size in enumerate(shape)][1:]
        self.register_buffer("integers", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(shape[0] * shape[axis]))

    def fill(self, values: Float[Tensor, "k *rest"]) -> None:
        """Round some values."""
        others = [at for at, size in enumerate(self.spread_over, 1) if size == 1]
        scale = values.abs().amax(others, keepdim=True).clamp_min(1e-12) / LARGEST
        self.integers, self.weight_scale = (values / scale).round().to(torch.int8), scale.flatten()

    def __getitem__(self, entry: int) -> Float[Tensor, "*rest"]:
        """An entry of the first axis, as floating-point numbers."""
        scale = self.weight_scale.view(len(self.integers), -1)[entry]
        return self.integers[entry].float() * scale.view(self.spread_over)
