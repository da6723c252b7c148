"""The likeliest text where a network has told all words at once, and a model of n-grams says which go together.

Words that are told at once are each told without sight of the others, so that two neighbours may belong to two
different texts ("near the The Mill"). Searched for is the text ``w`` of the highest

    log p(w)  +  weight · Σ_k (log q(w_k | w_<k) + nats)  +  weight · log q(end | w)

``p`` what the network's chances give to the text, ``q`` the n-grams. A word that is as likely as one of the training
texts is in the mean adds nothing, so that texts are neither cut short nor drawn out. It takes no network call.

    slots    a text is said by all its alignments (runs of a word are one word):  p(w) = Σ_a Π_i p(a_i)
    places   each holds one word, or none:                                        p(w) = max_a Π_i p(a_i)

Source: prefix search: Graves et al. 2006; with a language model: Hannun et al., arXiv 1408.2873; for text that is
    written in parallel: Gu and Kong, arXiv 2012.15833.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.fluency.ngrams import NgramModel

BEAMS = 8
"""Beginnings of a text that are followed from place to place."""
CUT = -4.0
"""Least log-probability of a label to be tried, if it is not the likeliest of its place."""

Words = tuple[int, ...]
Tried = list[tuple[int, float]]
"""Labels of a place, with their probabilities or log-probabilities."""


@dataclass(frozen=True)
class Fluency:
    """What a model of n-grams says of words, weighed."""

    ngrams: NgramModel
    """Of the training texts."""
    weight: float
    """Of its log-probabilities beside those of the network."""

    def of(self, before: Words, word: int) -> float:
        """Of a word behind others."""
        return self.weight * (self.ngrams.log_chance(before, word) + self.ngrams.nats)

    def ending(self, words: Words) -> float:
        """Of a text that ends."""
        return self.weight * self.ngrams.log_chance(words, self.ngrams.end)


def likeliest_texts(
    log_chances: Float[Tensor, "b n v"], counts: Sequence[int], *, blank: int, fluency: Fluency
) -> list[list[int]]:
    """The words that each row of slots says, all alignments counted.

    Args:
        log_chances: of every label in every slot, as log-softmax gives them.
        counts: slots of each row.
        blank: the label that says nothing.
        fluency: what is added for words that go together.
    """
    told = log_chances.double().cpu()
    blanks = told[..., blank].exp().tolist()
    words = torch.ones(told.shape[-1], dtype=torch.bool)
    words[blank] = False
    tried = _tried(told, words.expand_as(told), counts)
    rows = [[[(word, math.exp(chance)) for word, chance in place] for place in places] for places in tried]
    return [_text(slots, blanks[row], fluency) for row, slots in enumerate(rows)]


@dataclass
class _Beginning:
    """The first words of a text, and how probable it is that the slots so far say them."""

    blank: float = 0.0
    """With a blank in the last slot."""
    word: float = 0.0
    """With the last word there."""
    fluency: float = 0.0

    @property
    def chance(self) -> float:
        return self.blank + self.word

    @property
    def rank(self) -> float:
        return math.log(self.chance) + self.fluency


def _text(slots: Sequence[Tried], blanks: Sequence[float], fluency: Fluency) -> list[int]:
    """The words of one row; of equally good texts that of the smallest numbers."""
    beams: dict[Words, _Beginning] = {(): _Beginning(blank=1.0)}
    added: dict[tuple[Words, int], float] = {}
    for tried, blank in zip(slots, blanks, strict=False):
        reached: dict[Words, _Beginning] = {}
        for said, begun in beams.items():
            last, stays = (said[-1] if said else None), 0.0
            for word, chance in tried:
                if word == last:  # the same word goes on; a second one of it needs a blank between
                    stays = begun.word * chance
                comes = begun.blank if word == last else begun.chance
                if comes <= 0:
                    continue
                longer = (*said, word)
                if (found := reached.get(longer)) is None:
                    if (gain := added.get((said, word))) is None:
                        gain = added[said, word] = fluency.of(said, word)
                    found = reached[longer] = _Beginning(fluency=begun.fluency + gain)
                found.word += comes * chance
            found = reached.setdefault(said, _Beginning(fluency=begun.fluency))
            found.blank += begun.chance * blank
            found.word += stays
        beams = _best(reached)
    return list(min(beams, key=lambda said: (-beams[said].rank - fluency.ending(said), said)))


def _best(reached: dict[Words, _Beginning]) -> dict[Words, _Beginning]:
    """The best of them, their probabilities scaled so that the largest is 1."""
    possible = {said: begun.rank for said, begun in reached.items() if begun.chance > 0}
    kept = sorted(possible, key=lambda said: (-possible[said], said))[:BEAMS]
    largest = max(reached[said].chance for said in kept)
    for said in kept:
        reached[said].blank /= largest
        reached[said].word /= largest
    return {said: reached[said] for said in kept}


def likeliest_row(
    log_chances: Float[Tensor, "b n v"],
    tokens: Int64[Tensor, "b n"],
    open_: Bool[Tensor, "b n"],
    counts: Sequence[int],
    *,
    blank: int,
    fluency: Fluency,
) -> Int64[Tensor, "b n"]:
    """A token for every place of each row.

    Args:
        log_chances: of every token in every place, as log-softmax gives them.
        tokens: those that stand.
        open_: True where none does.
        counts: places of each row.
        blank: the token of a place without a word.
        fluency: what is added for words that go together.
    """
    tried = _tried(log_chances.double().cpu(), open_.cpu()[..., None].expand_as(log_chances), counts)
    rows = tokens.clone()
    for row, places in enumerate(tried):
        stands = tokens[row].tolist()
        found = _row([place or [(token, 0.0)] for place, token in zip(places, stands, strict=False)], blank, fluency)
        rows[row, : len(found)] = rows.new_tensor(found)
    return rows


def _row(places: Sequence[Tried], blank: int, fluency: Fluency) -> list[int]:
    """The tokens of one row; `path` leads from the last back to the first."""
    beams: dict[Words, tuple[float, float, tuple]] = {(): (0.0, 0.0, ())}
    for tried in places:
        reached: dict[Words, tuple[float, float, tuple]] = {}
        for said, (chance, gain, path) in beams.items():
            for word, more in tried:
                longer = said if word == blank else (*said, word)
                if (found := reached.get(longer)) is not None and found[0] >= chance + more:
                    continue
                gained = gain if word == blank else gain + fluency.of(said, word)
                reached[longer] = (chance + more, gained, (word, path))
        kept = sorted(reached, key=lambda said: (-reached[said][0] - reached[said][1], said))[:BEAMS]
        beams = {said: reached[said] for said in kept}
    best = min(beams, key=lambda said: (-sum(beams[said][:2]) - fluency.ending(said), said))
    path, found = beams[best][2], []
    while path:
        word, path = path
        found.append(word)
    return found[::-1]


def _tried(told: Float[Tensor, "b n v"], asked: Bool[Tensor, "b n v"], counts: Sequence[int]) -> list[list[Tried]]:
    """By row and place, the labels that are tried and their log-probabilities; none where none is asked for."""
    kept = (told > CUT).scatter(-1, told.argmax(-1, keepdim=True), True) & asked
    found: list[list[Tried]] = [[[] for _ in range(count)] for count in counts]
    for (row, place, label), chance in zip(kept.nonzero().tolist(), told[kept].tolist(), strict=True):
        if place < counts[row]:
            found[row][place].append((label, chance))
    return found
