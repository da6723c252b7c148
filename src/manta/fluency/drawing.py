"""A text drawn where a network has told all words at once, and a model of n-grams says which go together.

Words that are told at once and drawn one by one are drawn without sight of each other, so that two neighbours may
belong to two different texts. Here a row is drawn as a whole, from

    P(w) ∝ [ Π_i p_i(w_i) · Π_k (q(w_k | w_<k) e^nats)^weight · q(end | w)^weight ]^(1 / temperature)

``p_i`` what the network gives to the tokens of place i, ``q`` the n-grams, ``nats`` theirs of a word in the mean (see
`likeliest_row`, which seeks the highest of the same). What q needs to know of the words before a place are the last
two. So the places are gone through forward, summing over all beginnings that end on the same two words, and then
backward, drawing:

    forward    α_i(s′) = Σ_{s, w : s w → s′} α_{i−1}(s) p_i(w) (q(w | s) e^nats)^weight
    backward   s w of place i, given s′, ∝ its part of that sum

Exact, but for what is left out: of each place all but the `TRIED` likeliest tokens, which in a first call can hold but
half of the chances, and all but the `STATES` likeliest pairs of last words. It takes no network call.

Source: forward filtering, backward sampling: Scott, "Bayesian methods for hidden Markov models" (JASA 2002); words
    told in parallel, and another model for what goes with what: Liu et al., arXiv 2410.01949.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.fluency.search import Fluency

TRIED = 10
"""Tokens that are tried at a place, the likeliest."""
STATES = 64
"""Last words that are followed from place to place, the likeliest."""
COLDEST = 1e-9
"""Temperature at which all draws are the likeliest row; of lower ones quotients would be no numbers."""
LOWEST = -1e300
"""Least log-probability that is subtracted."""


@dataclass(frozen=True)
class _Reached:
    """What a place adds: ways (s, w) that each lead to a state, in the order of s, then w."""

    words: np.ndarray
    """Tokens tried."""
    ways: np.ndarray
    """log of each way's part of the sum, "s·w"."""
    leads: np.ndarray
    """Number of the state that each leads to."""
    states: np.ndarray
    """Those states, sorted."""
    kept: np.ndarray
    """Numbers of those that are followed."""


def drawn_row(
    log_chances: Float[Tensor, "b n v"],
    tokens: Int64[Tensor, "b n"],
    open_: Bool[Tensor, "b n"],
    counts: Sequence[int],
    *,
    blank: int,
    fluency: Fluency,
    temperature: float,
    uniform: Sequence[np.ndarray],
) -> Int64[Tensor, "b n"]:
    """A token for every place of each row.

    Args:
        log_chances, tokens, open_, counts, blank, fluency: see `likeliest_row`.
        temperature: above 0; below `COLDEST` as that.
        uniform: of each row, a number from [0, 1) for each place and one more.
    """
    told, rows = log_chances.detach().double().cpu(), tokens.clone()
    chances, likeliest = told.topk(min(TRIED, told.shape[-1]), -1)
    asked = open_.cpu().numpy()
    for row, count in enumerate(counts):
        places = []
        for i in range(count):
            if asked[row, i]:
                places.append((likeliest[row, i].numpy(), chances[row, i].numpy()))
            else:
                places.append((tokens[row, i : i + 1].cpu().numpy(), np.zeros(1)))
        found = _drawn(places, blank, fluency, temperature, uniform[row])
        rows[row, :count] = rows.new_tensor(found)
    return rows


def _drawn(
    places: Sequence[tuple[np.ndarray, np.ndarray]],
    blank: int,
    fluency: Fluency,
    temperature: float,
    uniform: np.ndarray,
) -> list[int]:
    """The tokens of one row; a text's last words are one number, see `NgramModel.after`."""
    ngrams, sharp = fluency.ngrams, 1 / max(temperature, COLDEST)
    states, sums, reached = np.array([ngrams.nothing]), np.zeros(1), []
    for words, chances in places:
        skips = words == blank
        gain = fluency.weight * (ngrams.log_chances(states[:, None], words) + ngrams.nats)
        ways = sums[:, None] + sharp * (chances + np.where(skips, 0.0, gain))
        leads = np.where(skips, states[:, None], ngrams.after(states[:, None], words))
        here, numbers = np.unique(leads.ravel(), return_inverse=True)
        ways -= ways.max()
        most = np.full(len(here), -np.inf)
        np.maximum.at(most, numbers, ways.ravel())
        most = most.clip(LOWEST)  # of what cannot be
        with np.errstate(divide="ignore"):
            total = most + np.log(np.bincount(numbers, np.exp(ways.ravel() - most[numbers]), len(here)))
        kept = np.sort(np.argsort(-total, kind="stable")[:STATES])
        reached.append(_Reached(words, ways.ravel(), numbers, here, kept))
        states, sums = here[kept], total[kept]
    ending = fluency.weight * ngrams.log_chances(states, np.array(ngrams.end))
    at = _pick(sums + sharp * ending, uniform[len(places)])
    found = []
    for i in range(len(places) - 1, -1, -1):
        place = reached[i]
        leading = np.flatnonzero(place.leads == place.kept[at])
        at, word = divmod(int(leading[_pick(place.ways[leading], uniform[i])]), len(place.words))
        found.append(int(place.words[word]))
    return found[::-1]


def _pick(logs: np.ndarray, uniform: float) -> int:
    """One of them, each with a probability of its exponential's share, by the place of a number from [0, 1)."""
    shares = np.exp(logs - logs.max()).cumsum()
    return min(int(np.searchsorted(shares, uniform * shares[-1], side="right")), len(logs) - 1)
