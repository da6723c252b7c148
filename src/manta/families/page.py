"""The words of a batch while a flow is followed: which stand, how sure they are, and which are asked for again."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.families.batching import padded_width
from manta.families.canvas import Template
from manta.masked.coarse import Coarse
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
        self.coarse = torch.full_like(tokens, MASK)
        """What is known of the places asked for: V + c where a class c is settled, else the mask token."""
        self.coarse_confidence = torch.zeros_like(self.confidence)
        """Probability of each class when it was chosen."""
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

    @property
    def shown(self) -> Int64[Tensor, "b n"]:
        """What the policy sees: settled words, and elsewhere settled classes."""
        return torch.where(self.asked, self.coarse, self.tokens)

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

    def settle_classes(
        self,
        choice: Int64[Tensor, "b n"],
        chance: Float[Tensor, "b n"],
        logits: Float[Tensor, "b n v"],
        left: float,
        scales: Coarse,
        *,
        drawn: bool,
    ) -> None:
        """Settle the surest classes of the places asked for, and words that are as sure as the threshold of the scales.

        As among words, fewer classes are told anew from call to call. Ends wait, and a place that would be one settles
        no class. The other words of the call are drafts.

        Args:
            choice, chance: a word for every place, and its probability.
            logits: of the call.
            left: share of the classes to tell anew; 0 settles all.
            scales: the classes.
            drawn: settle the class of the word, which was drawn; else the likeliest.
        """
        self.tokens = torch.where(self.asked, choice, self.tokens)
        self.confidence = torch.where(self.asked, chance, self.confidence)
        self.asked = self.asked & ((choice == NULL) | (chance < scales.threshold))
        banned = torch.arange(logits.shape[-1], device=logits.device) == MASK
        totals = scales.totals(logits.masked_fill(banned, -torch.inf).softmax(-1))
        classes = scales.class_of.to(choice.device)[choice] if drawn else totals.argmax(-1)
        told = self.coarse == MASK
        found = torch.where(classes == scales.end, MASK, logits.shape[-1] + classes)
        self.coarse = torch.where(told, found, self.coarse)
        sure = totals.gather(-1, classes[..., None])[..., 0]
        self.coarse_confidence = torch.where(told, sure, self.coarse_confidence)
        waiting = self.asked & (self.coarse != MASK)
        count = (waiting.sum(1) * left).floor().long()
        ranked = self.coarse_confidence.masked_fill(~waiting, torch.inf).argsort(dim=1, stable=True).argsort(1)
        self.coarse = self.coarse.masked_fill(ranked < count[:, None], MASK)

    def forget_classes(self) -> None:
        """Let every place that is asked for be of any class again."""
        self.coarse = torch.full_like(self.coarse, MASK)

    def ask_again(self, share: float) -> None:
        """Ask again for all nulls and a share of the words, the least certain first; nothing if the share is 0."""
        null = (self.tokens == NULL) & self.writable
        words = self.writable & ~null
        count = (words.sum(1) * share).floor().long()
        ranked = self.confidence.masked_fill(~words, torch.inf).argsort(dim=1, stable=True).argsort(1)
        self.asked = null | (ranked < count[:, None]) if share > 0 else torch.zeros_like(null)
