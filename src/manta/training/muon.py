"""Muon in any precision: torch's own multiplies in bfloat16, which many CPUs do a hundred times slower."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from manta.training.shares import gathered, local, share_of

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: its slope at zero is the steepest that keeps singular values near 1."""
NEWTON_SCHULZ_STEPS = 5
MATCH_ADAMW = 0.2
"""Root mean square of an AdamW step, in learning rates."""


def orthogonalise(matrix: Float[Tensor, "*n r c"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*n r c"]:
    """Replace the singular values of a matrix, or of each of several, by numbers between about 0.5 and 1.5.

        X <- X / |X|,    five times   A <- X X^T,   X <- a X + (b A + c A^2) X

    Args:
        matrix: not all zero; zeros stay zeros.
        dtype: precision of the products.

    Returns:
        In that precision. Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    x = matrix.to(dtype, copy=True)
    x = x.mT if tall else x
    x.div_(x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Steps along orthogonalised Nesterov momentum, of the size of AdamW's.

        M <- 0.95 M + 0.05 G
        W <- W - lr (0.2 sqrt(max(rows, columns)) orthogonal(0.05 G + 0.95 M) + decay W)

    Equal to `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, bit for bit in bfloat16.

    A convolution's weight is the matrix that makes its outputs of all places of its kernel. Of a weight that processes
    hold in shares each keeps a share of the momentum; it is gathered to be made orthogonal, by all of them alike.

    Args:
        params: matrices, or weights of convolutions.
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
            for weights in _together([weight for weight in group["params"] if weight.grad is not None]):
                ahead = [self._ahead(weight, momentum) for weight in weights]
                alone = len(weights) == 1
                updates = orthogonalise(ahead[0] if alone else torch.stack(ahead), self.dtype)
                for weight, update in zip(weights, [updates] if alone else updates, strict=True):
                    held = local(weight)
                    held.mul_(1 - lr * group["weight_decay"])
                    size = max(weight.shape[0], weight.shape[1:].numel())
                    step = local(share_of(update.view(weight.shape), weight))
                    held.add_(step, alpha=-lr * MATCH_ADAMW * math.sqrt(size))

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov's gradient: that of the momentum after this one."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        ahead = weight.grad.lerp(state["momentum_buffer"].lerp_(weight.grad, 1 - momentum), momentum)
        return gathered(ahead).flatten(1)


def _together(weights: list[Tensor]) -> Iterable[list[Tensor]]:
    """Weights that take one step together: those of a shape on an accelerator, where a call costs more than a product;
    each alone on the CPU, where it does not."""
    found: dict[object, list[Tensor]] = {}
    for i, weight in enumerate(weights):
        found.setdefault(i if weight.device.type == "cpu" else (weight.shape, weight.device), []).append(weight)
    return found.values()
