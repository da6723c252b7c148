"""Which words are hidden while a masked model trains: a masker turns a share into positions.

`masker(tokens, mask, share, generator) → hidden`, with `share "b"` in (0, 1], the expected share of each row's canvas.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError

Masker = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def uniform(
    tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], share: Float[Tensor, "b"], generator: torch.Generator
) -> Bool[Tensor, "b n"]:
    """Hide each word on its own with the row's probability: the forward process of MDLM and LLaDA."""
    draws = torch.rand(mask.shape, generator=generator, device=generator.device).to(tokens.device)
    return (draws < share[:, None]) & mask


def span(
    tokens: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    share: Float[Tensor, "b"],
    generator: torch.Generator,
    *,
    mean_length: float = 4.0,
) -> Bool[Tensor, "b n"]:
    """Hide runs of words: a two-state Markov chain along the row.

    A run ends with probability `1/mean_length` a word and begins with the probability that makes the stationary share
    the row's; where the share asks for longer runs, they are longer. The first state is drawn from the stationary
    distribution, so each word is hidden with probability `share`.

    Args:
        mean_length: mean words of a run, at least 1.
    """
    b, n = mask.shape
    draws = torch.rand((b, n), generator=generator, device=generator.device).to(share)
    leave = torch.full_like(share, 1 / mean_length)
    enter = leave * share / (1 - share).clamp_min(1e-6)
    scale = enter.clamp_min(1.0)  # beyond a probability of 1, slow the chain down instead
    enter, leave = enter / scale, leave / scale
    hidden = torch.empty(b, n, dtype=torch.bool, device=share.device)
    state = draws[:, 0] < share
    for place in range(n):
        if place:
            state = torch.where(state, draws[:, place] >= leave, draws[:, place] < enter)
        hidden[:, place] = state
    return (hidden | (share >= 1)[:, None]) & mask


def rarity(
    tokens: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    share: Float[Tensor, "b"],
    generator: torch.Generator,
) -> Bool[Tensor, "b n"]:
    """Hide rare words more often: `by_surprise`, −log of the frequency within the batch."""
    counts = torch.bincount(tokens[mask], minlength=int(tokens.max()) + 1).to(share)
    surprise = -(counts.clamp_min(1) / counts.sum()).log()
    return by_surprise(surprise[tokens], mask, share, generator)


def by_surprise(
    surprise: Float[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    share: Float[Tensor, "b"],
    generator: torch.Generator,
) -> Bool[Tensor, "b n"]:
    """Hide surprising words more often.

    `p_i = share^(w_i)` with `w_i = mean surprise / surprise_i`, clipped to [1/4, 4]; a word of mean surprise is
    hidden with probability `share`.
    """
    exponent = (surprise[mask].mean() / surprise.clamp_min(1e-6)).clamp(0.25, 4)
    draws = torch.rand(mask.shape, generator=generator, device=generator.device).to(surprise.device)
    return (draws < share[:, None] ** exponent) & mask


def entropy(denoiser: Callable[[Tensor], Tensor], mask_id: int) -> Masker:
    """Hide words more often where the model is undecided: `by_surprise` of the entropy of what it tells.

    A word's entropy is that of two calls, each of which hides one half of the words, drawn at random; no gradient
    passes. A step costs two forward passes more.

    Args:
        denoiser: the model, `denoiser(tokens) → logits`.
        mask_id: the token that stands for a hidden word.
    """

    def hide(
        tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], share: Float[Tensor, "b"], generator: torch.Generator
    ) -> Bool[Tensor, "b n"]:
        half = uniform(tokens, mask, torch.full_like(share, 0.5), generator)
        undecided = torch.zeros(mask.shape, device=share.device)
        with torch.no_grad():
            for hidden in (half, mask & ~half):
                chance = denoiser(tokens.masked_fill(hidden, mask_id)).float().softmax(-1)
                undecided = torch.where(hidden, torch.special.entr(chance).sum(-1), undecided)
        return by_surprise(undecided, mask, share, generator)

    return hide


MASKERS: dict[str, Masker] = {"uniform": uniform, "span": span, "rarity": rarity}
"""Maskers by kind, of those that need no model."""

ENTROPY = "entropy"
"""Kind of the masker that asks the model."""


def masker(kind: str) -> Masker:
    """The masker of a kind.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in MASKERS:
        raise ConfigError(f"unknown masker {kind!r}; choose one of {', '.join(MASKERS)}")
    return MASKERS[kind]
