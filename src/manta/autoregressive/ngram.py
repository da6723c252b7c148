"""Drafts from a table of the training texts: what came next most often after the last few words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manta.autoregressive.decode import Drafter, Drafting
from manta.errors import ConfigError
from manta.fluency.ngrams import Edges, delimited, gram_numbers

ORDER = 4
"""Longest context, in words."""
WIDTH = 3
"""Continuations kept of a context."""
LEAST = 2
"""Times that a context must have come for it to be kept."""
MOST = 10_000
"""Contexts kept of each length, the most frequent ones."""


def count_ngrams(
    texts: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    begin: int,
    end: int,
    order: int = ORDER,
    most: int = MOST,
    edges: Edges | None = None,
) -> dict[str, Tensor]:
    """The table of an `NgramDrafter`: contexts of 1 … `order` words and their most frequent continuations.

    Args:
        texts: tokens of each, without those that begin and end it.
        vocab_size: tokens of the vocabulary; contexts whose number would not fit 63 bits are left out.
        begin, end: tokens that begin and end a text.
        order: longest context.
        most: contexts kept of each length.
        edges: see `manta.fluency.ngrams.delimited`.

    Returns:
        For each length n: `contexts.n`, sorted numbers of contexts, int64 "c"; `words.n`, their continuations, the
        most frequent first, int32 "c WIDTH", −1 for none; `chances.n`, the share of each, float32.
    """
    rows = delimited(texts, begin, end, edges)
    table: dict[str, Tensor] = {}
    for n in range(1, order + 1):
        if vocab_size ** (n + 1) >= 2**63:
            break
        continued = [gram_numbers(row, n + 1, vocab_size) for row in rows] or [np.zeros(0, np.int64)]
        for name, value in _most_frequent(np.concatenate(continued), vocab_size, most).items():
            table[f"{name}.{n}"] = torch.from_numpy(value)
    return table


def _most_frequent(continued: np.ndarray, base: int, most: int) -> dict[str, np.ndarray]:
    """The table of contexts that are numbered with the word after them as the last digit."""
    pairs, times = np.unique(continued, return_counts=True)
    context, word = np.divmod(pairs, base)
    totals = np.bincount(np.unique(context, return_inverse=True)[1], weights=times)
    order = np.lexsort((word, -times, context))  # within a context the most frequent first, then by number
    context, word, times = context[order], word[order], times[order]
    known, first, size = np.unique(context, return_index=True, return_counts=True)
    words, chances = np.full((len(known), WIDTH), -1, np.int32), np.zeros((len(known), WIDTH), np.float32)
    for rank in range(WIDTH):
        there = size > rank
        words[there, rank] = word[first[there] + rank]
        chances[there, rank] = times[first[there] + rank] / totals[there]
    kept = np.flatnonzero(totals >= LEAST)
    kept = np.sort(kept[np.argsort(-totals[kept], kind="stable")[:most]])
    return {"contexts": known[kept], "words": words[kept], "chances": chances[kept]}


def checked_ngrams(tensors: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """A table that was read from a file.

    Args:
        tensors: as read.
        vocab_size: tokens of the vocabulary, which its words are among.

    Raises:
        ConfigError: it is not one that `count_ngrams` makes.
    """
    lengths = range(1, len(tensors) // 3 + 1)
    names = {f"{name}.{n}" for name in ("contexts", "words", "chances") for n in lengths}
    if names != set(tensors) or len(lengths) > ORDER:
        raise ConfigError("the table of n-grams does not hold contexts, words and chances of each length")
    for n in lengths:
        contexts, words, chances = (tensors[f"{name}.{n}"] for name in ("contexts", "words", "chances"))
        if contexts.dtype is not torch.int64 or contexts.ndim != 1 or bool((contexts.diff() <= 0).any()):
            raise ConfigError(f"the contexts of {n} words are not sorted numbers")
        if words.shape != (len(contexts), WIDTH) or words.dtype is not torch.int32 or chances.shape != words.shape:
            raise ConfigError(f"the words after contexts of {n} are not {WIDTH} a context")
        if bool(((chances > 0) != (words >= 0)).any()) or bool((words[:, :1] < 0).any()):
            raise ConfigError(f"the shares of the words after contexts of {n} do not fit them")
        if bool((words >= vocab_size).any()):
            raise ConfigError(f"the words after contexts of {n} are not all among the {vocab_size} of the vocabulary")
    return dict(tensors)


class NgramDrafter(Drafter):
    """Drafts the continuation that the training texts had after the longest context that they know.

    No network and no training: a lookup a word. It does not read the prompt.

    Args:
        table: from `count_ngrams`.
        vocab_size: tokens of the vocabulary.
        begin: token that begins a text.

    Source: n-gram drafts: He et al., "REST", arXiv 2311.08252, by a table instead of a suffix array.
    """

    def __init__(self, table: dict[str, Tensor], vocab_size: int, begin: int) -> None:
        super().__init__()
        self.vocab_size, self.start = vocab_size, begin
        self.table = table
        self._contexts = {n: table[f"contexts.{n}"].numpy() for n in range(1, ORDER + 1) if f"contexts.{n}" in table}

    def draft(self, told: Drafting) -> list[list[int]]:
        """See `Drafter`."""
        return [
            self._continued(row, [self.start, *words][-ORDER:], len(words), count, told.choose)
            for row, (words, count) in enumerate(zip(told.written, told.counts, strict=True))
        ]

    def _continued(self, row: int, context: list[int], place: int, count: int, choose: Any) -> list[int]:
        found: list[int] = []
        while len(found) < count and (known := self._look_up(context)) is not None:
            words, chances = known
            found.append(choose.among(row, place + len(found), words, chances, self.vocab_size))
            context = [*context, found[-1]][-ORDER:]
        return found

    def _look_up(self, context: Sequence[int]) -> tuple[list[int], list[float]] | None:
        """Continuations of the longest known end of a context, with their shares."""
        for n in range(min(len(context), len(self._contexts)), 0, -1):
            number = 0
            for word in context[-n:]:
                number = number * self.vocab_size + word
            contexts = self._contexts[n]
            at = int(np.searchsorted(contexts, number))
            if at < len(contexts) and contexts[at] == number:
                words = [word for word in self.table[f"words.{n}"][at].tolist() if word >= 0]
                return words, self.table[f"chances.{n}"][at].tolist()[: len(words)]
        return None
