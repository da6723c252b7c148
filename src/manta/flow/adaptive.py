"""Adaptive conditions: a code of a few bits of the clean state, told to the policy, so that ways cross less."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def sign_code(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Bits ±1 of an encoder's answers, with the gradient of their tanh.

    ``code = sign(tanh(logits))``

    Source: Liu et al., "Learning Quantized Adaptive Conditions for Diffusion Models", arXiv 2409.17487, of which the
        abstract could be had: the quantiser is our reconstruction.
    """
    soft = torch.tanh(logits)
    return soft + (torch.where(soft < 0, -1.0, 1.0).to(soft) - soft).detach()


def code_numbers(code: Float[Tensor, "b k"]) -> Int64[Tensor, "b"]:
    """Codes as numbers from 0 to 2^k − 1, the first bit counting 1."""
    return ((code > 0).long() * (1 << torch.arange(code.shape[1], device=code.device))).sum(1)


def code_of(numbers: Int64[Tensor, "b"], bits: int) -> Float[Tensor, "b k"]:
    """The inverse of `code_numbers`."""
    return 2.0 * ((numbers[:, None] >> torch.arange(bits, device=numbers.device)) & 1) - 1


def drawn_codes(tables: Float[Tensor, "b m"], generators: Sequence[torch.Generator], bits: int) -> Float[Tensor, "b k"]:
    """A code for each row, drawn by its own frequencies and its own generator.

    Args:
        tables: how often each of the 2^k codes comes, a row each.
        generators: one a row.
        bits: k.
    """
    drawn = [torch.multinomial(table, 1, generator=g) for table, g in zip(tables, generators, strict=True)]
    return code_of(torch.cat(drawn), bits)
