"""Stable hashes of text, the split they decide, and a compact set of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from manta.errors import UsageError

SPLITS = ("train", "dev", "test")


def digest(*parts: str | None) -> int:
    """A 64-bit blake2b hash of a sequence of strings, the same on every machine and in every run.

    Each part is preceded by its length, so that `("ab", "c")` and `("a", "bc")` differ; None differs from "".

    Args:
        parts: strings or None.

    Returns:
        An integer in [0, 2**64).
    """
    hasher = blake2b(digest_size=8)
    for part in parts:
        data = b"" if part is None else part.encode("utf-8")
        hasher.update((-1 if part is None else len(data)).to_bytes(8, "little", signed=True))
        hasher.update(data)
    return int.from_bytes(hasher.digest(), "little")


def split_of(key: str) -> str:
    """The split of an example whose data has no official one: 90% train, 5% dev, 5% test.

    Args:
        key: of the example (`Example.key`).

    Returns:
        "train", "dev" or "test".
    """
    share = digest(key) / 2**64
    return "train" if share < 0.90 else "dev" if share < 0.95 else "test"


@dataclass(frozen=True)
class Part:
    """One of several parts of a split, of about equal size and without a key in common."""

    split: str
    """train, dev or test."""
    number: int = 1
    """1 … of."""
    of: int = 1
    """How many parts the split has."""

    def holds(self, key: str) -> bool:
        """Whether an example lies in it.

        Args:
            key: as for `split_of`.
        """
        return digest("part", key) % self.of == self.number - 1

    def disjoint(self, other: "Part") -> bool:
        """Whether two parts are known to have no example in common."""
        return self.split != other.split or (self.of == other.of and self.number != other.number)


def part_of(split: str) -> Part:
    """Read the name of a split, or of a part of one: `train`, or `train:2/3` for the second third of it.

    Raises:
        UsageError: it names neither.
    """
    found = re.fullmatch(r"(\w+)(?::(\d{1,9})/(\d{1,9}))?", split)
    if not found or found[1] not in SPLITS:
        raise UsageError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}, or a part such as train:1/2")
    part = Part(found[1], int(found[2] or 1), int(found[3] or 1))
    if not 1 <= part.number <= part.of:
        raise UsageError(f"{split!r} is no part: write {found[1]}:K/N with K from 1 to N")
    return part


class HashIndex:
    """A map from 64-bit hashes to the order in which they were first seen, in 12 bytes a distinct hash.

    Sorted runs of geometrically growing size are merged as they fill (a log-structured merge tree), so that adding
    m hashes costs O(m log² m) vectorised operations. The peak while two runs merge is three times the size at rest.
    Two different texts share a hash with probability about n²/2⁶⁵: 3·10⁻⁶ for ten million texts.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def __len__(self) -> int:
        """The number of distinct hashes seen."""
        return self._size

    def add(self, hashes: Sequence[int]) -> tuple[Int64[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
        """Adds hashes and says which are new.

        Args:
            hashes: m integers in [0, 2**64); they may repeat.

        Returns:
            The rank of each hash in order of first sight (0, 1, 2, …), and True where it was seen for the first time.
        """
        keys = np.asarray(hashes, dtype=np.uint64)
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        ranks = self._find(unique)
        fresh = np.flatnonzero(ranks < 0)
        by_sight = fresh[np.argsort(first[fresh])]
        ranks[by_sight] = self._size + np.arange(len(by_sight))
        self._size += len(by_sight)
        is_new = np.zeros(len(keys), dtype=bool)
        is_new[first[fresh]] = True
        if len(fresh):
            self._push(unique[fresh], ranks[fresh].astype(np.uint32))
        return ranks[inverse], is_new

    def _find(self, keys: UInt64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        ranks = np.full(len(keys), -1, dtype=np.int64)
        for run, values in self._runs:
            at = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            hit = run[at] == keys
            ranks[hit] = values[at[hit]]
        return ranks

    def _push(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._runs.append((keys, values))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            (a, a_values), (b, b_values) = self._runs.pop(), self._runs.pop()
            merged = np.concatenate([a, b])
            order = np.argsort(merged, kind="stable")
            self._runs.append((merged[order], np.concatenate([a_values, b_values])[order]))
