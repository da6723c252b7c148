"""Taking back what the model itself holds wrong: remasking by a head that doubts."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import ConfigError
from manta.masked.decode import Canvas
from manta.masked.policies import Threshold, ThresholdConfig
from manta.masked.sampling import WordSampler


@dataclass(frozen=True, kw_only=True)
class DoubtConfig(ThresholdConfig):
    """Commit by a threshold, and take back words that the model holds wrong now that others stand around them."""

    kind: Literal["doubt"] = "doubt"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which decoder this is."""
    least_right: float = 0.5
    """A word that is right with a smaller probability is taken back."""
    rounds: int = 2
    """Times that a place may be taken back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least_right < 1:
            raise ConfigError(f"least_right should lie between 0 and 1, received {self.least_right}")
        if self.rounds < 0:
            raise ConfigError(f"rounds should be 0 or more, received {self.rounds}")

    def build(self) -> "Doubt":
        """A policy for one canvas."""
        return Doubt(self)


class Doubt(Threshold):
    """Threshold decoding that goes on until no written word is doubted, or none may be taken back any more.

        commit i if C_i ≥ min(τ, max C)
        take back a word that stood before the call if P(right | all that stands) < ρ, at most `rounds` times a place

    The probability comes from a head that is trained on the model's own words (`families.thinking`), as in PRISM (Kim
    et al., arXiv 2510.01384; the loop is ours). A call looks at the words that stood before it, so when all are written
    one more call follows, which looks at the last ones. Under a budget a quarter of the calls is kept for taking back.
    """

    looks_back = True

    def __init__(self, config: DoubtConfig) -> None:
        super().__init__(config)
        self.rounds, self.least_right = config.rounds, config.least_right
        self.blank: Tensor | None = None
        """Places without a word before this call, which no call has looked at yet."""
        self.taken: Tensor | None = None
        """Times that each place was taken back."""
        self.looked: Tensor | None = None
        """Rows that are written, looked at and left as they are."""

    def share(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        words, left = canvas.masked.sum(1), canvas.calls_left
        if left is None or canvas.budget is None:
            return torch.zeros_like(words)
        calls = max(1, left - canvas.budget // 4)
        return (words + calls - 1) // calls

    def choose(self, canvas, open_, confidence, sampler):
        self.blank = canvas.masked
        return super().choose(canvas, open_, confidence, sampler)

    def remask(self, canvas: Canvas, sampler: WordSampler) -> Bool[Tensor, "b n"]:
        assert canvas.right is not None, "the loop asks for a model that doubts"
        assert self.blank is not None, "words are chosen before some are taken back"
        if self.taken is None or self.looked is None:
            self.taken, self.looked = torch.zeros_like(canvas.tokens), canvas.total == 0
        stood = canvas.writable & ~self.blank
        back = stood & (canvas.right < self.least_right) & (self.taken < self.rounds) & ~self.looked[:, None]
        self.looked = self.looked | ~(self.blank | back).any(1)
        self.taken = self.taken + back.long()
        return back

    def done(self, canvas: Canvas) -> Bool[Tensor, "b"]:
        written = ~canvas.masked.any(1)
        if canvas.calls == canvas.budget or self.rounds == 0:
            return written
        return written & ((canvas.total == 0) if self.looked is None else self.looked)

    def most_calls(self, canvas: Canvas) -> int:
        """A word a call, each written once and again as often as it is taken back, and a last look."""
        return super().most_calls(canvas) * (1 + 2 * self.rounds) + 1
