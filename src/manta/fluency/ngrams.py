"""A model of n-grams: how likely a word is after the two before it, as counted in the training texts.

It knows nothing of prompts and takes no network call. Where a network has told all words of a text at once, each
without sight of the others, it says which of them go together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from manta.errors import ConfigError

ORDER = 3
"""Words of the longest n-grams."""
LEAST = 2
"""Times that a longer n-gram must have come to be kept."""
MOST = 2_500
"""N-grams kept of each length above one, the most frequent ones."""
UNIT = 1024
"""Log-probabilities are kept as whole multiples of 1/UNIT nats, so that sums of them are the same everywhere."""
LOWEST = -30.0
"""Least log-probability that is kept."""
ROOM = 0.01
"""Least probability of the words without an n-gram behind a context for what is left to be shared out among them: less
is of the size of what rounding loses."""

Edges = Iterable[tuple[bool, bool]]
"""Of each text whether it begins, and ends, where its tokens do: a window of a longer text may not."""


class NgramModel:
    """Log-probability of a word after the two before it.

        log p(w | u v) = chance(u v w)                    where that n-gram is kept
                         backoff(u v) + log p(w | v)      elsewhere, and so on down to single words

    Probabilities after any context sum to 1, up to rounding (a hundredth in tiny vocabularies): the backoff shares out
    what the n-grams that are not kept would have.

    Args:
        table: from `count_words`, or read from a file and checked by `checked_words`.
        vocab_size: tokens of the vocabulary.
        begin, end: tokens that begin and end a text.

    Source: interpolated smoothing, Witten and Bell 1991; backoff tables, Katz 1987.
    """

    def __init__(self, table: Mapping[str, Tensor], vocab_size: int, begin: int, end: int) -> None:
        self.table, self.vocab_size, self.begin, self.end = dict(table), vocab_size, begin, end
        self.nats = float(table["nats"])
        """Of a word of the training texts, in the mean."""
        self.tokens = int(table["tokens"])
        """That were counted."""
        self._alone = _nats(table["chances.1"])
        grams = {n: table[f"grams.{n}"].tolist() for n in range(2, ORDER + 1) if f"grams.{n}" in table}
        self._chances = {n: dict(zip(known, _nats(table[f"chances.{n}"]), strict=True)) for n, known in grams.items()}
        self._backoffs: dict[int, Mapping[int, float]] = {1: dict(enumerate(_nats(table["backoffs.1"])))}
        for n in list(grams)[:-1]:
            self._backoffs[n] = dict(zip(grams[n], _nats(table[f"backoffs.{n}"]), strict=True))
        self._arrays = {name: value.numpy() for name, value in table.items()}
        self._longest = max(grams, default=1)
        self._contexts = vocab_size ** (self._longest - 1)
        self.nothing = 0
        """Number of the last words of a text that has none."""
        for _ in range(self._longest - 1):
            self.nothing = self.nothing * vocab_size + begin

    @classmethod
    def count(
        cls, texts: Iterable[Sequence[int]], *, vocab_size: int, begin: int, end: int, edges: Edges | None = None
    ) -> "NgramModel":
        """A model of some texts; see `count_words`."""
        table = count_words(texts, vocab_size=vocab_size, begin=begin, end=end, edges=edges)
        return cls(table, vocab_size, begin, end)

    def after(self, last: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Numbers of the last words of texts that a word is added to, int64.

        Args:
            last: numbers of those before: of as many words as a probability depends on.
            words: tokens, broadcast against them.
        """
        return (last * self.vocab_size + words) % self._contexts

    def log_chances(self, last: np.ndarray, words: np.ndarray) -> np.ndarray:
        """`log_chance` of many.

        Args:
            last: numbers of the last words before, see `after`.
            words: tokens, broadcast against them.
        """
        grams = last * self.vocab_size + words
        return _told(self._arrays, self._longest, grams.ravel(), self.vocab_size).reshape(grams.shape)

    def log_chance(self, before: Sequence[int], word: int) -> float:
        """Nats of a word after the others of its text, at most 0.

        Args:
            before: all words before it, or the last ones; none where it is the first.
            word: a token, `end` after a whole text.
        """
        context = before[-(ORDER - 1) :]
        if len(context) < ORDER - 1:
            context = (self.begin, *context)
        told = 0.0
        for n in range(min(len(context), len(self._chances)), 0, -1):
            number = 0
            for each in context[-n:]:
                number = number * self.vocab_size + each
            if (chance := self._chances[n + 1].get(number * self.vocab_size + word)) is not None:
                return told + chance
            told += self._backoffs[n].get(number, 0.0)
        return told + self._alone[word]


