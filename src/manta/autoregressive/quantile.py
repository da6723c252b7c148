"""The noise that a text has under a left-to-right model: its map from noise to words, and the inverse of it.

Of next words in the order of their probability, the likeliest first, ``F`` is the cumulative distribution. The model
draws ``x = F⁻¹(u)`` with u uniform in [0, 1); a word that stands has the noise ``u ∈ [F(x−), F(x))``, uniform in there.
If the words are the model's own draws, their noise is uniform and independent: the triangular (Knothe-Rosenblatt)
transport. What is told is ``Φ⁻¹(u)``, a standard normal number.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

EDGE = 1e-6
"""Nearest to 0 and 1 that u comes, so that the normal number stays within ±4.8."""


def noise_of_words(
    logits: Float[Tensor, "*shape v"], words: Int64[Tensor, "*shape"], draws: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """A standard normal number for every word that stands.

    Args:
        logits: of the next word at each place.
        words: that stand there.
        draws: uniform in [0, 1): where in its interval each one's noise lies.
    """
    chances = logits.double().softmax(-1)
    own = chances.gather(-1, words[..., None])
    number = torch.arange(logits.shape[-1], device=logits.device)
    before = (chances > own) | ((chances == own) & (number < words[..., None]))
    u = (chances * before).sum(-1) + draws.double() * own[..., 0]
    return torch.special.ndtri(u.clamp(EDGE, 1 - EDGE)).float()


def words_of_noise(logits: Float[Tensor, "*shape v"], noise: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The word that the model draws with each standard normal number.

    Args:
        logits: of the next word at each place.
        noise: one number a place.
    """
    chances, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    u = torch.special.ndtr(noise.double())
    rank = (chances.cumsum(-1) <= u[..., None]).sum(-1).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, rank[..., None])[..., 0]
