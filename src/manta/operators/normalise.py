"""Root-mean-square normalisation with a backward pass that is cheap on CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-6


def rms_normalise(x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Scale the last axis to unit root mean square.

    ``y = x / sqrt(mean(x²) + 1e-6)``

    On CPU ``F.rms_norm`` is composed of many small steps, and its backward of many passes. So a hand-written one serves
    where a gradient may be asked for, and elsewhere the same sum, to the last bit, in fewer steps, as a few rows cost
    what their steps do. All accumulate the mean in float32 or better. No gain is learned here.

    Args:
        x: any floating dtype; the result has the same.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
        return _RmsNormalise.apply(x)[0]
    if x.device.type == "cpu" and x.dtype is torch.float32:
        return x * x.square().sum(-1, keepdim=True).div_(x.shape[-1]).add_(EPS).rsqrt_()
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def _inverse_rms(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return norm.square().div(x.shape[-1]).add(EPS).rsqrt()


def _scale_rows(x: Tensor, scale: Tensor) -> Tensor:
    # Broadcasting along the contiguous axis is not vectorised for bfloat16; a filled copy of the factor is 3 times
    # faster where that axis is short.
    return x * scale.to(x.dtype).expand_as(x).contiguous()


def _project(x: Tensor, inverse: Tensor, direction: Tensor) -> Tensor:
    """The Jacobian of the normalisation, which is symmetric, times a direction."""
    along = torch.linalg.vecdot(direction, x).unsqueeze(-1) * inverse.square() / x.shape[-1]
    return _scale_rows(direction - _scale_rows(x, along), inverse)


class _RmsNormalise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        inverse = _inverse_rms(x)
        return _scale_rows(x, inverse), inverse

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> Tensor:
        x, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the factor must be seen to depend on x
            inverse = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        return _project(x, inverse, grad)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        return _project(x, inverse, tangent), None
