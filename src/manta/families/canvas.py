"""The canvas of a request: which tokens are given, and where the model may write."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.data import MASK, NULL, Tokenizer
from manta.errors import RequestError
from manta.families.events import Request

DEFAULT_BLANK = 8
"""Tokens that a blank `___` may become, unless it says otherwise."""

_BLANK = re.compile(r"_{3,}(?:\{(\d+)\})?")


@dataclass(frozen=True)
class Template:
    """A text with blanks, as tokens: MASK where the model writes."""

    tokens: Int64[Tensor, "n"]
    """Known tokens, MASK in blanks, NULL after the end; a whole number of latents long."""

    @property
    def known(self) -> Bool[Tensor, "n"]:
        """True where a token is given, the end included."""
        return self.tokens != MASK


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
    tokens: list[int] = []
    for given, blank in pieces_of(text, max_cells * rate):
        tokens += tokenizer.encode(given, start=not tokens) + [MASK] * blank
    cells = len(tokens) // rate + 1
    if cells > max_cells:
        raise RequestError(
            f"the text to fill takes {len(tokens)} tokens with its blanks, the model writes at most "
            f"{max_cells * rate - 1}; shorten it or its blanks"
        )
    tokens += [NULL] * (cells * rate - len(tokens))
    return Template(torch.tensor(tokens))


def pieces_of(text: str, most: int) -> list[tuple[str, int]]:
    """Cut a text at its blanks: what is given, and the tokens of the blank after it, 0 at the end.

    A space before a blank belongs to the word that fills it, as byte-level tokens carry their leading space.

    Args:
        text: with at least one blank, `___` or `___{n}`.
        most: tokens of the longest blank.

    Raises:
        RequestError: without a blank, or with one of no or too many tokens.
    """
    pieces: list[tuple[str, int]] = []
    end = 0
    for blank in _BLANK.finditer(text):
        size = int(blank[1]) if blank[1] else DEFAULT_BLANK
        if not 1 <= size <= most:
            raise RequestError(f"a blank takes 1 to {most} tokens, received {blank[0]!r}")
        pieces.append((text[end : blank.start()].rstrip(" "), size))
        end = blank.end()
    if not pieces:
        raise RequestError("the text to fill has no blank; write ___ (or ___{n} for up to n tokens) where text may go")
    return [*pieces, (text[end:], 0)]


def prompt_tokens(request: Request, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Tokens of a request's prompt; none for no prompt.

    Raises:
        RequestError: when there are more than `limit`.
    """
    tokens = tokenizer.encode(request.prompt) if request.prompt else []
    if len(tokens) > limit:
        raise RequestError(
            f"the prompt takes {len(tokens)} tokens, the model reads at most {limit}; shorten it: "
            f"{(request.prompt or '')[:60]!r}"
        )
    return tokens


def template_of(request: Request, tokenizer: Tokenizer, *, rate: int, max_cells: int) -> Template | None:
    """The text to fill of a request, if it brings one; see `parse_template`."""
    return None if request.infill is None else parse_template(request.infill, tokenizer, rate=rate, max_cells=max_cells)
