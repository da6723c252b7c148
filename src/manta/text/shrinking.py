"""Smaller vocabularies: the tokens of a tokenizer that its texts need, measured by encoding them anew."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from manta.errors import ConfigError, DataError
from manta.text.tokenizers import SPECIALS, Tokenizer, pieces_of

MOST_CHARACTERS = 50_000_000
"""Characters of the texts that are read at most."""

Spans = tuple[tuple[int, int], ...]
"""Where the tokens of a word begin and end."""


@dataclass(frozen=True)
class Shrunk:
    """A tokenizer with fewer tokens, and what they do to the texts it was measured on."""

    tokenizer: Tokenizer
    kept: tuple[int, ...]
    """Id that each of its tokens has in the tokenizer it was made from, in order."""
    coverage: float
    """Share of the old tokens of the texts that are still one token each."""
    tokens_before: int
    """Tokens of the texts."""
    tokens_after: int
    """The same, encoded anew."""
    num_bytes: int
    """Bytes of the texts."""


def shrink(tokenizer: Tokenizer, texts: Iterable[str], coverage: float) -> Shrunk:
    """A small part of a tokenizer's vocabulary that covers its texts.

    Tokens are taken in the order of how often the texts have them, each with those it is merged from, so that no token
    is there that could not be reached, until the share of the old tokens that encoding anew gives back reaches
    `coverage`. Specials and all 256 bytes are kept, so every text can still be encoded and read back.

    Args:
        tokenizer: byte-level BPE.
        texts: prompts included; up to `MOST_CHARACTERS` are read.
        coverage: in (0, 1].

    Raises:
        ConfigError: the coverage is out of range, or the tokenizer has a token a symbol.
        DataError: there is no text.

    Source: Tang et al., "Rethinking Optimization and Architecture for Tiny Language Models", arXiv 2402.02791: the
        most frequent tokens; here their coverage is what encoding anew finds, since a text without one of its tokens
        has others in its place.
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"coverage should be above 0 and at most 1, received {coverage}")
    if tokenizer.symbols is not None:
        raise ConfigError("a tokenizer with a token for each symbol has no token to spare")
    words, num_bytes = _words(texts)
    if not words:
        raise DataError("there is no text to measure the vocabulary on")
    model = json.loads(tokenizer.backend.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(merge) for merge in model["merges"]]
    parents = {a + b: (a, b) for a, b in reversed(merges)}
    spans, counts = _spans(tokenizer, words), Counter[str]()
    names = {index: name for name, index in vocabulary.items()}
    for word, ids in zip(words, tokenizer.encode_batch(list(words), start=False), strict=True):
        for index in ids:
            counts[names[index]] += words[word]
    order = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if name in parents]
    low, high = 0, len(order)
    while low < high:  # few of them that cover enough: a token more hardly ever covers less
        middle = (low + high) // 2
        candidate = _part(tokenizer, order[:middle], parents)
        if _coverage(spans, _spans(candidate, words), words) >= coverage:
            high = middle
        else:
            low = middle + 1
    found = _part(tokenizer, order[:low], parents)
    after, ids = _spans(found, words), json.loads(found.backend.to_str())["model"]["vocab"]
    return Shrunk(
        tokenizer=found,
        kept=tuple(vocabulary[name] for name in sorted(ids, key=ids.__getitem__)),
        coverage=_coverage(spans, after, words),
        tokens_before=sum(len(spans[word]) * count for word, count in words.items()),
        tokens_after=sum(len(after[word]) * count for word, count in words.items()),
        num_bytes=num_bytes,
    )


def _words(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """The pieces within which tokens are merged, with how often they are there; and the bytes of the texts."""
    found, read, num_bytes = Counter[str](), 0, 0
    for text in texts:
        if read > MOST_CHARACTERS:
            break
        for piece in pieces_of(" " + text if text else ""):
            found.update(Tokenizer.words(piece))
        read, num_bytes = read + len(text), num_bytes + len(text.encode())
    return found, num_bytes


def _part(tokenizer: Tokenizer, names: Sequence[str], parents: Mapping[str, tuple[str, str]]) -> Tokenizer:
    """A tokenizer of the specials, the bytes, some merged tokens and those they are merged from."""
    wanted, open_ = set(), list(names)
    while open_:
        name = open_.pop()
        if name in parents and name not in wanted:
            wanted.add(name)
            open_ += parents[name]
    description: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    model = description["model"]
    kept = [name for name in sorted(model["vocab"], key=model["vocab"].__getitem__) if _stays(name, wanted, parents)]
    model["vocab"] = {name: index for index, name in enumerate(kept)}
    model["merges"] = [[a, b] for a, b in model["merges"] if {a, b, a + b} <= model["vocab"].keys()]
    return Tokenizer.of_description(description)


def _stays(name: str, wanted: set[str], parents: Mapping[str, tuple[str, str]]) -> bool:
    return name in wanted or name not in parents or name in SPECIALS


def _spans(tokenizer: Tokenizer, words: Iterable[str]) -> dict[str, Spans]:
    """Where the tokens of each word lie, in bytes."""
    words, found = list(words), {}
    names = {index: name for name, index in tokenizer.backend.get_vocab().items()}  # a character of a name is a byte
    for word, ids in zip(words, tokenizer.encode_batch(words, start=False), strict=True):
        ends = list(accumulate(len(names[index]) for index in ids))
        found[word] = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return found


def _coverage(before: Mapping[str, Spans], after: Mapping[str, Spans], words: Mapping[str, int]) -> float:
    """Share of the old tokens that are still one token."""
    kept = sum(count * len({*before[word]} & {*after[word]}) for word, count in words.items())
    return kept / sum(count * len(before[word]) for word, count in words.items())
