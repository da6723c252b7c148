"""Monotone alignments of a text with a longer row of slots, each of which holds a word or the blank.

    slots   b  the the  b  cat  b   b  sat sat   ->   the cat sat

Runs of one word are one word, then blanks vanish. A word one slot early is no error, as it is where every position has
its own word, and the length of a text need not be known before it is written.

Source: connectionist temporal classification (CTC): Graves et al. 2006; for text written in parallel: Libovický and
    Helcl, arXiv 1811.04719; partly given alignments: Saharia et al., "Imputer", arXiv 2004.07437.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NEVER = -1e30
"""Log-probability of what cannot be, finite so that sums of it stay numbers."""
UNLIKELY = -30.0
"""Log-probability of another label where one is given."""


def collapse(slots: Sequence[int], blank: int) -> list[int]:
    """The words that slots say: each run of a label once, blanks left out.

    Args:
        slots: labels.
        blank: the label that says nothing.
    """
    return [label for label, _ in groupby(slots) if label != blank]


def least_slots(words: Int64[Tensor, "b m"], lengths: Int64[Tensor, "b"]) -> Int64[Tensor, "b"]:
    """Fewest slots that can say each text: one a word, and a blank between two that are equal.

    Args:
        words: padded at the right.
        lengths: words of each row.
    """
    place = torch.arange(1, words.shape[1], device=words.device)
    repeats = (words[:, 1:] == words[:, :-1]) & (place < lengths[:, None])
    return lengths + repeats.sum(1)


def clamped(
    log_chances: Float[Tensor, "b n v"], slots: Int64[Tensor, "b n"], known: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n v"]:
    """Log-probabilities in which the labels that are given are certain.

    Args:
        log_chances: of every label in every slot.
        slots: labels; only those that are known count.
        known: True where a label is given.
    """
    given = torch.full_like(log_chances, UNLIKELY).scatter(2, slots[..., None], 0.0)
    return torch.where(known[..., None], given, log_chances)


def alignment_nats(
    log_chances: Float[Tensor, "b n v"],
    counts: Int64[Tensor, "b"],
    words: Int64[Tensor, "b m"],
    lengths: Int64[Tensor, "b"],
    *,
    blank: int,
) -> Float[Tensor, "b"]:
    """Nats of each text, summed over all alignments: ``−log Σ_a Π_i p(a_i)``.

    Args:
        log_chances: of every label in every slot, as log-softmax gives them; slots beyond a row's own are not read.
        counts: slots of each row.
        words: the texts, padded at the right, no blank among them.
        lengths: words of each row, which need `least_slots` at most as many slots as there are.
        blank: the label that says nothing.

    Returns:
        Infinite for a text that its slots cannot say.
    """
    found = F.ctc_loss(log_chances.float().transpose(0, 1), words, counts, lengths, blank=blank, reduction="none")
    assert isinstance(found, Tensor)
    return found


@torch.no_grad()
def best_alignment(
    log_chances: Float[Tensor, "b n v"],
    counts: Int64[Tensor, "b"],
    words: Int64[Tensor, "b m"],
    lengths: Int64[Tensor, "b"],
    *,
    blank: int,
) -> Int64[Tensor, "b n"]:
    """The likeliest alignment of each text, by the Viterbi recursion over ``ext = b w_1 b w_2 … w_m b``.

    ``best_i(s) = log p_i(ext_s) + max(best_{i−1}(s), best_{i−1}(s−1), best_{i−1}(s−2) if ext_s ∉ {b, ext_{s−2}})``

    Args:
        log_chances, counts, words, lengths, blank: as in `alignment_nats`.

    Returns:
        A label for every slot; blanks beyond a row's own. Nothing of use for a text that its slots cannot say.
    """
    b, n, _ = log_chances.shape
    states = 2 * words.shape[1] + 1
    extended = words.new_full((b, states), blank)
    extended[:, 1::2] = words
    skips = torch.zeros_like(extended, dtype=torch.bool)
    skips[:, 2:] = (extended[:, 2:] != blank) & (extended[:, 2:] != extended[:, :-2])
    spoken = log_chances.float().gather(2, extended[:, None].expand(-1, n, -1))
    state = torch.from_numpy(
        _best_path(spoken.cpu().numpy(), skips.cpu().numpy(), counts.cpu().numpy(), lengths.cpu().numpy())
    )
    labels = extended.gather(1, state.to(words.device))
    return labels.masked_fill(torch.arange(n, device=words.device) >= counts[:, None], blank)


def _best_path(spoken: np.ndarray, skips: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The state of every slot `[b, n]`; a few values a step, which numpy begins on sooner than a tensor library.

    Args:
        spoken: log-probability of each state in each slot, `[b, n, s]`.
        skips: True where a state may follow that before the last, `[b, s]`.
        counts, lengths: slots and words of each row, `[b]`.
    """
    b, n, states = spoken.shape
    row = np.arange(b)
    best = np.where(np.arange(states) < 2, spoken[:, 0], np.float32(NEVER))
    came = np.zeros((n, b, states), dtype=np.int64)
    before = np.full((b, states + 2), np.float32(NEVER))
    for slot in range(1, n):
        before[:, 2:] = best
        one, two = before[:, 1:-1], np.where(skips, before[:, :-2], np.float32(NEVER))
        nearer = np.maximum(best, one)
        inside = (slot < counts)[:, None]
        came[slot] = np.where(inside, np.where(two > nearer, 2, one > best), 0)
        best = np.where(inside, np.maximum(nearer, two) + spoken[:, slot], best)
    last = 2 * lengths
    state = last - ((lengths > 0) & (best[row, np.maximum(last - 1, 0)] > best[row, last]))
    path = np.empty((b, n), dtype=np.int64)
    for slot in range(n - 1, -1, -1):
        path[:, slot] = state
        state = state - came[slot, row, state]
    return path
