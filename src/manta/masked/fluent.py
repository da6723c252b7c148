"""Words of a canvas that go together, as a model of n-grams has it, where a call tells them all at once."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.fluency import Fluency, drawn_row, likeliest_row
from manta.masked.sampling import WordSampler


class FluentSampler(WordSampler):
    """Proposes the likeliest text of the whole canvas beside the words that stand, or draws one.

    Args:
        fluency: what is added for words that go together.
        mask: True on each row's canvas.
        mask_id: the mask token.
        blank: the token of a place without a word.
        settings: of `WordSampler`.
    """

    def __init__(self, fluency: Fluency, mask: Bool[Tensor, "b n"], mask_id: int, blank: int, **settings: Any) -> None:
        super().__init__(**{**settings, "temperature": 0.0})  # it is asked how sure the net is, not for words
        self.drawn_at = settings.get("temperature", 0.0)
        self.fluency, self.counts, self.mask_id, self.blank = fluency, mask.sum(1).tolist(), mask_id, blank

    def __call__(
        self, logits: Float[Tensor, "b n v"], start: int = 0, tokens: Int64[Tensor, "b w"] | None = None
    ) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
        """See `WordSampler`; a margin or an entropy is that of the place by itself."""
        _, sure = super().__call__(logits, start, tokens)
        assert tokens is not None and tokens.shape[1] == logits.shape[1], "a canvas is looked at as a whole"
        told = logits.log_softmax(-1)
        how: dict[str, Any] = {"blank": self.blank, "fluency": self.fluency}
        row = (told, tokens, tokens == self.mask_id, self.counts)
        if self.drawn_at == 0:
            words = likeliest_row(*row, **how)
        else:
            uniform = list(self.uniform((self.width + 1,)).numpy())
            words = drawn_row(*row, **how, temperature=self.drawn_at, uniform=uniform)
        if self.confidence == "probability":
            # A word that stands is not asked for, whatever stands for its place among the logits.
            asked = words.clamp_max(logits.shape[-1] - 1)
            sure = torch.softmax(logits.double(), -1).gather(-1, asked[..., None])[..., 0]
        return words, sure
