"""What attention favours among some elements: by their content and places, or by their places alone.

`positions.score_spread` tells it of a kind of places; this tells it of a trained operator and the states that it meets.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from manta.operators.attention import SelfAttention, score_scale
from manta.operators.context import OperatorContext


class Favouring(NamedTuple):
    """How far attention to some elements is from even; 0 where all are attended to alike."""

    spread: Float[Tensor, "*queries"]
    """Standard deviation of the scores."""
    deficit: Float[Tensor, "*queries"]
    """Nats that the entropy of the attention lacks to that of even attention: ``log n − H(p)``."""
    variation: Float[Tensor, "*queries"]
    """Total variation from even attention, [0, 1): ``½ Σ |p − 1/n|``, the share that would have to move."""


def favouring(scores: Float[Tensor, "*queries n"]) -> Favouring:
    """How uneven the attention of each query is among n elements: ``p = softmax(scores)``.

    Written in ``r = n p``, how many times its even share an element gets, so that equal scores give 0 without rounding.

    Args:
        scores: of the elements, and of no others; only differences count.
    """
    above = scores.double() - scores.double().amax(-1, keepdim=True)
    share = above.exp() / above.exp().mean(-1, keepdim=True)
    return Favouring(
        spread=above.std(-1, correction=min(1, above.shape[-1] - 1)),
        deficit=torch.special.xlogy(share, share).mean(-1),
        variation=(share - 1).abs().mean(-1) / 2,
    )


@torch.no_grad()
def scores_among(
    attention: SelfAttention,
    x: Float[Tensor, "b n d"],
    context: OperatorContext,
    queries: slice,
    keys: slice,
    *,
    alike: bool = False,
) -> Float[Tensor, "b h q m"]:
    """Scores of some elements of whole rows for others, less that for the first of these.

        ``g <R_i q̂_i, R_j k̂_j − R_0 k̂_0> / sqrt(head_dim)``

    Alike, every key is that of the mean state over the elements, turned by each one's place: the rotary turn alone
    tells them apart, and scores for elements in one place are equal to the last bit.

    Args:
        attention: the operator, in which every element sees all others.
        x: states, as the operator is given them.
        context: of the rows.
        queries: elements that look.
        keys: elements that are looked at.
        alike: give them all their mean content.
    """
    q, k, _ = attention.turned(x, context)
    if alike:
        unturned = OperatorContext(context.coordinates.new_zeros(1, context.axes))
        _, mean, _ = attention.turned(x[:, keys].mean(1, keepdim=True), unturned)
        k = attention.turn(mean.expand(-1, -1, context.length, -1), context)
    q, k = q[:, :, queries], k[:, :, keys]
    return q @ attention.shared(k - k[:, :, :1]).mT * score_scale(attention.gain, attention.head_dim)
