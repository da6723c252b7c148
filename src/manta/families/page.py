"""The words of a batch while a flow is followed: which stand, how sure they are, and which are asked for again."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.families.batching import padded_width
from manta.families.canvas import Template
from manta.text import MASK, NULL


class Page:
    """The words of a batch while they are written.

    Args:
        tokens: given words, the mask token where the model writes, null off the canvas.
        mask: True on each row's canvas.
        rate: tokens that share a latent.
    """

    def __init__(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], rate: int) -> None:
        self.tokens, self.mask = tokens, mask
        self.num_cells = tokens.shape[1] // rate
        self.writable = mask & (tokens == MASK)
        self.asked = self.writable.clone()
        """Places without a settled word."""
        self.confidence = (mask & ~self.writable).float()
        """Probability of each word when it was chosen; 1 where it was given."""
        self.t, self.nfe, self.written, self.done = 0.0, 0, False, False

    @classmethod
    def blank(cls, templates: Sequence[Template | None], cells: Int64[Tensor, "b"], rate: int) -> "Page":
        """The canvases of a batch of requests, so many latents each, with what their templates give."""
        width = padded_width(int(cells.max()) * rate, rate)
        mask = torch.arange(width, device=cells.device) < (cells * rate)[:, None]
        tokens = torch.full(mask.shape, MASK, device=cells.device).masked_fill(~mask, NULL)
        for row, template in enumerate(templates):
            if template is not None:
                tokens[row, : len(template.tokens)] = template.tokens.to(cells.device)
        return cls(tokens, mask, rate)

    @property
    def settled(self) -> Int64[Tensor, "b n"]:
        """Settled words, the mask token elsewhere."""
        return self.tokens.masked_fill(self.asked, MASK)

    def settle(self, choice: Int64[Tensor, "b n"], chance: Float[Tensor, "b n"], left: float) -> None:
        """Write a word at every place asked for, then ask again for the least certain ones.

        Fewer words are asked for again from call to call (Mask-Predict, arXiv 1904.09324). A null is sure before the
        words are: settled early it would shorten the text, so nulls are asked for until the end.

        Args:
            choice: a word for every place.
            chance: its probability.
            left: share of the words to ask for again; 0 settles everything.
        """
        self.tokens = torch.where(self.asked, choice, self.tokens)
        self.confidence = torch.where(self.asked, chance, self.confidence)
        self.ask_again(left)

    def ask_again(self, share: float) -> None:
        """Ask again for all nulls and a share of the words, the least certain first; nothing if the share is 0."""
        null = (self.tokens == NULL) & self.writable
        words = self.writable & ~null
        count = (words.sum(1) * share).floor().long()
        ranked = self.confidence.masked_fill(~words, torch.inf).argsort(dim=1, stable=True).argsort(1)
        self.asked = null | (ranked < count[:, None]) if share > 0 else torch.zeros_like(null)
