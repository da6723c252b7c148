"""Weights as integers: to the nearest, or each column making up for the errors of those before."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

DAMPING = 0.01
"""Of the mean diagonal of the second moments, added to it."""
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of the largest weight, ends of the range that are tried."""


def weight_scales(weight: Float[Tensor, "o i"], bits: int, moments: Float[Tensor, " i"]) -> Float[Tensor, " o"]:
    """A scale of each output, symmetric around zero; the one whose errors, where inputs are large, are least.

    Args:
        weight: of all inputs.
        bits: of an integer.
        moments: mean square of each input.
    """
    most = _most(bits)
    whole = weight.abs().amax(1).clamp_min(1e-12) / most
    best, least = whole, torch.full_like(whole, torch.inf)
    for share in SHARES if bits < 8 else SHARES[:1]:
        scale = whole * share
        error = ((_nearest(weight, scale, most) - weight).square() * moments).sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def nearest_integers(weight: Float[Tensor, "o i"], scale: Float[Tensor, " o"], bits: int) -> Int8[Tensor, "o i"]:
    """Each weight rounded to the nearest."""
    most = _most(bits)
    return (weight / scale[:, None]).round().clamp(-most, most).to(torch.int8)


def compensated_integers(
    weight: Float[Tensor, "o i"], scale: Float[Tensor, " o"], bits: int, second: Float[Tensor, "i i"]
) -> Int8[Tensor, "o i"]:
    """Inputs are rounded one after the other, those of the largest second moment first, and weights of inputs that are
    still to come make up for the error.

    Args:
        weight: of all inputs.
        scale: of each output.
        bits: of an integer.
        second: second moments of the inputs, ``XᵀX / rows``.

    Source: Frantar et al., "GPTQ", arXiv 2210.17323.
    """
    most, second = _most(bits), second.double().clone()
    damping = DAMPING * second.diagonal().mean().clamp_min(1e-30)
    second.diagonal().add_(damping)
    order = second.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(second[order][:, order])
    upper = torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True).float()
    left, found = weight[:, order].clone(), torch.zeros_like(weight)
    for begin in range(0, len(order), 64):
        stop = min(begin + 64, len(order))
        errors = torch.zeros(len(weight), stop - begin)
        for column in range(begin, stop):
            exact = left[:, column]
            rounded = (exact / scale).round().clamp(-most, most)
            found[:, column] = rounded
            error = (exact - rounded * scale) / upper[column, column]
            left[:, column:stop] -= error[:, None] * upper[column, column:stop]
            errors[:, column - begin] = error
        left[:, stop:] -= errors @ upper[begin:stop, stop:]
    integers = torch.zeros_like(found)
    integers[:, order] = found
    return integers.to(torch.int8)


def _most(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _nearest(weight: Tensor, scale: Tensor, most: int) -> Tensor:
    return (weight / scale[:, None]).round().clamp(-most, most) * scale[:, None]
