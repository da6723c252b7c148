"""A text with blanks, filled left to right: what is asked, put in the terms of the decoder, and told again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manta.autoregressive import Behind, Drafter, decode
from manta.autoregressive.filling import SPANS, Counted, Filling, Gap, Stage, Vocabulary, drawn, likeliest
from manta.errors import RequestError, UsageError
from manta.families.batching import ROWS
from manta.families.cached import CachedReader
from manta.families.canvas import Piece, filled, parse_template
from manta.families.events import UNFINISHED, Event, EventKind, GenerateOptions
from manta.families.next_words import Line
from manta.families.options import given, spelled
from manta.runtime import make_generator
from manta.text import Tokenizer

ReaderOf = Callable[[list[Line], int, bool], CachedReader]
"""`reader_of(rows, room, drafting)`: the model behind its cache, the rows' prompts read."""


def pieces_to_fill(infill: str, tokenizer: Tokenizer, room: int, options: GenerateOptions) -> tuple[Piece, ...]:
    """A text with blanks, cut at them.

    Args:
        infill: of a request.
        tokenizer: of the model.
        room: most tokens of the text.
        options: of the request.

    Raises:
        RequestError: words to change instead of blanks, or a text that is too long; see `parse_template`.
        UsageError: options that do not go with blanks.
    """
    for name in ("max_tokens", "pattern", "schema"):
        if name in given(options):
            raise UsageError(f"{spelled(name)} is for texts that are written from nothing; leave it out")
    pieces = parse_template(infill, tokenizer, rate=1, max_cells=room + 1).pieces
    if any(piece.old for piece in pieces):
        raise RequestError(
            "a left-to-right model fills blanks ___; words [[…]] to change are for a Manta-LM and masked models"
        )
    return pieces


@dataclass
class Filler:
    """Fills the blanks of one text after another."""

    tokenizer: Tokenizer
    """Of the model."""
    begin: int
    """Token before the first of a text."""
    end: int
    """Token that ends a text."""
    reader_of: ReaderOf
    """The model behind its cache."""
    drafter: Drafter | None
    """Guesses words behind the last that is given."""
    num_drafts: int
    """Most words that it guesses a call."""
    width: int
    """Words that the model tells; those beyond the tokenizer's are none."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Which words may stand where."""
        said = [*self.tokenizer.bytes_of_tokens, *[b""] * self.width][: self.width]
        barred = torch.tensor([not token for token in said])
        if 0 <= self.end < len(said):
            barred[self.end] = True
        return Vocabulary(self.begin, barred, torch.tensor([token.startswith(b" ") for token in said]), said)

    def fill(self, index: int, line: Line) -> Iterator[Event]:
        """The events of a text with blanks.

        Blanks between given words are filled by `autoregressive.filling`: by a beam at temperature 0, else by draws. A
        blank behind which nothing is given is written as any text is: to its end, or as long as the blank says.

        Args:
            index: of the request.
            line: it, with its pieces.
        """
        pieces = line.pieces
        told = [self.tokenizer.encode(piece.encoded, start=k == 0) for k, piece in enumerate(pieces)]
        is_open, ends = not pieces[-1].text, [self.end] if self.end >= 0 else []
        closed = pieces[:-2] if is_open else pieces[:-1]
        gaps = [Gap(piece.blank, self._spaced(k, piece), told[k + 1]) for k, piece in enumerate(closed)]
        if gaps and not is_open:
            gaps[-1] = Gap(gaps[-1].most, gaps[-1].spaced, [*gaps[-1].behind, *ends])
        text, calls, places = Filling(tuple(told[0]), chances=(1.0,) * len(told[0])), 1, 0
        if gaps:
            room = sum(map(len, told)) + sum(piece.blank for piece in pieces) + 2
            reader = Counted(self.reader_of([line] * SPANS, room + ROWS, False))
            for stage in self._filled(reader, told[0], gaps, line):
                text, calls, places = stage.texts[0], 1 + reader.calls, reader.places
                done = stage.settled and len(text.fills) == len(gaps) and not is_open
                yield self._event("done" if done else "draft", index, line, text, calls, places)
        if is_open:
            yield from self._written_on(index, line, text, calls, places)

    def _spaced(self, k: int, piece: Piece) -> bool:
        """Whether the blank behind the k-th piece begins with a space: its own, or what a text is begun with."""
        first = k == 0 and not piece.text and self.vocabulary.spaced[self.tokenizer.encode("a", start=True)[0]]
        return piece.joined or bool(first)

    def _filled(self, reader: Counted, first: list[int], gaps: list[Gap], line: Line) -> Iterator[Stage]:
        """The text word by word."""
        if line.temperature == 0:
            return likeliest(reader, first, gaps, self.vocabulary, SPANS)
        seeds = torch.randint(2**62, (SPANS + 1,), generator=make_generator(line.seed)).tolist()
        how = {"temperature": line.temperature, "top_k": line.top_k, "top_p": line.top_p}
        return drawn(reader, first, gaps, self.vocabulary, [make_generator(seed) for seed in seeds], **how)

    def _written_on(self, index: int, line: Line, text: Filling, calls: int, places: int) -> Iterator[Event]:
        """The last blank, behind which nothing is given."""
        *_, piece, _ = line.pieces
        room = len(text.words) + piece.blank + self.num_drafts + ROWS
        cached = self.reader_of([line], room, self.num_drafts > 0)
        reader = Behind(cached, [[self.begin, *text.words]], cached.multiple)
        calls, places = calls + (calls > 1) + reader.calls, places + reader.places
        words: list[int] = []
        chances: list[float] = []

        def hold(logits: Tensor, written: Any, drafts: Any) -> Tensor:
            if not written[0]:
                logits[:, 0].masked_fill_(~self.vocabulary.spaced.to(logits.device), -torch.inf)
            return logits

        for step in decode(
            reader,
            line.chooser([line.seed]),
            [line.prompt],
            begin=self.begin,
            end=self.end,
            max_tokens=piece.blank,
            drafter=self.drafter if self.num_drafts else None,
            num_drafts=self.num_drafts,
            multiple=cached.multiple,
            hold=hold if piece.joined else None,
        ):
            words, chances = words + step.words[0], chances + step.chances[0]
            calls, places = calls + 1, places + step.processed[0]
            over = words[-1] == self.end
            kept = words[:-1] if over else words
            so_far = text.grown(kept, chances[: len(kept)], (), text.score)
            done = over or len(words) == piece.blank
            yield self._event("done" if done else "draft", index, line, so_far, calls, places)

    def _event(self, kind: EventKind, index: int, line: Line, text: Filling, calls: int, places: int) -> Event:
        """What is told of a text; of a draft nothing stands but what is written on behind the last given word."""
        on = len(text.fills) == len(line.pieces) - 1 and not line.pieces[-1].text

        def said(fills: list[tuple[int, ...]]) -> str:
            some = [*fills, *[()] * (len(line.pieces) - len(fills))]
            return filled(line.pieces, some, lambda fill, start: self.tokenizer.decode(fill, start=start))

        ahead = ""
        if kind == "draft" and on:
            whole = self.tokenizer.whole(text.fills[-1])
            ahead = said([*text.fills[:-1], text.fills[-1][:whole]]).rstrip(UNFINISHED)
        length = len(text.words) - (self.end >= 0 and text.words[-1:] == (self.end,))
        words, chances, now = text.words[:length], text.chances[:length], said(list(text.fills))
        sure = sum(chances) / max(1, length)
        return Event(kind, index, now, words, 1.0, sure, calls, places, chances=chances, standing=len(ahead))
