"""What a left-to-right model reads of a request, with how each of its words is chosen, and what it tells meanwhile."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manta.autoregressive import Chooser, Round, Watch
from manta.families.canvas import Piece
from manta.families.events import UNFINISHED, Event, EventKind
from manta.families.observer import Observer
from manta.runtime import make_generator
from manta.text import MASK, Tokenizer


class Line(NamedTuple):
    """A request in tokens, and how its words are chosen."""

    prompt: list[int]
    """Its tokens."""
    seed: int
    """Of what is drawn."""
    temperature: float = 0.0
    """See `Chooser`."""
    top_k: int | None = None
    """See `truncate`."""
    top_p: float = 1.0
    """See `truncate`."""
    pieces: tuple[Piece, ...] = ()
    """What is given of a text with blanks, and the blanks; none of a text that is written from nothing."""

    @property
    def drawn(self) -> tuple[float, int | None, float]:
        """What lines have to share to be chosen from at once."""
        return self.temperature, self.top_k, self.top_p

    def chooser(self, seeds: Sequence[int]) -> Chooser:
        """Of rows that are chosen from as this one is."""
        generators = [make_generator(seed) for seed in seeds] if self.temperature > 0 else ()
        return Chooser(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, generators=generators)


class Progress:
    """What is told of one text while it is written.

    Args:
        exactly: white space around it stays.
    """

    def __init__(self, *, exactly: bool = False) -> None:
        self.exactly = exactly
        self.words: list[int] = []
        self.chances: list[float] = []
        self.nfe, self.processed = 1, 0

    def add(self, step: Round, row: int) -> None:
        """What a call has committed of it."""
        self.words += step.words[row]
        self.chances += step.chances[row]
        self.nfe += step.calls if step.words[row] else 0
        self.processed += step.processed[row]

    def event(self, kind: EventKind, index: int, end: int, tokenizer: Tokenizer) -> Event:
        """The text so far, without what ends it."""
        words = self.words[:-1] if self.words[-1] == end else self.words
        sure, whole = sum(self.chances) / len(self.chances), tokenizer.whole(words)
        text, ahead = (
            said if self.exactly else said.strip()
            for said in (tokenizer.decode(words), "" if kind == "done" else tokenizer.decode(words[:whole]))
        )
        return Event(
            kind,
            index,
            text,
            tuple(words),
            1.0,
            sure,
            self.nfe,
            self.processed,
            chances=tuple(self.chances[: len(words)]),
            standing=len(ahead.rstrip(UNFINISHED)),
        )


def watched_by(observer: Observer) -> Watch | None:
    """What an observer sees and says of the next word, in the terms of a whole text; None where it changes nothing."""
    if type(observer) is Observer:
        return None

    def watch(logits: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        with torch.inference_mode(False):  # whoever watches may ask for a gradient
            told, longest = logits.clone()[:, None], max(map(len, written))
            rows = [[*words, *[MASK] * (longest + 1 - len(words))] for words in written]
            nothing = torch.zeros_like(told).expand(-1, longest, -1)
            return observer.logits(torch.cat([nothing, told], 1), torch.tensor(rows, device=logits.device))[:, -1]

    return watch
