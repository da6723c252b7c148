"""Depthwise convolution whose result does not depend, to the last bit, on what is computed beside it."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def depthwise(x: Float[Tensor, "b n c"], kernels: Float[Tensor, "c k"], before: int) -> Float[Tensor, "b n c"]:
    """A kernel a channel, with zeros beyond the ends of a row.

    ``y_i = Σ_j w_j x_{i − before + j}``

    Summed place by place of the kernel: a library's convolution adds up in an order that depends on how long and how
    many the rows are, and a text must not depend on its batch.

    Args:
        x: rows.
        kernels: of each channel.
        before: elements of the kernel that lie before the one it is computed for.
    """
    n, size = x.shape[1], kernels.shape[1]
    padded = F.pad(x, (0, 0, before, size - 1 - before))
    weights = kernels.to(x.dtype)
    y = padded[:, :n] * weights[:, 0]
    for place in range(1, size):
        y = y + padded[:, place : place + n] * weights[:, place]
    return y
