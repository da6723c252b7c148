"""Two scales on a masked canvas: the class of a word is settled before the word."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.masked.decode import Canvas


class Coarse:
    """What is settled of masked places before their words: their classes, in the first share of a budget's calls.

        class of i ← the likeliest, Σ_{w in class} p(w)
        settle the surest, an even share a call, and all at least as sure as τ
        words wait meanwhile, but for those at least as sure as τ

    A place whose class is settled holds the class's token on the canvas, V + c, until its word is written; the model
    tells words of that class alone there. Ends are put off, as they are among words: a place that would be one settles
    no class. After "Next Semantic Scale Prediction via Hierarchical Diffusion Language Models" (arXiv 2510.08632), of
    which the levels are ours.

    Args:
        class_of: class of every word, 0 … K − 1.
        mask_id: the mask token.
        end_id: the token of ends, which has a class of its own; None where there is none.
        share: of the budget's calls that settle classes; 0: none, all at once words.
        threshold: τ.
    """

    def __init__(
        self,
        class_of: Int64[Tensor, "v"],
        mask_id: int,
        end_id: int | None = None,
        share: float = 0.5,
        threshold: float = 0.9,
    ) -> None:
        self.class_of, self.mask_id, self.share, self.threshold = class_of, mask_id, share, threshold
        self.num_classes = int(class_of.max()) + 1
        self.end = -1 if end_id is None else int(class_of[end_id])

    def calls(self, canvas: Canvas) -> int:
        """Calls that settle classes and are left, the present one included; 0 when it is the words' turn."""
        if canvas.budget is None:
            return int(self.share > 0)
        return max(0, int(self.share * canvas.budget) - canvas.calls + 1)

    def totals(self, chance: Float[Tensor, "b n v"]) -> Float[Tensor, "b n k"]:
        """Probability of every class, Σ_{w in class} p(w)."""
        totals = torch.zeros(*chance.shape[:-1], self.num_classes, dtype=chance.dtype, device=chance.device)
        return totals.index_add(-1, self.class_of.to(chance.device), chance)

    def settle(
        self, canvas: Canvas, logits: Float[Tensor, "b n v"], commit: Bool[Tensor, "b n"]
    ) -> Bool[Tensor, "b n"]:
        """What of a decoder's choice is written in this call; classes are put on the canvas, which is changed in place.

        Args:
            canvas: before anything of this call is committed.
            logits: of the call.
            commit: the decoder's choice.
        """
        left = self.calls(canvas)
        if left == 0:
            return commit
        chance = logits.softmax(-1)
        sure, coarse = self.totals(chance).max(-1)
        waiting = (canvas.tokens == self.mask_id) & canvas.masked & (coarse != self.end)
        written = commit & (~waiting.any(1, keepdim=True) | (chance.amax(-1) >= self.threshold))
        waiting = waiting & ~written
        sure = sure.masked_fill(~waiting, -torch.inf)
        count = (waiting.sum(1) + left - 1) // left
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(1)
        chosen = waiting & ((rank < count[:, None]) | (sure >= self.threshold))
        canvas.tokens = torch.where(chosen, logits.shape[-1] + coarse, canvas.tokens)
        return written
