"""The canvas of a request: which tokens are given, where the model may write, and what it begins with there."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import RequestError
from manta.families.batching import padded_prompts
from manta.families.events import GenerateOptions, Request
from manta.families.options import given, spelled
from manta.runtime import make_generator
from manta.text import MASK, NULL, Tokenizer

DEFAULT_BLANK = 8
"""Tokens that a blank `___` may become, unless it says otherwise."""

SPARE = 4
"""Words to change have a place more for every so many of their tokens, and two at least, so that they may grow."""

_BLANK = re.compile(r"_{3,}(?:\{(\d+)\})?|\[\[((?:(?!\[\[|\]\](?!\])).)+)\]\]", re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """What is given of a text to fill, up to a blank or the end."""

    text: str
    """As the request has it, white space included."""
    blank: int
    """Tokens of the blank after it; 0 at the end."""
    old: tuple[int, ...] = ()
    """Tokens of the words that stand there and may change; none in a blank to fill."""
    stated: bool = False
    """The request says how many tokens the blank takes at most."""

    @property
    def joined(self) -> bool:
        """A space before the blank belongs to the word in it, as byte-level tokens carry their leading space."""
        return self.blank > 0 and self.text.endswith(" ")

    @property
    def encoded(self) -> str:
        """What of the text is given to the model: all but a space that the blank takes over."""
        return self.text[:-1] if self.joined else self.text


@dataclass(frozen=True)
class Template:
    """A text with blanks, as tokens: MASK where the model writes."""

    tokens: Int64[Tensor, "n"]
    """Known tokens, MASK in blanks, NULL after the end; a whole number of latents long."""
    pieces: tuple[Piece, ...]
    """What is given, and the blanks between."""
    old: Int64[Tensor, "n"] | None = None
    """The same with the words that may change in their places, NULL where they have room to grow; None where the blanks
    are to be filled."""

    @property
    def known(self) -> Bool[Tensor, "n"]:
        """True where a token is given, the end included."""
        return self.tokens != MASK

    @property
    def stated(self) -> Bool[Tensor, "n"]:
        """True in the blanks whose size the request states."""
        stated = torch.zeros_like(self.tokens, dtype=torch.bool)
        for place, piece in self._blanks.items():
            stated[place] = self.pieces[piece].stated
        return stated

    @property
    def _blanks(self) -> dict[int, int]:
        """The piece whose blank each place to be written belongs to."""
        pieces = [index for index, piece in enumerate(self.pieces) for _ in range(piece.blank)]
        return dict(zip((self.tokens == MASK).nonzero()[:, 0].tolist(), pieces, strict=True))

    def text(self, tokens: Sequence[int], tokenizer: Tokenizer, origin: Sequence[int] | None = None) -> str:
        """The text with its blanks filled: what is given stands in it as it was given.

        Args:
            tokens: the canvas, with a word, NULL or (undecided) MASK in each place of a blank.
            tokenizer: of the model.
            origin: of a canvas whose places have moved, the place of this template that each has come from.
        """
        fills: list[list[int]] = [[] for _ in self.pieces]
        blanks = self._blanks
        for place, token in zip(range(len(tokens)) if origin is None else origin, tokens, strict=True):
            if place in blanks:
                fills[blanks[place]].append(token)

        def decode(fill: list[int], start: bool) -> str:
            return tokenizer.decode([token for token in fill if token not in (NULL, MASK)], start=start)

        return filled(self.pieces, fills, decode)


def filled(pieces: Sequence[Piece], fills: Sequence[Sequence[int]], decode: Callable[[list[int], bool], str]) -> str:
    """Put the words of blanks between what is given.

    Args:
        pieces: see `pieces_of`.
        fills: tokens of the blank after each piece; none after the last.
        decode: `decode(tokens, start)`: what the tokens of a blank say; `start` where they begin the text.
    """
    parts: list[str] = []
    for piece, words in zip(pieces, fills, strict=True):
        fill = decode(list(words), not any(parts) and not piece.text)
        parts += [piece.text, fill.removeprefix(" ") if piece.joined else fill]
    return "".join(parts)


def by_blank(pieces: Sequence[Piece], words: Sequence[int]) -> list[list[int]]:
    """The words of all blanks, one blank after the other, as those of each."""
    rest = iter(words)
    return [[next(rest) for _ in range(piece.blank)] for piece in pieces]


def parse_template(text: str, tokenizer: Tokenizer, *, rate: int, max_cells: int) -> Template:
    """Read a text with blanks: `___` becomes up to 8 tokens, `___{n}` up to n, and `[[words]]` others in their place.

    A slot that a blank does not use comes out as the null token and vanishes.

    Args:
        text: what is given, with at least one blank.
        tokenizer: of the model.
        rate: r tokens share a latent.
        max_cells: most latents of a canvas.

    Raises:
        RequestError: without a blank, with a blank of no or too many tokens, or longer than the model's canvas.
    """
    room = max_cells * rate
    pieces = pieces_of(text, room, tokenizer.longest, lambda words, start: tokenizer.encode(words, start=start))
    tokens: list[int] = []
    old: list[int] = []
    for piece in pieces:
        told = tokenizer.encode(piece.encoded, start=not tokens)
        old += [*told, *piece.old, *[NULL] * (piece.blank - len(piece.old))]
        tokens += told + [MASK] * piece.blank
    cells = len(tokens) // rate + 1
    if cells > max_cells:
        raise RequestError(
            f"the text to fill takes {len(tokens)} tokens with its blanks, the model writes at most {room - 1}; "
            "shorten it or its blanks"
        )
    end = [NULL] * (cells * rate - len(tokens))
    changed = any(piece.old for piece in pieces)
    return Template(torch.tensor(tokens + end), pieces, torch.tensor(old + end) if changed else None)


def pieces_of(text: str, most: int, longest: int, encode: Callable[[str, bool], Sequence[int]]) -> tuple[Piece, ...]:
    """Cut a text at its blanks.

    Args:
        text: with at least one blank, `___` or `___{n}`, or with words to change, `[[words]]`.
        most: tokens of the longest blank, and of the whole.
        longest: characters that a token stands for at most, so that a text far too long is refused unread.
        encode: `encode(words, start)`: their tokens; `start` where they begin the text.

    Raises:
        RequestError: without a blank, with one of no or too many tokens, with some of both kinds, or longer than `most`
            tokens can be.
    """
    pieces: list[Piece] = []
    end = length = 0
    for blank in _BLANK.finditer(text):
        size = int(blank[1][:9]) if blank[1] else DEFAULT_BLANK
        if not 1 <= size <= most:
            raise RequestError(f"a blank takes 1 to {most} tokens, received {shortened(blank[0])}")
        piece = Piece(text[end : blank.start()], size, stated=blank[1] is not None)
        if blank[2] and length + len(blank[2]) <= most * longest:
            old = tuple(encode(" " + blank[2] if piece.joined else blank[2], not pieces and not piece.text))
            piece = Piece(piece.text, len(old) + max(2, len(old) // SPARE), old)
        pieces.append(piece)
        length += len(piece.text) + len(blank[2] or "")
        end = blank.end()
        if length > most * longest or len(pieces) > most:
            break
    if not pieces:
        raise RequestError(
            "the text to fill has no blank; write ___ (or ___{n} for up to n tokens) where text may go, or [[words]] "
            "around words that may change"
        )
    if length + len(text) - end > most * longest or len(pieces) > most:
        raise RequestError(
            f"the text to fill has {len(text):,} characters, the model writes at most {most} tokens with the blanks; "
            "shorten it or its blanks"
        )
    if len({bool(piece.old) for piece in pieces}) > 1:
        raise RequestError("the text has blanks ___ to fill and words [[…]] to change; ask for one after the other")
    return (*pieces, Piece(text[end:], 0))


def narrowed(text: str, share: float) -> str:
    """A text to fill, each of whose blanks takes only a share of its tokens, and one at least.

    Args:
        text: with blanks `___` or `___{n}`; words to change stay as they are.
        share: in (0, 1].
    """

    def smaller(blank: re.Match[str]) -> str:
        size = int(blank[1][:9]) if blank[1] else DEFAULT_BLANK
        return blank[0] if blank[2] else f"___{{{max(1, round(share * size)) if size else size}}}"

    return _BLANK.sub(smaller, text)


def partly_hidden(
    tokens: Sequence[int], old: Sequence[int], mask_id: int, spare: int, strength: float, generator: torch.Generator
) -> list[int]:
    """Words that may change, a share of which is hidden to be written anew: a masked model's way to the middle.

    Args:
        tokens: a canvas, with `mask_id` where words may change.
        old: the same with the words that stand there.
        mask_id: the mask token.
        spare: what stands for no word in `old`, where words may grow: all such places are hidden.
        strength: share of the words that is hidden, rounded up.
        generator: of the draw.
    """
    places = [place for place, token in enumerate(tokens) if token == mask_id]
    words = [place for place in places if old[place] != spare]
    order = torch.randperm(len(words), generator=generator).tolist()
    hidden = set(places) - {words[at] for at in order[math.ceil(round(strength * len(words), 9)) :]}
    return [mask_id if place in hidden else token for place, token in enumerate(old)]


def prompt_tokens(request: Request, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Tokens of a request's prompt; none for no prompt, which one of white space alone is too.

    Raises:
        RequestError: when there are more than `limit`.
    """
    text = request.prompt or ""
    check_length(text, limit, tokenizer.longest)
    tokens = tokenizer.encode(text) if text.strip() else []
    if len(tokens) > limit:
        raise RequestError(
            f"the prompt takes {len(tokens)} tokens, the model reads at most {limit}; shorten it: {shortened(text)}"
        )
    return tokens