def _nats(kept: Tensor) -> list[float]:
    return (kept.double() / UNIT).tolist()


def count_words(
    texts: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    begin: int,
    end: int,
    most: int = MOST,
    edges: Edges | None = None,
) -> dict[str, Tensor]:
    """The table of an `NgramModel`.

        single words    p(w)      = (times(w) + T / V) / (N + T)                   T different ones of N, vocabulary V
        after a context p(w | c)  = (times(c w) + T_c p(w | c′)) / (N_c + T_c)     c′ is c without its first word

    Args:
        texts: tokens of each, without those that begin and end it.
        vocab_size: tokens of the vocabulary; n-grams whose number would not fit 63 bits are left out.
        begin, end: tokens that begin and end a text.
        most: n-grams kept of each length above one.
        edges: see `delimited`.

    Returns:
        For each length n: `grams.n`, sorted numbers of n-grams, the last word the last digit (not of single words, of
        which there are all); `chances.n`, log-probabilities of their last words; `backoffs.n`, of n-grams as contexts.
        Both in 1/`UNIT` nats, int16. And `nats`, of a word in the mean, float32, and `tokens`, that were counted.
    """
    rows = delimited(texts, begin, end, edges)
    words = [row[int(row[:1].tolist() == [begin]) :] for row in rows]  # all but the token that begins a text
    times = np.bincount(np.concatenate(words or [np.zeros(0, np.int64)]), minlength=vocab_size)
    different = max(1, int((times > 0).sum()))
    alone = (times + different / vocab_size) / (times.sum() + different)
    table: dict[str, Any] = {"chances.1": _rounded(np.log(alone))}
    table["backoffs.1"] = np.zeros(vocab_size, np.int16)
    grams, counted, longest = np.arange(vocab_size), times, 1
    for longest in lengths(vocab_size):
        numbers = [gram_numbers(row, longest, vocab_size) for row in rows] or [np.zeros(0, np.int64)]
        grams, counted = np.unique(np.concatenate(numbers), return_counts=True)
        _add_length(table, longest, grams, counted, vocab_size, most)
    told = _told(table, longest, grams, vocab_size)
    table["nats"] = np.array(-(told * counted).sum() / max(1, counted.sum()), np.float32)
    table["tokens"] = np.array(times.sum(), np.int64)
    return {name: torch.from_numpy(np.array(value)) for name, value in table.items()}


def delimited(
    texts: Iterable[Sequence[int]], begin: int, end: int, edges: Edges | None = None
) -> list[Int64[np.ndarray, " _"]]:
    """Texts with the tokens that begin and end them, int64.

    Args:
        texts: tokens of each, without them.
        begin, end: those tokens.
        edges: of each text whether it begins and ends there; None: all do.
    """
    known = repeat((True, True)) if edges is None else edges
    return [
        np.array([*[begin] * begins, *text, *[end] * ends], dtype=np.int64)
        for text, (begins, ends) in zip(texts, known, strict=False)
    ]


def lengths(vocab_size: int) -> list[int]:
    """Lengths of the n-grams above one that are counted: those whose numbers fit 63 bits."""
    return [n for n in range(2, ORDER + 1) if vocab_size**n < 2**63]


def gram_numbers(row: np.ndarray, n: int, base: int) -> np.ndarray:
    """The number of every n-gram of a row, int64: its words as digits to a base, the last word the last. A row that is
    shorter than n has none."""
    numbers = np.zeros(max(0, len(row) - n + 1), np.int64)
    for place in range(n):
        numbers = numbers * base + row[place : place + len(numbers)]
    return numbers


