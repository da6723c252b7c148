"""The canvas of a request: which tokens are given, and where the model may write."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import RequestError
from manta.families.batching import padded_prompts
from manta.families.events import Request
from manta.runtime import make_generator
from manta.text import MASK, NULL, Tokenizer

DEFAULT_BLANK = 8
"""Tokens that a blank `___` may become, unless it says otherwise."""

_BLANK = re.compile(r"_{3,}(?:\{(\d+)\})?")


@dataclass(frozen=True)
class Piece:
    """What is given of a text to fill, up to a blank or the end."""

    text: str
    """As the request has it, white space included."""
    blank: int
    """Tokens of the blank after it; 0 at the end."""

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

    @property
    def known(self) -> Bool[Tensor, "n"]:
        """True where a token is given, the end included."""
        return self.tokens != MASK

    def text(self, tokens: Sequence[int], tokenizer: Tokenizer) -> str:
        """The text with its blanks filled: what is given stands in it as it was given.

        Args:
            tokens: the canvas, with a word, NULL or (undecided) MASK in each place of a blank.
            tokenizer: of the model.
        """
        places = (self.tokens == MASK).nonzero()[:, 0].tolist()
        words = [tokens[place] for place in places]

        def decode(fill: list[int], start: bool) -> str:
            return tokenizer.decode([token for token in fill if token not in (NULL, MASK)], start=start)

        return filled(self.pieces, words, decode)


def filled(pieces: Sequence[Piece], words: Sequence[int], decode: Callable[[list[int], bool], str]) -> str:
    """Put the words of blanks between what is given.

    Args:
        pieces: see `pieces_of`.
        words: tokens of all blanks, one blank after the other.
        decode: `decode(tokens, start)`: what the tokens of a blank say; `start` where they begin the text.
    """
    parts: list[str] = []
    at = 0
    for piece in pieces:
        fill = decode(list(words[at : at + piece.blank]), not any(parts) and not piece.text)
        at += piece.blank
        parts += [piece.text, fill.removeprefix(" ") if piece.joined else fill]
    return "".join(parts)


def parse_template(text: str, tokenizer: Tokenizer, *, rate: int, max_cells: int) -> Template:
    """Read a text with blanks: `___` becomes up to 8 tokens, `___{n}` up to n.

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
    pieces = pieces_of(text, room, tokenizer.longest)
    tokens: list[int] = []
    for piece in pieces:
        tokens += tokenizer.encode(piece.encoded, start=not tokens) + [MASK] * piece.blank
    cells = len(tokens) // rate + 1
    if cells > max_cells:
        raise RequestError(
            f"the text to fill takes {len(tokens)} tokens with its blanks, the model writes at most {room - 1}; "
            "shorten it or its blanks"
        )
    tokens += [NULL] * (cells * rate - len(tokens))
    return Template(torch.tensor(tokens), pieces)


def pieces_of(text: str, most: int, longest: int) -> tuple[Piece, ...]:
    """Cut a text at its blanks.

    Args:
        text: with at least one blank, `___` or `___{n}`.
        most: tokens of the longest blank, and of the whole.
        longest: characters that a token stands for at most, so that a text far too long is refused unread.

    Raises:
        RequestError: without a blank, with one of no or too many tokens, or longer than `most` tokens can be.
    """
    pieces: list[Piece] = []
    end = length = 0
    for blank in _BLANK.finditer(text):
        size = int(blank[1][:9]) if blank[1] else DEFAULT_BLANK
        if not 1 <= size <= most:
            raise RequestError(f"a blank takes 1 to {most} tokens, received {shortened(blank[0])}")
        pieces.append(Piece(text[end : blank.start()], size))
        length += len(pieces[-1].text)
        end = blank.end()
        if length > most * longest or len(pieces) > most:
            break
    if not pieces:
        raise RequestError("the text to fill has no blank; write ___ (or ___{n} for up to n tokens) where text may go")
    if length + len(text) - end > most * longest or len(pieces) > most:
        raise RequestError(
            f"the text to fill has {len(text):,} characters, the model writes at most {most} tokens with the blanks; "
            "shorten it or its blanks"
        )
    return (*pieces, Piece(text[end:], 0))


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
    """The text to fill of a request, if it brings one; see `parse_template`."""
    return None if request.infill is None else parse_template(request.infill, tokenizer, rate=rate, max_cells=max_cells)


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
