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
from manta.operators.pyramid_grid import Pyramid

LEAST_GAIN = 1e-4
"""Least gain of a head whose root or logarithm is taken."""


@torch.no_grad()
def inherit_attention(source: SelfAttention, target: Operator, scale: Float[Tensor, " d"] | None = None) -> None:
    """Give an operator what the weights of attention mean in it; the rest stays as it was initialised.

    attention, windowed      all of it
    attention_fourier        all of it, beside a Fourier part that starts at zero: equal at first
    linear, dijiang          W_q, W_k, W_v, W_o; the gain of a head as its root, as it multiplies queries and keys
    downsampled              the same, with a temperature of ``g sqrt(head_dim)``; the mixing starts at zero, so that a
                             rate of 1 is equal at first
    pyramid_conv             ``W_m = W_o W_v``: the mean of the row is what attention with equal weights receives
    fourier                  nothing: it has no weight that depends on the state

    Heads of keys and values that several heads of queries share are repeated. Attention that does not normalise its
    queries and keys has, in an operator that does, the gain of their sizes: ``g |W_q| |W_k| / head_dim`` of each head,
    Frobenius norms, which is right for states whose channels are uncorrelated. Biases are taken over where the target
    has some.

    Args:
        source: attention, not changed.
        target: of the same width and, where it has heads, as many; changed.
        scale: size of each channel of the states that it reads, root mean square; None: 1 each.

    Raises:
        ConfigError: another width, or another number of heads.
    """
    heads = getattr(target, "heads", source.heads)
    if heads != source.heads:
        raise ConfigError(f"attention of {source.heads} heads means nothing to an operator of {heads}; keep the number")
    match target:
        case SelfAttention():
            target.load_state_dict(source.state_dict())
        case AttentionFourier():
            inherit_attention(source, target.attention)
        case KernelAttention():
            _projections(source, target)
            target.gain.copy_(_gain(source, scale).clamp_min(LEAST_GAIN).sqrt())
        case DownsampledAttention():
            _projections(source, target)
            temperature = _gain(source, scale) * source.head_dim**0.5
            target.log_temperature.copy_(temperature.clamp(LEAST_GAIN, LARGEST).log())
            target.mixing.zero_()
        case Pyramid():
            target.mean.weight.copy_(source.out.weight @ _for_every_head(source, source.qkv.weight)[2])
        case _:
            pass


def _projections(source: SelfAttention, target: KernelAttention | DownsampledAttention) -> None:
    """Queries, keys, values and the output; a head whose gain is below zero turns its queries round."""
    sign = source.gain.sign().repeat_interleave(source.head_dim)
    for own, theirs in ((target.qkv.weight, source.qkv.weight), (target.qkv.bias, source.qkv.bias)):
        if own is not None and theirs is not None:
            q, k, v = _for_every_head(source, theirs)
            own.copy_(torch.cat([q * sign.view(-1, *[1] * (q.ndim - 1)), k, v]))
    target.out.weight.copy_(source.out.weight)
    if target.out.bias is not None and source.out.bias is not None:
        target.out.bias.copy_(source.out.bias)


def _for_every_head(source: SelfAttention, rows: Float[Tensor, "k *d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the queries' projection, the keys' and the values', each of all heads of queries."""
    parts = rows.unflatten(0, (-1, source.head_dim)).split([source.heads, source.kv_heads, source.kv_heads])
    q, k, v = (part.repeat_interleave(source.heads // len(part), 0).flatten(0, 1) for part in parts)
    return q, k, v


def _gain(source: SelfAttention, scale: Tensor | None) -> Float[Tensor, " h"]:
    """Size of each head's gain where queries and keys are normalised."""
    gain = source.gain.abs()
    if source.normalised:
        return gain
    weights = source.qkv.weight if scale is None else source.qkv.weight * scale
    q, k, _ = (
        part.unflatten(0, (source.heads, -1)).flatten(1).norm(dim=1) for part in _for_every_head(source, weights)
    )
    return gain * q * k / source.head_dim


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