def _add_length(table: dict[str, Any], n: int, grams: np.ndarray, times: np.ndarray, base: int, most: int) -> None:
    """Add the n-grams of one more word, and the backoffs of their contexts."""
    context, place = np.unique(grams // base, return_inverse=True)
    total, different = np.bincount(place, weights=times), np.bincount(place)
    lower = np.exp(_told(table, n - 1, grams % base ** (n - 1), base))
    chance = (times + different[place] * lower) / (total + different)[place]
    # A context that is not kept itself would have no backoff.
    kept = np.flatnonzero((times >= LEAST) & _among(table, n - 1, grams // base))
    kept = np.sort(kept[np.argsort(-times[kept], kind="stable")[:most]])
    taken = np.bincount(place[kept], weights=chance[kept], minlength=len(context))
    spare = np.bincount(place[kept], weights=lower[kept], minlength=len(context))
    held = np.bincount(place[kept], minlength=len(context)) > 0
    full = held & (1 - spare < ROOM)  # there is nobody to share with, and those that are kept have all
    chance[kept] /= np.where(full, taken, 1.0)[place[kept]]
    with np.errstate(divide="ignore", invalid="ignore"):
        backoff = np.where(full, LOWEST, np.log(np.maximum(1 - taken, math.exp(LOWEST)) / (1 - spare)))
    where = _places(table, n - 1, context[held])
    table[f"backoffs.{n - 1}"][where] = _rounded(backoff[held])
    table[f"grams.{n}"] = grams[kept].astype(np.int32 if base**n < 2**31 else np.int64)
    table[f"chances.{n}"] = _rounded(np.log(chance[kept]))
    if n + 1 in lengths(base):
        table[f"backoffs.{n}"] = np.zeros(len(kept), np.int16)


def _rounded(nats: np.ndarray) -> np.ndarray:
    return np.round(np.clip(nats, LOWEST, -LOWEST) * UNIT).astype(np.int16)


def _places(table: Mapping[str, Any], n: int, grams: np.ndarray) -> np.ndarray:
    """Where n-grams stand in the table, if they do."""
    return grams if n == 1 else np.searchsorted(table[f"grams.{n}"], grams)


def _among(table: Mapping[str, Any], n: int, grams: np.ndarray) -> np.ndarray:
    """Whether each n-gram is in the table."""
    if n == 1:
        return np.ones(len(grams), bool)
    known, at = table[f"grams.{n}"], _places(table, n, grams)
    return (at < len(known)) & (np.append(known, -1)[at] == grams)


def _told(table: Mapping[str, Any], n: int, grams: np.ndarray, base: int) -> np.ndarray:
    """Nats of the last word of each n-gram after its others."""
    if n == 1:
        return table["chances.1"][grams] / UNIT
    context, there, held = grams // base, _among(table, n, grams), _among(table, n - 1, grams // base)
    backoff = np.append(table[f"backoffs.{n - 1}"], 0)[np.where(held, _places(table, n - 1, context), -1)] / UNIT
    chance = np.append(table[f"chances.{n}"], 0)[np.where(there, _places(table, n, grams), -1)] / UNIT
    return np.where(there, chance, backoff + _told(table, n - 1, grams % base ** (n - 1), base))


def checked_words(tensors: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """A table that was read from a file.

    Args:
        tensors: as read.
        vocab_size: tokens of the vocabulary.

    Raises:
        ConfigError: it is not one that `count_words` makes.
    """
    longer = lengths(vocab_size)
    sizes = {1: vocab_size, **{n: tensors[f"grams.{n}"].numel() if f"grams.{n}" in tensors else 0 for n in longer}}
    names = {f"chances.{n}" for n in sizes} | {f"grams.{n}" for n in longer}
    names |= {f"backoffs.{n}" for n in [1, *longer][: ORDER - 1] if n + 1 in longer or n == 1}
    if set(tensors) != names | {"nats", "tokens"}:
        raise ConfigError("the table of n-grams does not hold grams, chances and backoffs, nats and tokens")
    for name in names:
        value, n = tensors[name], int(name[-1])
        kinds = (torch.int32, torch.int64) if name.startswith("grams") else (torch.int16,)
        if value.dtype not in kinds or value.shape != (sizes[n],):
            raise ConfigError(f"{name} of the table of n-grams has not one whole number for each")
        if name.startswith("chances") and bool((value > 0).any()):
            raise ConfigError(f"{name} of the table of n-grams holds probabilities above 1")
        if name.startswith("backoffs") and bool((value > -UNIT * math.log(ROOM) + 1).any()):
            raise ConfigError(f"{name} of the table of n-grams gives more than there is")
        if name.startswith("grams") and (bool((value.diff() <= 0).any()) or not _within(value, vocab_size**n)):
            raise ConfigError(f"{name} of the table of n-grams are not sorted numbers of {n} tokens")
    nats = tensors["nats"]
    if nats.shape != () or not nats.is_floating_point() or not 0 <= float(nats) <= -LOWEST:
        raise ConfigError("the nats of a word in the table of n-grams are no number of nats")
    tokens = tensors["tokens"]
    if tokens.shape != () or tokens.dtype is not torch.int64 or int(tokens) < 0:
        raise ConfigError("the tokens of the table of n-grams are no number of tokens")
    return dict(tensors)


def _within(numbers: Tensor, bound: int) -> bool:
    return len(numbers) == 0 or (int(numbers[0]) >= 0 and int(numbers[-1]) < bound)