def check_length(prompt: str, limit: int, longest: int) -> None:
    """Refuse a prompt that has more characters than so many tokens can hold, before time is spent on reading it.

    Args:
        prompt: of a request.
        limit: most tokens that the model reads.
        longest: characters that a token stands for at most.

    Raises:
        RequestError: as said.
    """
    if len(prompt) > limit * longest:
        raise RequestError(
            f"the prompt has {len(prompt):,} characters, the model reads at most {limit} tokens; shorten it: "
            f"{shortened(prompt)}"
        )


def shortened(text: str) -> str:
    """The beginning of a text, quoted, for a message."""
    return repr(text[:60])


def template_of(request: Request, tokenizer: Tokenizer, *, rate: int, max_cells: int) -> Template | None:
    """The text to fill or to change of a request, if it brings one; see `parse_template`."""
    return None if request.infill is None else parse_template(request.infill, tokenizer, rate=rate, max_cells=max_cells)


def changes(template: Template | None) -> bool:
    """Whether a request has words to change."""
    return template is not None and template.old is not None


def check_strength(changed: bool, options: GenerateOptions) -> None:
    """Refuse a strength of changing words where there are none to change.

    Raises:
        RequestError: as said.
    """
    if "strength" in given(options) and not changed:
        raise RequestError(
            f"{spelled('strength')} is for words [[…]] to change, and the request has none; mark some, or leave it out"
        )


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, side by side."""

    tokens: Int64[Tensor, "b p"]
    """Padded at the right."""
    lengths: Int64[Tensor, "b"]
    """Tokens of each; 0 for no prompt."""
    generators: tuple[torch.Generator, ...]
    """One a request, of all its draws."""


def whole_texts(requests: Sequence[Request], tokenizer: Tokenizer, limit: int, device: torch.device | str) -> Prompts:
    """The prompts of requests that are all to be written from nothing.

    Args:
        requests: without a text to fill.
        tokenizer: of the model.
        limit: most tokens of a prompt.
        device: where they go.

    Raises:
        RequestError: for a prompt that does not fit, or a text to fill.
    """
    if any(request.infill is not None for request in requests):
        raise RequestError("a trace writes whole texts; leave infill out")
    prompts = [prompt_tokens(request, tokenizer, limit) for request in requests]
    generators = tuple(make_generator(request.seed) for request in requests)
    return Prompts(*padded_prompts(prompts, device), generators)
