"""Endless batches of similar length, whose position is part of a checkpoint."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64, Integer
from torch import Tensor

from manta.errors import CheckpointError, ConfigError
from manta.text.corpus import Corpus
from manta.text.example import CONSENSUS
from manta.text.tokenizers import NULL


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token rows of similar length; all tensors are int64."""

    prompt: Int[Tensor, "b p"]
    """Prompt tokens, padded with NULL at the right; p may be 0."""
    text: Int[Tensor, "b n"]
    """Text tokens, padded with NULL at the right to a multiple of the loader's `multiple`."""
    tag: Int[Tensor, " b"]
    """0 for untouched human targets, 1 for consensus targets."""
    index: Int[Tensor, " b"]
    """Rows of the corpus."""
    prompt_lengths: Int[Tensor, " b"]
    """Prompt tokens without padding."""
    text_lengths: Int[Tensor, " b"]
    """Text tokens without padding."""
    task: Int[Tensor, " b"] | None = None
    """Numbers of the rows' tasks, where the corpus keeps tasks."""

    def __len__(self) -> int:
        """The number of rows b."""
        return len(self.index)

    @property
    def num_elements(self) -> int:
        """Text tokens of the batch, padding left out: its size in training."""
        return int(self.text_lengths.sum())

    def rows(self, rows: Int[Tensor, " k"]) -> "Batch":
        """Some of its rows, as wide as before."""
        return self._with(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return self._with(lambda part: part.to(device, non_blocking=True))

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: change(part) for name, part in parts.items() if part is not None})


