"""What a diagnosis holds: figures with a value for each prompt, profiles over time, and the settings they came from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError

TIMES = tuple(k / 10 for k in range(11))
"""Times at which profiles of all models are compared."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to diagnose."""

    num_steps: int = 16
    """Network calls of a text, the prompt's encoder left out; an autoregressive model takes one a token."""
    seed: int = 0
    """Prompt i is written with seed + i; all disturbances are drawn from it too."""
    style: str = "diverse"
    """Style of the texts, see `GenerateOptions`."""
    batch_size: int = 8
    """Prompts measured at once; it does not change the figures but for rounding."""
    words: str = "writing"
    """Manta-LM's field is measured with the words held as they settle in writing, or with all of them masked."""
    disturbed_at: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Times at which state or words are disturbed."""
    disturbed_share: float = 0.2
    """Share of the words standing at that time that are exchanged, at least one; and of a finished text's words."""
    push: float = 0.1
    """Length of a push over the root of the state's dimensions."""
    probes: int = 3
    """Random directions of adjoint and vorticity."""
    renoised_to: float = 0.5
    """Time to which a corrupted text is put back."""
    strengths: tuple[float, ...] = (2.0, 8.0, 32.0)
    """Strengths of guidance toward the goal."""
    tune: int = 0
    """Updates of adjoint matching toward the goal, of a flow over latents; 0 leaves it out."""

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise UsageError(
                f"`num_steps` should be at least 2, received {self.num_steps}: a way has two steps or more"
            )
        if self.words not in ("writing", "masked"):
            raise UsageError(f"`words` should be writing or masked, received {self.words!r}")
        if self.tune < 0:
            raise UsageError(f"`tune` counts updates, 0 or more; received {self.tune}")
        if self.batch_size < 1 or self.probes < 1:
            raise UsageError("batch size and probes should be at least 1")


@dataclass(frozen=True)
class Figure:
    """A figure, one value a prompt; nan says *absent* or *not defined here*, never 0."""

    values: tuple[float, ...]
    """Value of each prompt."""

    @classmethod
    def of(cls, values: Float[Tensor, "b"]) -> "Figure":
        """From a tensor."""
        return cls(tuple(values.double().tolist()))

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Their mean; nan without any."""
        return sum(self.finite) / len(self.finite) if self.finite else math.nan

    @property
    def spread(self) -> float:
        """Their standard deviation over the prompts; nan below two."""
        found, mean = self.finite, self.mean
        if len(found) < 2:
            return math.nan
        return math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))

    @property
    def band(self) -> tuple[float, float]:
        """Mean less and plus the spread, within the least and the largest value; nan without any."""
        if not self.finite:
            return math.nan, math.nan
        spread = 0.0 if math.isnan(self.spread) else self.spread
        return max(self.mean - spread, min(self.finite)), min(self.mean + spread, max(self.finite))

    def row(self) -> dict[str, Any]:
        """Plain values, None for what is absent."""
        values = [value if math.isfinite(value) else None for value in self.values]
        return {"mean": _plain(self.mean), "spread": _plain(self.spread), "n": len(self.finite), "values": values}


@dataclass(frozen=True)
class Profile:
    """A figure along the way, a value for each prompt."""

    times: tuple[float, ...]
    """Times in [0, 1]."""
    values: Float[Tensor, "points b"]
    """Values; nan where absent."""

    def mean(self) -> list[float]:
        """Mean over the prompts at each time."""
        return [Figure.of(row).mean for row in self.values]

    def band(self) -> tuple[list[float], list[float]]:
        """The band of each time, low and high."""
        pairs = [Figure.of(row).band for row in self.values]
        return [low for low, _ in pairs], [high for _, high in pairs]

    def row(self) -> dict[str, Any]:
        """Plain values, None for what is absent."""
        low, high = self.band()
        lists = {"mean": self.mean(), "low": low, "high": high}
        return {"times": list(self.times), **{name: list(map(_plain, values)) for name, values in lists.items()}}


@dataclass
class Measured:
    """All that was measured on some prompts of one model; parts are put together with `join`."""

    figures: dict[str, Figure] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    ways: dict[str, list[tuple[list[float], list[float]]]] = field(default_factory=dict)
    """Trajectories in the plane, for the plots: kind → a list of (x, y)."""
    timelines: list[dict[str, Any]] = field(default_factory=list)
    """Texts as they were written, for the plots."""

    def put(self, **values: Tensor) -> None:
        """Add figures, a value a prompt each."""
        self.figures |= {name: Figure.of(value) for name, value in values.items()}

    def profile(self, name: str, times: Sequence[float], values: Float[Tensor, "points b"]) -> None:
        """Add a profile."""
        self.profiles[name] = Profile(tuple(float(t) for t in times), values.double().cpu())

    def join(self, other: "Measured") -> None:
        """Append the prompts of another part, measured in the same way."""
        for name, figure in other.figures.items():
            before = self.figures.get(name, Figure(()))
            self.figures[name] = Figure(before.values + figure.values)
        for name, profile in other.profiles.items():
            found = self.profiles.get(name)
            values = profile.values if found is None else torch.cat([found.values, profile.values], 1)
            self.profiles[name] = Profile(profile.times, values)
        for kind, ways in other.ways.items():
            self.ways.setdefault(kind, []).extend(ways)
        self.timelines += other.timelines


def on_common_times(
    values: Float[Tensor, "points b"], lengths: Sequence[int], times: Sequence[float] = TIMES
) -> Float[Tensor, "times b"]:
    """Read rows of different lengths at common times, between points by linear interpolation.

    Args:
        values: row i at its own times k / lengths[i].
        lengths: steps of each row, at least 1; what comes after them is not read.
        times: in [0, 1].

    Returns:
        Values; nan next to a value that is nan.
    """
    columns = []
    for row, length in enumerate(lengths):
        at = torch.tensor(times, dtype=torch.float64) * length
        low = at.floor().long().clamp(0, max(0, length - 1))
        share, own = at - low, values[:, row].double().cpu()
        upper = own[(low + 1).clamp_max(len(own) - 1)]
        mixed = own[low] + share * (upper - own[low])
        columns.append(torch.where(share == 0, own[low], torch.where(share == 1, upper, mixed)))
    return torch.stack(columns, 1)


def thirds(steps: Float[Tensor, "steps b"], lengths: Sequence[int]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Root mean square over the first and over the last third of each row's steps, those without a value left out.

    Args:
        steps: a value for each step; row i has lengths[i] of them.
        lengths: at least 1.
    """
    pairs = []
    for row, length in enumerate(lengths):
        part = max(1, length // 3)
        own = steps[:length, row].double().square()
        pairs.append((own[:part].nanmean().sqrt(), own[-part:].nanmean().sqrt()))
    early, late = zip(*pairs, strict=True)
    return torch.stack(early), torch.stack(late)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
