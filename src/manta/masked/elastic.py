"""A canvas that grows and shrinks while it is written: masked places that stand for several words, or for none."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.masked.decode import Canvas

OFF = -1
"""What stands where a row has no canvas."""
SPARE = 0.05
"""Share of hidden places behind which training sets one that stands for no word."""


@dataclass(frozen=True)
class Layout:
    """Texts with hidden words, laid out anew for training."""

    shown: Int64[Tensor, "b m"]
    """The mask token where something is hidden, `OFF` off the canvas."""
    target: Int64[Tensor, "b m"]
    """What each place stands for: its word, or `grow_id` for two words or more."""
    hidden: Bool[Tensor, "b m"]
    """Places to be told."""


def merged(
    tokens: Int64[Tensor, "b n"],
    hidden: Bool[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    share: Float[Tensor, "b"],
    generator: torch.Generator,
    *,
    mask_id: int,
    grow_id: int,
    end_id: int,
    most: int,
) -> Layout:
    """Let some masked places stand for several hidden words, and some for none.

        a b c d e f ε          hidden: b c d f ε
        a [   ] e f ε          b c d share a place, whose target is to grow
        a _     e _ _ _        one more place behind f stands for nothing, as ε does

    Neighbours among the hidden words share a place with the row's probability, so a place may stand for any number. A
    place that grows becomes two, which may grow in turn, so this teaches every number of words. After DreamOn (Wu et
    al., arXiv 2602.01326: expand and delete as states of a mask); the chances are ours.

    Args:
        tokens: the texts.
        hidden: words that are hidden.
        mask: True on each row's canvas.
        share: probability that a hidden word joins the one before it; 0 leaves a row as it is.
        generator: of the draws.
        mask_id, end_id: the tokens that mean something; ends are never joined.
        grow_id: target of a place that stands for several words.
        most: places of the longest canvas, beyond which no row gets any that stand for nothing.
    """
    b, n = tokens.shape
    draws = torch.rand((2, b, n), generator=generator).to(tokens.device)
    word = hidden & (tokens != end_id)
    joined = word & (draws[0] < share[:, None])
    joined[:, 1:] &= word[:, :-1]
    joined[:, 0] = False
    spare = hidden & (draws[1] < SPARE) & (share > 0)[:, None]
    spare &= spare.cumsum(1) <= (most - (mask & ~joined).sum(1))[:, None]
    # Where each word's place begins, and whether more than one word is in it.
    width = torch.where(mask, (~joined).long() + spare.long(), 0)
    last = width.cumsum(1) - 1
    place = torch.where(joined, last, last - spare.long())
    follows = torch.nn.functional.pad(joined[:, 1:], (0, 1))
    m = int(width.sum(1).max())
    target = torch.full((b, m + 1), OFF, device=tokens.device)
    inside = torch.arange(m + 1, device=tokens.device) < width.sum(1)[:, None]
    target = torch.where(inside, end_id, target)  # what is not written below is a spare place
    off = torch.where(mask & ~joined, place, m)
    target = target.scatter(1, off, torch.where(follows, grow_id, tokens))[:, :m]
    told = inside.scatter(1, off, hidden)[:, :m] & inside[:, :m]
    target = torch.where(inside[:, :m], target, OFF)
    return Layout(target.masked_fill(told, mask_id), target, told)


class Elastic:
    """What becomes of a canvas after each call: places that grow become two, places of no word vanish.

    Args:
        canvas: the tokens it begins with, `OFF` off the canvas.
        mask_id: the mask token.
        grow_id: the class that says "two words or more" of a masked place.
        end_id: the word that is none.
        most: places of the longest canvas.
        padded: from the longest row to the width of a batch.
        fixed: places that may not grow, such as a blank of a stated size; they vanish as others do.
        grow: probability from which a place grows, whatever the decoder commits.
        shrink: probability from which a place of no word vanishes, whatever the decoder commits; the last of a row
            stays, as texts close with an end.
    """

    def __init__(
        self,
        canvas: Int64[Tensor, "b n"],
        *,
        mask_id: int,
        grow_id: int,
        end_id: int,
        most: int,
        padded: Callable[[int], int],
        fixed: Bool[Tensor, "b n"] | None = None,
        grow: float = 0.5,
        shrink: float = 0.9,
    ) -> None:
        self.mask_id, self.grow_id, self.end_id = mask_id, grow_id, end_id
        self.most, self.padded = most, padded
        self.grow, self.shrink = grow, shrink
        self.fixed = torch.zeros_like(canvas).bool() if fixed is None else fixed
        self.origin = torch.arange(canvas.shape[1], device=canvas.device).expand(canvas.shape)
        """Place of the first canvas that each place has come from."""
        self.grown = torch.zeros(len(canvas), dtype=torch.long, device=canvas.device)
        """Places that have grown in each row: not more than `most` ever do, so that every row comes to an end."""

    def room(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        """Places that may still grow in each row."""
        return torch.minimum(self.most - (canvas.tokens != OFF).sum(1), self.most - self.grown).clamp_min(0)

    def bound(self, logits: Float[Tensor, "b n v"], canvas: Canvas) -> None:
        """Forbid growing in place: where there is no room, in fixed places, and in the last call."""
        barred = self.fixed | (self.room(canvas) == 0)[:, None]
        if canvas.calls_left == 1:
            barred = torch.ones_like(barred)
        logits[..., self.grow_id].masked_fill_(barred, -torch.inf)

    def decided(
        self, canvas: Canvas, logits: Float[Tensor, "b n v"], word: Int64[Tensor, "b n"], commit: Bool[Tensor, "b n"]
    ) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Words and what is committed of them, places that grow (`grow_id`) and vanish (`OFF`) among them.

        Where there is room for some of the places that would grow, the leftmost do, and the others stay as they are.

        Args:
            canvas: before anything of this call is committed.
            logits: bounded, of this call.
            word: proposed.
            commit: what the decoder commits of it.
        """
        chance, growing = logits.softmax(-1), word == self.grow_id
        wants = canvas.masked & ((chance[..., self.grow_id] >= self.grow) | (commit & growing))
        grows = wants & (wants.cumsum(1) <= self.room(canvas)[:, None])
        place = torch.arange(word.shape[1], device=word.device)
        last = place == (canvas.tokens != OFF).sum(1, keepdim=True) - 1
        gone = canvas.masked & ~grows & ~last & (chance[..., self.end_id] >= self.shrink)
        word = word.masked_fill(grows, self.grow_id).masked_fill(gone, OFF)
        return word, (commit & ~growing) | grows | gone

    def mark(self, canvas: Canvas) -> None:
        """Let nobody take places that grow for words, or write in those that vanish.

        Args:
            canvas: with what was committed; it is changed in place.
        """
        canvas.masked = canvas.masked | (canvas.tokens == self.grow_id)
        canvas.writable = canvas.writable & (canvas.tokens != OFF)

    def lay_out(self, canvas: Canvas) -> None:
        """Make two masked places of each that grows and none of each that vanishes.

        Args:
            canvas: with what was committed; it is changed in place.
        """
        grows = canvas.tokens == self.grow_id
        counts = torch.where(canvas.tokens == OFF, 0, 1 + grows.long())
        lengths = counts.sum(1)
        width = self.padded(int(lengths.max()))
        inside = torch.arange(width, device=counts.device) < lengths[:, None]
        source = torch.zeros_like(inside, dtype=torch.long)
        source[inside] = (
            torch.arange(counts.shape[1], device=counts.device).repeat(len(counts)).repeat_interleave(counts.flatten())
        )
        self.grown = self.grown + grows.sum(1)

        def moved(values: Tensor, off: int | float) -> Tensor:
            return values.gather(1, source).masked_fill(~inside, off)

        new = moved(grows, False)
        canvas.tokens = moved(canvas.tokens, OFF).masked_fill(new, self.mask_id)
        canvas.writable = moved(canvas.writable, False)
        canvas.masked = moved(canvas.masked, False) | new
        canvas.confidence = moved(canvas.confidence, torch.inf)
        self.fixed, self.origin = moved(self.fixed, False), moved(self.origin, OFF)
