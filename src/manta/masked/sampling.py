"""From logits to a word for every position, and how sure of it the model is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.runtime import check_logits

CONFIDENCES = ("probability", "margin", "entropy")
"""How sure a model is of a position: the word's probability, its lead over the second, or the negative entropy."""


class WordSampler:
    """Draws words by the Gumbel trick in float64, each row from a generator of its own.

    In float32 the trick truncates the tails and lowers the temperature unasked (Zheng et al., arXiv 2409.02908). The
    draws are made for `width` positions, so that a row's noise does not depend on the batch.

    Args:
        temperature: 0 takes the likeliest word.
        generators: one a row; needed above temperature 0.
        width: positions of the largest canvas.
        confidence: one of `CONFIDENCES`.

    Raises:
        UsageError: for a negative temperature, an unknown confidence, or no generators where they are needed.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        generators: Sequence[torch.Generator] = (),
        width: int = 0,
        confidence: str = "probability",
    ) -> None:
        if not 0 <= temperature < float("inf") or (temperature > 0 and not generators):
            raise UsageError(f"a temperature of {temperature} needs to be 0 or more, and one generator a row above 0")
        if confidence not in CONFIDENCES:
            raise UsageError(f"unknown confidence {confidence!r}; choose one of {', '.join(CONFIDENCES)}")
        self.temperature, self.generators, self.width, self.confidence = temperature, generators, width, confidence
        self.calls = 0
        """Network calls whose logits were drawn from."""

    def __call__(
        self, logits: Float[Tensor, "b n v"], start: int = 0, tokens: Int64[Tensor, "b w"] | None = None
    ) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
        """A word for every position, and the confidence in it; higher is surer.

        Args:
            logits: float; words that must not come are at −inf.
            start: first position of the logits on the canvas.
            tokens: the canvases as they stand, for who looks at more than a place by itself.

        Raises:
            ModelError: logits that no word can be chosen from.
        """
        self.calls += 1
        check_logits(logits, self.calls)
        chance = logits.double().softmax(-1)
        if self.temperature == 0:
            choice = chance.argmax(-1)
        else:
            noise = self._gumbel(logits.shape[-1])[:, start : start + logits.shape[1]].to(logits.device)
            # Below the greatest logit, so that no temperature is too low for a number.
            below = logits.double() - logits.amax(-1, keepdim=True)
            choice = (below / self.temperature + noise).argmax(-1)
        if self.confidence == "probability":
            return choice, chance.gather(-1, choice[..., None])[..., 0]
        if self.confidence == "margin":
            best = chance.topk(2, -1).values
            return choice, best[..., 0] - best[..., 1]
        return choice, torch.special.xlogy(chance, chance).sum(-1)

    def uniform(self, shape: tuple[int, ...]) -> Float[Tensor, "b *shape"]:
        """Uniform draws of each row, float64.

        Raises:
            UsageError: without generators.
        """
        if not self.generators:
            raise UsageError("this decoder draws positions at random; give one generator a row")
        return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators])

    def _gumbel(self, vocabulary: int) -> Float[Tensor, "b w v"]:
        return -torch.log(-torch.log(self.uniform((self.width, vocabulary)).clamp(1e-300, 1 - 1e-16)))
