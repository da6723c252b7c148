"""Muon in any precision: torch's own multiplies in bfloat16, which many CPUs do a hundred times slower."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: its slope at zero is the steepest that keeps singular values near 1."""
NEWTON_SCHULZ_STEPS = 5
MATCH_ADAMW = 0.2
"""Root mean square of an AdamW step, in learning rates."""


def orthogonalise(matrix: Float[Tensor, "r c"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "r c"]:
    """Replace the singular values of a matrix by numbers between about 0.5 and 1.5.

        X <- X / |X|,    five times   A <- X X^T,   X <- a X + (b A + c A^2) X

    Args:
        matrix: not all zero; zeros stay zeros.
        dtype: precision of the products.

    Returns:
        In that precision. Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(Optimizer):
    """Steps along orthogonalised Nesterov momentum, of the size of AdamW's.

        M <- 0.95 M + 0.05 G
        W <- W - lr (0.2 sqrt(max(rows, columns)) orthogonal(0.05 G + 0.95 M) + decay W)

    Equal to `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, bit for bit in bfloat16.

    Args:
        params: matrices.
        lr: step size.
        weight_decay: decoupled decay.
        momentum: share of the old momentum that is kept.
        dtype: precision of the products that orthogonalise.

    Source: Jordan et al. 2024; the size of its steps, Liu et al., arXiv 2502.16982.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                update = orthogonalise(weight.grad.lerp(buffer, momentum), self.dtype)
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update, alpha=-lr * MATCH_ADAMW * math.sqrt(max(weight.shape)))
