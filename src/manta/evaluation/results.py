"""What is measured and what comes of it: the evaluator's settings, figures with intervals, and an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.evaluation.dataset import Metric
from manta.evaluation.likelihood import Likelihood
from manta.metrics import Interval, JudgedQuality, Measured, interval_of, value_of

METRICS: Final[tuple[Metric, ...]] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """What is measured, and how much of it."""

    metrics: tuple[Metric, ...] = ()
    """Groups of figures; empty: all that the data allows, and `judge` where there is one."""
    num_seeds: int = 3
    """Texts for each prompt, each of another sampling seed; figures are their means."""
    seed: int = 0
    """Of all texts and draws."""
    likelihood_texts: int = 256
    """Human texts whose likelihood is measured."""
    likelihood_samples: int = 8
    """Draws a text for a bound."""
    batch_size: int = 64
    """Texts written at once; it does not change them."""
    span: int = 13
    """Tokens in common with a training text from which a text counts as copied."""

    def __post_init__(self) -> None:
        if unknown := [metric for metric in self.metrics if metric not in METRICS]:
            raise UsageError(f"there are no figures {unknown[0]!r}; there are {', '.join(METRICS)}")
        if self.num_seeds < 1 or self.likelihood_texts < 2 or self.likelihood_samples < 2:
            raise UsageError("an evaluation needs at least 1 seed, 2 texts for a likelihood and 2 draws for a bound")
        if "judge" in self.metrics and "diversity" not in self.metrics:
            raise UsageError(
                "a generative perplexity is not shown without the entropy and the repetition of the same texts, since "
                "a model that repeats itself gets a low one; ask for diversity beside judge"
            )


@dataclass(frozen=True)
class Figure:
    """A figure of several sampling seeds."""

    values: tuple[float, ...]
    """One a seed."""
    interval: Interval | None = None
    """How well the prompts tell the mean over these seeds; None where it has none (`metrics.measured.interval_of`)."""

    @staticmethod
    def of(runs: Sequence[Measured], times: Float[Tensor, "r n"]) -> "Figure":
        """Of what was measured with each seed, and resamples of the prompts."""
        return Figure(tuple(map(value_of, runs)), interval_of(runs, times))

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)

    def row(self) -> dict[str, Any]:
        """By name, for JSON: the interval is over prompts, least and most are over sampling seeds."""
        low, high = (None, None) if self.interval is None else (self.interval.low, self.interval.high)
        ends = {"seed_least": min(self.values), "seed_most": max(self.values)}
        return {"mean": self.mean, "low": low, "high": high, **ends, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of one model with one way to write."""

    model: str
    """Name."""
    family: str
    """manta, masked, ar, or the layout of a published model."""
    figures: Mapping[str, Figure]
    """Every figure of the texts, by name."""
    likelihood: Likelihood | None
    """Of human texts; None where it was not asked for."""
    judged: tuple[JudgedQuality, ...]
    """Generative perplexity with entropy and repetition, one a seed; none without a judge."""
    warnings: tuple[str, ...]
    """What to know before the figures are believed."""
    texts: tuple[str, ...] = field(repr=False)
    """Of the first seed, in the order of the prompts."""
    items: Mapping[str, Float[Tensor, "seeds prompts"]] = field(repr=False, compare=False)
    """What each single text shows; nan where it shows nothing, as an empty text to a judge."""
    measured: Mapping[str, Sequence[Measured]] = field(default_factory=dict, repr=False, compare=False)
    """Of each figure, for every seed, what its interval is computed from; for paired differences."""

    def row(self) -> dict[str, Any]:
        """Everything but texts and items, for JSON."""
        return {
            "model": self.model,
            "family": self.family,
            "likelihood": self.likelihood and self.likelihood.row(),
            "figures": {name: figure.row() for name, figure in self.figures.items()},
            "judged": [quality.row() for quality in self.judged],
            "warnings": list(self.warnings),
        }
