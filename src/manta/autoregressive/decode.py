"""One loop that writes left to right: a word a call, or as many as a draft had right."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.autoregressive.chooser import Chooser
from manta.errors import UsageError
from manta.runtime import check_logits


@dataclass(frozen=True)
class Told:
    """What one call of a causal model tells of k places of each row."""

    logits: Float[Tensor, "b k v"]
    """Of the word after each place."""
    hidden: Float[Tensor, "b k d"]
    """What they were read from."""


@runtime_checkable
class Reader(Protocol):
    """A causal model behind its cache."""

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        """Read k tokens of each row, which go to the places from its `start` on and replace what was read there.

        What is told of a place depends, bit for bit, on the tokens up to it alone: not on how many are read at once,
        nor on those behind it, nor on the other rows. Without a drafter all rows have the same start.
        """
        ...


@dataclass(frozen=True)
class Drafting:
    """What a drafter may go by: the text so far of every row, and what the model last told."""

    prompts: Sequence[Sequence[int]]
    """Tokens of each row's prompt."""
    written: Sequence[Sequence[int]]
    """Words of each row so far."""
    hidden: Float[Tensor, "b d"] | None
    """What each row's last word was read from; None before the first call."""
    counts: Sequence[int]
    """Most words that are of use to each row; 0 once it has ended."""
    choose: Chooser
    """Noise of the places ahead."""


class Drafter(nn.Module, ABC):
    """Guesses the words that a causal model will choose next. A wrong guess costs time and never changes a text."""

    def begin(self, memory: Any) -> None:
        """Before the first draft of a batch.

        Args:
            memory: what the model reads its prompts from.
        """

    @abstractmethod
    def draft(self, told: Drafting) -> list[list[int]]:
        """Guesses for each row, at most `counts` of them."""


@dataclass(frozen=True)
class Round:
    """What one call has committed, a row each."""

    words: list[list[int]]
    """Words from left to right, the one that ends a text among them; none for rows that had ended before."""
    chances: list[list[float]]
    """Probability of each of them, at temperature 1."""
    processed: list[int]
    """Places computed for the row; 0 once it has ended."""
    calls: int = 1
    """Calls that it took: more than one where what was written had to be read anew before."""


Hold = Callable[[Tensor, Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]
"""`hold(logits "b k v", written, drafts) -> logits`: of the places behind what is written and behind each draft."""

Watch = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
"""`watch(logits "b v", written) -> logits`: the next word's logits, and the words before it."""


@torch.inference_mode()
def decode(
    reader: Reader,
    choose: Chooser,
    prompts: Sequence[Sequence[int]],
    *,
    begin: int,
    end: int,
    max_tokens: int,
    drafter: Drafter | None = None,
    num_drafts: int = 0,
    multiple: int = 1,
    given: Sequence[Sequence[int | None]] | None = None,
    watch: Watch | None = None,
    hold: Hold | None = None,
) -> Iterator[Round]:
    """Write rows left to right behind a cache; yields what each call commits, until every row has ended.

        drafts ← guesses of the next words
        logits ← read (last word, drafts)                           one call, causal
        word_j ← choose(logits_j, noise of its place)               j = 0, 1, …
        commit word_0, and word_{j+1} as long as draft_j = word_j for all before it

    Each committed word was chosen from logits that saw exactly the words before it, so the text is, word for word, the
    one that is written without drafts: by the reader's promise to the last bit. At worst a call commits one word.

    Args:
        reader: the model, before anything is read.
        choose: how a word is chosen, with the noise of every place ahead.
        prompts: tokens of each row's prompt, for the drafter.
        begin: token before the first word.
        end: token that ends a text; a negative one never comes.
        max_tokens: most words of a row.
        drafter: guesses words; None writes one a call.
        num_drafts: most words drafted a call and row.
        multiple: rows times places of a call are a multiple of it; places that fill a call up are computed and not
            used.
        given: of each row, words that stand in place of chosen ones, None where the model writes; `max_tokens` long.
        watch: sees the logits of the next word and the words before it, and may change them; goes without a drafter.
        hold: takes from the logits what must not come.

    Raises:
        UsageError: drawing without a generator for every row, or a watch beside a drafter.
        ModelError: logits that no word can be chosen from.

    Source: Leviathan et al., "Fast inference from transformers via speculative decoding", arXiv 2211.17192, with the
        randomness made explicit, so that the text and not only its distribution is the same.
    """
    rows, multiple = len(prompts), multiple // math.gcd(len(prompts), multiple)
    choose.check(rows)
    if watch is not None and drafter is not None:
        raise UsageError("what is watched is written word by word; leave the drafter out")
    written: list[list[int]] = [[] for _ in prompts]
    live, hidden, call = [True] * rows, None, 1
    while any(live):
        call += 1
        starts = [len(words) for words in written]
        if drafter is None:  # each call commits a word, so rows that have ended can go along, all at the same place
            starts = [max(starts)] * rows
        for row, start in enumerate(starts):
            choose.forget(row, start)
        drafts: list[list[int]] = [[] for _ in prompts]
        if drafter is not None:
            counts = [
                min(num_drafts, max_tokens - 1 - start) if alive else 0
                for start, alive in zip(starts, live, strict=True)
            ]
            drafts = drafter.draft(Drafting(prompts, written, hidden, counts, choose))
        lines = [[*(words[-1:] or [begin]), *draft] for words, draft in zip(written, drafts, strict=True)]
        used = max(map(len, lines))
        width = -(-used // multiple) * multiple
        told = reader([line + line[-1:] * (width - len(line)) for line in lines], starts)
        logits = told.logits[:, :used].float()
        check_logits(logits, call)
        if watch is not None:
            logits = watch(logits[:, 0], written)[:, None]
        if hold is not None:
            logits = hold(logits, written, drafts)
        words = choose.words(logits, starts)
        chances = logits.softmax(-1).gather(-1, words[..., None])[..., 0].tolist()
        fresh = [
            _verified(chosen, draft, kept, end, max_tokens - start) if alive else []
            for chosen, draft, kept, start, alive in zip(
                words.tolist(), drafts, _kept(given, starts), starts, live, strict=True
            )
        ]
        last = torch.tensor([max(0, len(found) - 1) for found in fresh], device=told.hidden.device)
        hidden = told.hidden[torch.arange(rows, device=last.device), last]
        for row, found in enumerate(fresh):
            if found:
                written[row] += found
                live[row] = found[-1] != end and len(written[row]) < max_tokens
        sure = [row[: len(found)] for row, found in zip(chances, fresh, strict=True)]
        yield Round(fresh, sure, [width if found else 0 for found in fresh])


def _kept(given: Sequence[Sequence[int | None]] | None, starts: Sequence[int]) -> list[Sequence[int | None]]:
    return [[] for _ in starts] if given is None else [row[start:] for row, start in zip(given, starts, strict=True)]


def _verified(
    chosen: Sequence[int], draft: Sequence[int], kept: Sequence[int | None], end: int, most: int
) -> list[int]:
    """The chosen words up to the first that a draft does not go on with, or that ends the text."""
    found: list[int] = []
    for place, word in enumerate(chosen[:most]):
        if place < len(kept) and kept[place] is not None:
            word = kept[place]
        found.append(word)  # pyright: ignore[reportArgumentType]
        if word == end or place >= len(draft) or draft[place] != word:
            break
    return found
