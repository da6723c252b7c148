"""A learned schedule: a small policy that says which words to commit, taught against a price per call."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.masked.decode import Canvas, Ends
from manta.masked.policies import Windowed, everything, top
from manta.masked.sampling import WordSampler

SIGNS = 8
"""What the policy sees of a place."""
HIDDEN = 16
"""Width of the policy's one hidden layer."""
NUM_WEIGHTS = SIGNS * HIDDEN + HIDDEN + HIDDEN + 1
BEGIN = 0.9
"""Before it has learned anything, the policy is the threshold rule at this confidence."""
SHARPNESS = 2.0
"""Of that rule, in a policy that draws: what it draws is nearly the rule's."""
SUREST = 4.0
"""Largest logit of that rule."""


class Schedule(nn.Module):
    """Logit of committing a place: that of a threshold, and what a small network adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIGNS, HIDDEN), nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, signs: Float[Tensor, "*shape s"]) -> Float[Tensor, "*shape"]:
        """Logit of committing each place, from its `signs`."""
        begin = SHARPNESS * (signs[..., 0] - torch.logit(torch.tensor(BEGIN, dtype=signs.dtype)))
        begin = begin.clamp(-SUREST, SUREST)  # so that whatever is drawn, something else is tried now and then
        return begin + self.last(F.silu(self.first(signs)))[..., 0]

    def weights(self) -> tuple[float, ...]:
        """All of them, in order."""
        return tuple(float(w) for parameter in self.parameters() for w in parameter.detach().flatten())

    @classmethod
    def of(cls, weights: tuple[float, ...]) -> "Schedule":
        """A policy of given weights.

        Raises:
            ConfigError: not as many as it has.
        """
        if len(weights) != NUM_WEIGHTS or not all(abs(w) < 1e6 for w in weights):
            raise ConfigError(f"a learned schedule has {NUM_WEIGHTS} weights below 1e6, received {len(weights)}")
        schedule, given = cls(), torch.tensor(weights)
        with torch.no_grad():
            for parameter in schedule.parameters():
                parameter.copy_(given[: parameter.numel()].view_as(parameter))
                given = given[parameter.numel() :]
        return schedule


def signs_of(canvas: Canvas, open_: Bool[Tensor, "b n"], confidence: Float[Tensor, "b n"]) -> Float[Tensor, "b n 8"]:
    """What the policy sees: of the place, of its neighbours, and of the row.

    The logit of the confidence; whether the neighbours on the left and right hold a word, written or given, and their
    confidence where they are open; the share of the row that is open; the row's surest logit; and the share of the open
    places that are surer.

    Args:
        canvas: as it stands.
        open_: places that may be committed.
        confidence: of the words proposed, −inf elsewhere.
    """
    chance = confidence.masked_fill(~open_, 0.0).clamp(1e-4, 1 - 1e-4).float()
    logit = chance.logit()
    shown = chance.masked_fill(~open_, 0.0)
    written = (~canvas.masked).float()
    count = open_.sum(1, keepdim=True).clamp_min(1)
    share = (open_.sum(1) / canvas.total.clamp_min(1))[:, None].expand_as(logit)
    best = logit.masked_fill(~open_, -10.0).amax(1, keepdim=True).expand_as(logit)
    rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(1) / count
    beside = [F.pad(part, pad)[:, cut] for part in (written, shown) for pad, cut in _SHIFTS]
    return torch.stack([logit, *beside, share, best, rank.float()], -1)


_SHIFTS = (((1, 0), slice(None, -1)), ((0, 1), slice(1, None)))
"""From the left, and from the right."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """A schedule that a model has learned, see `manta schedule`."""

    kind: Literal["learned"] = "learned"
    """Which decoder this is."""
    weights: tuple[float, ...] = ()
    """Of the policy; none: the threshold rule that learning begins with."""
    price: float = 0.0
    """What a call cost when it was learned, in units of the reward."""

    def __post_init__(self) -> None:
        if self.weights:
            Schedule.of(self.weights)

    def build(self) -> "Learned":
        """A policy for one canvas."""
        return Learned(Schedule.of(self.weights) if self.weights else Schedule())


class Learned(Windowed):
    """Commit where the policy's logit is above 0, and always the surest word.

    Args:
        schedule: the policy.
        drawn: draw each commitment with the policy's probability instead, to learn from what comes of it.
    """

    def __init__(self, schedule: Schedule, drawn: bool = False) -> None:
        self.schedule, self.drawn = schedule, drawn
        self.chosen: Tensor | None = None
        """What the policy commits in this call."""
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        """Of every call that was drawn: signs, what was drawn, and where it was the policy's to say: the surest word is
        committed whatever it says."""

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        return everything(canvas)

    def sure(self, canvas, window, confidence):
        assert self.chosen is not None, "the policy is asked before"
        return window & self.chosen | top(confidence, torch.ones_like(canvas.total))

    def choose(self, canvas, open_, confidence, sampler: WordSampler):
        signs = signs_of(canvas, open_, confidence).cpu()  # the policy is small, and the same on every device
        with torch.no_grad():
            logit = self.schedule(signs)
        chosen = logit > 0
        if self.drawn:
            chosen = sampler.uniform((sampler.width,))[:, : open_.shape[1]].to(logit) < logit.sigmoid()
            surest = top(confidence, torch.ones_like(canvas.total))
            self.steps.append((signs, chosen, (open_ & ~surest).cpu()))
        self.chosen = chosen.to(open_.device)
        return super().choose(canvas, open_, confidence, sampler)