def collate(corpus: Corpus, rows: Integer[np.ndarray, " b"], multiple: int) -> Batch:
    """Reads rows of a corpus into one padded batch.

    Args:
        corpus: the corpus.
        rows: b ≥ 1 rows of it.
        multiple: the text width is rounded up to a multiple of it.
    """
    texts = [corpus.text(int(row)) for row in rows]
    prompts = [corpus.prompt(int(row)) for row in rows]
    width = -(-max(map(len, texts)) // multiple) * multiple
    return Batch(
        prompt=_padded(prompts, max(map(len, prompts))),
        task=None if (task := corpus.task(rows)) is None else torch.from_numpy(task),
        text=_padded(texts, width),
        tag=torch.from_numpy(corpus.tags[rows].astype(np.int64)),
        index=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        prompt_lengths=torch.tensor([len(row) for row in prompts]),
        text_lengths=torch.tensor([len(row) for row in texts]),
    )


def permutation(positions: Integer[np.ndarray, " k"], size: int, key: int) -> Int64[np.ndarray, " k"]:
    """The values of a pseudo-random permutation of 0 … size−1 at some positions, without storing the permutation.

    A balanced Feistel network over the smallest even number of bits that holds `size`, walked along its cycles until
    the value lies below `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). NumPy's own
    permutation holds every position in memory.

    Args:
        positions: integers in [0, size).
        size: length of the permutation.
        key: which permutation, in [0, 2**64).

    Returns:
        Distinct integers in [0, size) for distinct positions.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & low
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & low)
        return (left << half) | right

    values = network(np.asarray(positions, dtype=np.uint64))
    while len(outside := np.flatnonzero(values >= size)):
        values[outside] = network(values[outside])
    return values.astype(np.int64)


class Loader:
    """An endless iterator of batches of similar length, exact to resume.

    Each epoch visits every row once in an order drawn from (seed, epoch), `pool` rows at a time: the rows of a pool are
    sorted by length, cut into batches of at most `batch_tokens`, and the batches are shuffled. The order is computed,
    never stored, so memory holds one pool whatever the size of the corpus, and a position is three integers.

    With `tag_share` s, and rows of both tags in the corpus, an epoch of N rows draws round(sN) consensus rows and the
    rest human ones. Either kind goes through all its rows before any comes again, from one epoch into the next.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_tokens: int,
        multiple: int = 1,
        seed: int = 0,
        pool: int = 4096,
        tag_share: float | None = None,
        rows: Integer[np.ndarray, " k"] | None = None,
    ) -> None:
        """Starts at the first batch of epoch 0.

        Args:
            corpus: what to read.
            batch_tokens: most tokens of a batch, b·(n + p) with padding; a single row may exceed it.
            multiple: text widths are multiples of it.
            seed: of the order.
            pool: rows sorted together; more give less padding, and an order less random.
            tag_share: share of consensus rows, in [0, 1]; None for the corpus's own.
            rows: the rows to read, at least one, each once; None for all.

        Raises:
            ConfigError: a number out of range.
        """
        if batch_tokens < 1 or multiple < 1 or pool < 1 or seed < 0:
            raise ConfigError(
                f"batch_tokens={batch_tokens}, multiple={multiple}, pool={pool}, seed={seed}: "
                "give a seed of at least 0 and at least 1 of the others"
            )
        if tag_share is not None and not 0 <= tag_share <= 1:
            raise ConfigError(f"tag_share is {tag_share}; give a share from 0 to 1")
        self.corpus, self._members = corpus, rows
        self._size = len(corpus) if rows is None else len(rows)
        self._batch_tokens, self._multiple, self._seed, self._pool = batch_tokens, multiple, seed, pool
        self._tag_share = tag_share
        self._by_tag = self._rows_by_tag() if tag_share is not None else None
        self.epoch = 0
        """Whole passes over the data so far."""
        self._pool_index = self._batch_index = 0
        self._batches: list[np.ndarray] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The loader itself: iterating again goes on, it does not begin anew."""
        return self

    def __next__(self) -> Batch:
        """The next batch; there always is one."""
        if self._batches is None:
            self._batches = self._pool_batches()
        batch = collate(self.corpus, self._batches[self._batch_index], self._multiple)
        self._advance(1, len(self._batches))
        return batch

    def skip(self, count: int) -> None:
        """Leaves batches out without reading their tokens: the next is the one that `count` calls later would come.

        Args:
            count: batches, at least 0.
        """
        assert count >= 0
        while count:
            if self._batches is None:
                self._batches = self._pool_batches()
            here = min(count, len(self._batches) - self._batch_index)
            self._advance(here, len(self._batches))
            count -= here

    def _advance(self, count: int, in_pool: int) -> None:
        """Goes on by at most what the present pool still has of its batches."""
        self._batch_index += count
        if self._batch_index == in_pool:
            self._batches, self._batch_index = None, 0
            self._pool_index += 1
            if self._pool_index * self._pool >= self._size:
                self.epoch, self._pool_index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON values: `load_state_dict` of it continues with the very next batch."""
        return {
            "epoch": self.epoch,
            "pool_index": self._pool_index,
            "batch_index": self._batch_index,
            "settings": self._settings(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a position of a loader with the same settings over the same rows.

        Raises:
            CheckpointError: the state is of another order.
        """
        try:
            theirs = state["settings"]
            position = int(state["epoch"]), int(state["pool_index"]), int(state["batch_index"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the loader's state is damaged ({error!r}); resume from an earlier checkpoint"
            ) from error
        if wrong := [f"{k}={theirs.get(k)} then, {v} now" for k, v in self._settings().items() if theirs.get(k) != v]:
            raise CheckpointError(
                f"the data order changed since the checkpoint ({'; '.join(wrong)}); resume with the same"
            )
        self.epoch, self._pool_index, self._batch_index = position
        self._batches = None

    def _settings(self) -> dict[str, Any]:
        members = self._members
        digest = None if members is None else hashlib.sha256(members.astype("<i8").tobytes()).hexdigest()
        return {
            "rows": len(self.corpus),
            "members": digest,
            "text_tokens": self.corpus.report.text_tokens,
            "batch_tokens": self._batch_tokens,
            "multiple": self._multiple,
            "seed": self._seed,
            "pool": self._pool,
            "tag_share": self._tag_share,
        }

    def _rows_by_tag(self) -> tuple[np.ndarray, np.ndarray] | None:
        consensus = np.asarray(self.corpus.tags) == CONSENSUS
        consensus = consensus if self._members is None else consensus[self._members]
        human, agreed = np.flatnonzero(~consensus), np.flatnonzero(consensus)
        return (human, agreed) if len(human) and len(agreed) else None

    def _key(self, *parts: int) -> int:
        return int(np.random.SeedSequence([self._seed, *parts]).generate_state(1, np.uint64)[0])

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions of this epoch."""
        size = self._size
        slots = permutation(positions, size, self._key(_EPOCH, self.epoch))
        if self._by_tag is None:
            return slots
        quota = round((self._tag_share or 0.0) * size)
        rows = np.empty_like(slots)
        for tag, chosen, first, count in ((0, slots >= quota, quota, size - quota), (1, slots < quota, 0, quota)):
            rows[chosen] = self._drawn(tag, self.epoch * count + slots[chosen] - first)
        return rows

    def _drawn(self, tag: int, draws: np.ndarray) -> np.ndarray:
        """The rows of one tag at some places of its own endless stream of permutations."""
        assert self._by_tag is not None
        members = self._by_tag[tag]
        rounds, places = np.divmod(draws, len(members))
        rows = np.empty_like(draws)
        for number in np.unique(rounds):
            here = rounds == number
            rows[here] = members[permutation(places[here], len(members), self._key(_TAG, tag, int(number)))]
        return rows

    def _pool_batches(self) -> list[np.ndarray]:
        """The batches of the present pool, in their shuffled order."""
        start = self._pool_index * self._pool
        rows = self._rows(np.arange(start, min(start + self._pool, self._size)))
        rows = rows if self._members is None else self._members[rows]
        texts, prompts = self.corpus.lengths(rows)
        texts = -(-texts // self._multiple) * self._multiple
        order = np.lexsort((prompts, texts))
        rows, texts, prompts = rows[order], texts[order], prompts[order]
        batches, first, width, prompt_width = [], 0, 0, 0
        for i in range(len(rows)):
            width, prompt_width = max(width, int(texts[i])), max(prompt_width, int(prompts[i]))
            if i > first and (i + 1 - first) * (width + prompt_width) > self._batch_tokens:
                batches.append(rows[first:i])
                first, width, prompt_width = i, int(texts[i]), int(prompts[i])
        batches.append(rows[first:])
        shuffled = np.random.default_rng(self._key(_POOL, self.epoch, self._pool_index)).permutation(len(batches))
        return [batches[i] for i in shuffled]


_ROUNDS = 6
_EPOCH, _POOL, _TAG = range(3)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _padded(rows: list[np.ndarray], width: int) -> Int[Tensor, "b n"]:
    out = np.full((len(rows), width), NULL, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(out)
