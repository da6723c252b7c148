"""What the weights of attention mean in every other operator, and how far attention looks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import ConfigError
from manta.operators.attention import SelfAttention
from manta.operators.combined import AttentionFourier
from manta.operators.context import Operator, OperatorContext
from manta.operators.downsampled import LARGEST, DownsampledAttention
from manta.operators.linear import KernelAttention
from manta.operators.pyramid import PyramidConvolution

LEAST_GAIN = 1e-4
"""Least gain of a head whose root or logarithm is taken."""


@torch.no_grad()
def inherit_attention(source: SelfAttention, target: Operator) -> None:
    """Give an operator what the weights of attention mean in it; the rest stays as it was initialised.

    attention, windowed      all of it
    attention_fourier        all of it, beside a Fourier part that starts at zero: equal at first
    linear, dijiang          W_q, W_k, W_v, W_o; the gain of a head as its root, as it multiplies queries and keys
    downsampled              the same, with a temperature of ``g sqrt(head_dim)``; the mixing starts at zero, so that a
                             rate of 1 is equal at first
    pyramid_conv             ``W_m = W_o W_v``: the mean of the row is what attention with equal weights receives
    fourier                  nothing: it has no weight that depends on the state

    Args:
        source: attention, not changed.
        target: of the same width and, where it has heads, as many; changed.

    Raises:
        ConfigError: another width, or another number of heads.
    """
    width, heads = source.out.in_features, getattr(target, "heads", source.heads)
    if heads != source.heads:
        raise ConfigError(f"attention of {source.heads} heads means nothing to an operator of {heads}; keep the number")
    match target:
        case SelfAttention():
            target.load_state_dict(source.state_dict())
        case AttentionFourier():
            inherit_attention(source, target.attention)
        case KernelAttention():
            _projections(source, target)
            target.gain.copy_(source.gain.abs().clamp_min(LEAST_GAIN).sqrt())
        case DownsampledAttention():
            _projections(source, target)
            temperature = source.gain.abs() * source.head_dim**0.5
            target.log_temperature.copy_(temperature.clamp(LEAST_GAIN, LARGEST).log())
            target.mixing.zero_()
        case PyramidConvolution():
            target.mean.weight.copy_(source.out.weight @ source.qkv.weight[2 * width :])
        case _:
            pass


def _projections(source: SelfAttention, target: KernelAttention | DownsampledAttention) -> None:
    """Queries, keys, values and the output; a head whose gain is below zero turns its queries round."""
    d = source.out.in_features
    target.qkv.weight.copy_(source.qkv.weight)
    target.qkv.weight[:d] *= source.gain.sign().repeat_interleave(source.head_dim)[:, None]
    target.out.weight.copy_(source.out.weight)


@torch.no_grad()
def near_share(
    attention: SelfAttention, x: Float[Tensor, "b n d"], context: OperatorContext, reach: int
) -> Float[Tensor, "b"]:
    """Share of the attention of each row's real elements that goes to elements at most `reach` places away.

    The mean over heads and real elements of ``Σ_j κ(i, j) 1[|p_i − p_j| ≤ reach]``.

    Args:
        attention: the operator.
        x: states of whole rows, as the operator is given them.
        context: of the rows.
        reach: places along every axis.
    """
    q, k, _ = attention.turned(x, context)
    weights = attention.scores(q, k, context).softmax(-1)
    place = context.coordinates
    near: Bool[Tensor, "*rows n n"] = (place[..., :, None, :] - place[..., None, :, :]).abs().amax(-1) <= reach
    share = (weights * near.unsqueeze(-3)).sum(-1).mean(1)
    real = torch.ones_like(share) if context.mask is None else context.mask.to(share.dtype)
    return (share * real).sum(-1) / real.sum(-1).clamp_min(1)
