"""Models side by side: settings swept, what each costs, which are worth it, and how sure a difference is."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

import torch

from manta.errors import RequestError, UsageError
from manta.evaluation.evaluator import Evaluator
from manta.evaluation.likelihood import Likelihood
from manta.evaluation.parallelism import accuracy_under_parallelism
from manta.evaluation.results import Evaluation
from manta.evaluation.texts import RecordedTexts
from manta.evaluation.writing import Contestant
from manta.families.asked import applicable, follows
from manta.families.events import GenerateOptions
from manta.families.fluent import FluentWriter
from manta.metrics import Interval, bootstrap_difference, bootstrap_mean, difference_of
from manta.runtime import make_generator

QUALITIES: Final[Mapping[str, bool]] = {
    "oracle_faithful": True,
    "oracle_solved": True,
    "bleu": True,
    "bleu_one_fewer": True,
    "slot_error_rate": False,
    "perplexity": False,
    "mauve": True,
}
"""Figures that say how good texts are, and whether more is better; the first that is measured draws the frontier."""
PERCENT: Final[Mapping[str, float]] = {
    "oracle_faithful": 100.0,
    "oracle_solved": 100.0,
    "bleu": 1.0,
    "bleu_one_fewer": 1.0,
    "mauve": 100.0,
}
"""What makes percent of those of `QUALITIES` of which more is better."""
OF_A_TEXT: Final = ("faithful", "solved", "slot_errors", "judge_nats", "chrf")
"""Figures of single texts that say how good they are; the first that is measured is drawn against length."""
LENGTH_GROUPS: Final = 4
"""Groups of about equal size, from the shortest texts to the longest; or parts of a text, from its first words on."""
DISTINCT: Final = 0.9
"""Share of the corpus' share of different texts below which the entropy of single texts says nothing of a model."""
SHOWN_PROMPTS: Final = 8
"""Prompts whose texts are shown side by side."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings that are tried; every combination of them."""

    num_steps: tuple[int, ...] = (2, 4, 8, 16)
    """Budgets of network calls; a left-to-right model, whose calls are its words, has none."""
    temperature: tuple[float, ...] = (0.0,)
    """Temperatures of the words."""
    guidance_scale: tuple[float, ...] = (1.0,)
    """Strengths of guidance; only Manta-LM has any."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "temperature", "guidance_scale"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name.replace('_', '-')} takes different values, at least one; received {values}")

    def settings(self, family: str) -> list[dict[str, Any]]:
        """What is tried with a model of this family."""
        names = [name for name in ("num_steps", "temperature", "guidance_scale") if follows(family, name)]
        values = itertools.product(*(getattr(self, name) for name in names))
        return [dict(zip(names, combination, strict=True)) for combination in values]


@dataclass(frozen=True)
class Row:
    """One model with one setting."""

    setting: Mapping[str, Any]
    """What was swept."""
    evaluation: Evaluation
    """What came of it."""

    @property
    def name(self) -> str:
        """The model."""
        return self.evaluation.model

    @property
    def label(self) -> str:
        """The setting in words."""
        words = {"num_steps": "{} calls", "temperature": "temperature {}", "guidance_scale": "guidance {}"}
        off = {"temperature": 0.0, "guidance_scale": 1.0}
        told = [words[key].format(value) for key, value in self.setting.items() if value != off.get(key)]
        return ", ".join(told) or "its own calls"

    def mean(self, figure: str) -> float:
        """Over the seeds."""
        return self.evaluation.figures[figure].mean


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure of one row less that of another, prompt by prompt."""

    first: int
    """Place of a row."""
    second: int
    """Place of the other."""
    why: str
    """`same setting` or `best of each`."""
    figure: str
    """Of single texts, or one of `QUALITIES`, which are of all texts together."""
    interval: Interval
    """Mean of first − second; the rows differ if it leaves out 0."""
    prompts: int
    """Pairs."""


@dataclass(frozen=True, kw_only=True)
class LengthProfile:
    """Quality against length: errors that compound show as a line that worsens with length.

    Texts of prompts are put into groups by the length of their human texts, and a model is shown at its best row. Texts
    without prompts choose their own length, so they are followed word by word: what a judge says of their first
    quarter, of the next and so on, beside human texts. A model is shown with its most calls and of those where its
    entropy is nearest to the corpus' own; of the first seed's texts those count that reach the end of the last part, so
    that all parts are of the same texts.
    """

    row: int | None
    """Place of the row; None for human texts."""
    figure: str
    """One of `OF_A_TEXT`."""
    words: tuple[float, ...]
    """Mean length of each group, or of how many words a part is the end."""
    intervals: tuple[Interval, ...]
    """Mean of the figure in each group or part."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that came of a comparison."""

    rows: tuple[Row, ...]
    """All models with all their settings."""
    likelihoods: Mapping[str, Likelihood | None]
    """Of each model."""
    parameters: Mapping[str, int | None]
    """Of each model."""
    corpus: Mapping[str, float]
    """The figures of human texts."""
    quality: str | None
    """The figure that draws the frontier; None where none was measured."""
    frontier: tuple[int, ...]
    """Rows that none beats in quality at as few calls or fewer, by calls."""
    parallelism: Mapping[str, float]
    """Of each model, `accuracy_under_parallelism` over the settings that none of its own beats; none where the figure
    that draws the frontier is no percentage, or texts have no words."""
    nearest: Mapping[str, int]
    """For each model its row whose texts' entropy is nearest to the corpus' own."""
    differences: tuple[Difference, ...]
    """With bootstrap intervals."""
    lengths: tuple[LengthProfile, ...]
    """One a model, where a figure of single texts and enough of them are there; without prompts of human texts, too."""
    left_out: tuple[str, ...]
    """Settings that a model refused, and why."""

    def row(self, evaluator: Evaluator, command: str) -> dict[str, Any]:
        """Everything, for JSON."""
        data = evaluator.data
        return {
            "command": command,
            "data": data.name,
            "split": data.split,
            "prompts": len(data.prompts),
            "left_out_prompts": evaluator.left_out,
            "words": data.words,
            "read_by": evaluator.words.row(),
            "seeds": evaluator.config.num_seeds,
            "mauve_features": evaluator.features,
            "corpus": dict(self.corpus),
            "corpus_intervals": {name: [i.low, i.high] for name, i in evaluator.corpus_intervals.items()},
            "models": [
                {"name": name, "parameters": self.parameters[name], "likelihood": found and found.row()}
                for name, found in self.likelihoods.items()
            ],
            "rows": [{"setting": dict(row.setting), "label": row.label, **row.evaluation.row()} for row in self.rows],
            "quality": self.quality,
            "frontier": list(self.frontier),
            "accuracy_under_parallelism": dict(self.parallelism),
            "nearest_entropy": dict(self.nearest),
            "differences": [
                {
                    "first": difference.first,
                    "second": difference.second,
                    "why": difference.why,
                    "figure": difference.figure,
                    "value": difference.interval.value,
                    "low": difference.interval.low,
                    "high": difference.interval.high,
                    "level": difference.interval.level,
                    "prompts": difference.prompts,
                }
                for difference in self.differences
            ],
            "lengths": [
                {
                    "row": profile.row,
                    "figure": profile.figure,
                    "words": list(profile.words),
                    "mean": [interval.value for interval in profile.intervals],
                    "low": [interval.low for interval in profile.intervals],
                    "high": [interval.high for interval in profile.intervals],
                }
                for profile in self.lengths
            ],
            "left_out": list(self.left_out),
            "texts": [
                {
                    "prompt": data.prompts[at],
                    "human": data.references[at][0],
                    "texts": {f"{row.name}, {row.label}": row.evaluation.texts[at] for row in self.rows},
                }
                for at in shown(len(data.prompts))
            ],
        }


def compare(evaluator: Evaluator, models: Sequence[Contestant], sweep: Sweep, options: GenerateOptions) -> Comparison:
    """Measure models over a sweep of settings, each likelihood once.

    Args:
        evaluator: of the data, the same for all.
        models: of different names.
        sweep: what is varied.
        options: what is not.

    Raises:
        UsageError: no models, two of one name, recorded texts, or none of a model's settings that it allows.
    """
    names = [model.name for model in models]
    if not models or len(set(names)) < len(names):
        raise UsageError(f"compare takes at least one model, and each once; received {', '.join(names) or 'none'}")
    if any(isinstance(model.lm, RecordedTexts) for model in models):
        raise UsageError("recorded texts have no settings to sweep; measure them by themselves: Evaluator.measure")
    rows: list[Row] = []
    left_out: list[str] = []
    for model in models:
        found = list(_swept(evaluator, model, sweep, options, left_out))
        if not found:
            raise UsageError(f"{model.name} allows none of the settings: {left_out[-1]}")
        rows += found
    asked = "likelihood" in evaluator.metrics
    corpus = evaluator.corpus
    quality = next((name for name in QUALITIES if all(name in row.evaluation.figures for row in rows)), None)
    return Comparison(
        rows=tuple(rows),
        likelihoods={model.name: evaluator.likelihood(model) if asked else None for model in models},
        parameters={model.name: model.parameters for model in models},
        corpus=corpus,
        quality=quality,
        frontier=tuple(frontier(rows, quality)) if quality else (),
        parallelism=parallelism(rows, quality) if quality else {},
        nearest=_nearest(rows, corpus),
        differences=tuple(_differences(rows, quality, evaluator)),
        lengths=tuple(_lengths(rows, quality, evaluator)),
        left_out=tuple(left_out),
    )


def frontier(rows: Sequence[Row], quality: str) -> list[int]:
    """Rows that none beats by its means: none has as good a figure for as few calls, and a better one or fewer calls.

    Means alone decide; whether two rows differ is what `Difference` says.

    Args:
        rows: with the figures `nfe` and `quality`.
        quality: one of `QUALITIES`.

    Returns:
        Places of the rows, by calls.
    """
    sign = 1 if QUALITIES[quality] else -1
    points = [(row.mean("nfe"), -sign * row.mean(quality)) for row in rows]
    kept = [
        i
        for i, (cost, loss) in enumerate(points)
        if not any(c <= cost and x <= loss and (c, x) != (cost, loss) for c, x in points)
    ]
    return sorted(kept, key=lambda i: points[i])


def parallelism(rows: Sequence[Row], quality: str) -> dict[str, float]:
    """See `Comparison.parallelism`."""
    if quality not in PERCENT or any("mean_words" not in row.evaluation.figures for row in rows):
        return {}
    percent = PERCENT[quality]
    highest = percent * max(row.mean(quality) for row in rows)
    if highest <= 0:
        return {}
    found: dict[str, float] = {}
    for name in dict.fromkeys(row.name for row in rows):
        points = [
            (row.mean("mean_words") / max(row.mean("nfe"), 1.0), percent * row.mean(quality))
            for row in rows
            if row.name == name
        ]
        kept = [p for p in set(points) if not any(p != q and q[0] >= p[0] and q[1] >= p[1] for q in points)]
        words, qualities = zip(*kept, strict=True)
        found[name] = accuracy_under_parallelism(words, qualities, highest)
    return found


def best(rows: Sequence[Row], quality: str | None) -> dict[str, int]:
    """For each model the place of its row of the best quality; of its last row where no quality is measured."""
    found: dict[str, int] = {}
    sign = 1 if quality is None or QUALITIES[quality] else -1
    for i, row in enumerate(rows):
        at = found.get(row.name)
        if at is None or quality is None or sign * row.mean(quality) > sign * rows[at].mean(quality):
            found[row.name] = i
    return found


def shown(count: int) -> list[int]:
    """Prompts whose texts are shown, evenly spaced."""
    return sorted({i * count // SHOWN_PROMPTS for i in range(SHOWN_PROMPTS)})


def _swept(
    evaluator: Evaluator, model: Contestant, sweep: Sweep, options: GenerateOptions, left_out: list[str]
) -> Iterator[Row]:
    family = model.lm.family
    followed, moot = applicable(options, family)
    if not follows(family, "guidance_scale") and sweep.guidance_scale != (1.0,):
        moot = (*moot, "guidance_scale")
    if moot:
        left_out.append(f"{model.name}: {', '.join(moot)}, which its family ({family}) does not follow")
    if followed.fluency and isinstance(model.lm, FluentWriter) and (why := model.lm.without_fluency()) is not None:
        left_out.append(f"{model.name}: fluency, since {why}")
        followed = replace(followed, fluency=None)
    for setting in sweep.settings(family):
        try:
            evaluation = evaluator.measure(model, replace(followed, **setting), with_likelihood=False)
        except (UsageError, RequestError) as error:
            left_out.append(f"{model.name}, {setting}: {error}")
            continue
        yield Row(setting, evaluation)


def _nearest(rows: Sequence[Row], corpus: Mapping[str, float]) -> dict[str, int]:
    """Of each model the row nearest to the corpus in entropy; one that writes the same text again only if all do."""
    if "entropy" not in corpus:
        return {}
    least = DISTINCT * corpus["distinct"]
    found: dict[str, int] = {}

    def order(row: Row) -> tuple[bool, float]:
        return row.mean("distinct") < least, abs(row.mean("entropy") - corpus["entropy"])

    for i, row in enumerate(rows):
        if row.name not in found or order(row) < order(rows[found[row.name]]):
            found[row.name] = i
    return found


def _lengths(rows: Sequence[Row], quality: str | None, evaluator: Evaluator) -> Iterator[LengthProfile]:
    """See `LengthProfile`."""
    data, generator = evaluator.data, make_generator(evaluator.config.seed)
    if not data.conditional:
        yield from _along(rows, evaluator)
        return
    words = torch.tensor([len(evaluator.words.split(text)) for text in evaluator.humans], dtype=torch.float64)
    for at in best(rows, quality).values():
        items = rows[at].evaluation.items
        figure = next((name for name in OF_A_TEXT if name in items), None)
        if figure is None:
            continue
        # Texts of one prompt are no independent draws, so they become one value.
        values = items[figure].nanmean(0)
        kept = values.isfinite()
        if kept.sum() < 2 * LENGTH_GROUPS:
            continue
        groups = words[kept].argsort(stable=True).tensor_split(LENGTH_GROUPS)
        yield LengthProfile(
            row=at,
            figure=figure,
            words=tuple(float(words[kept][group].mean()) for group in groups),
            intervals=tuple(bootstrap_mean(values[kept][group], generator=generator) for group in groups),
        )


def _along(rows: Sequence[Row], evaluator: Evaluator) -> Iterator[LengthProfile]:
    """Nats a token of each part of texts without prompts, of human ones first."""
    if not {"judge", "diversity"} <= set(evaluator.metrics):
        return
    most = {name: max(row.setting.get("num_steps", 0) for row in rows if row.name == name) for name in best(rows, None)}
    slowest = [i for i, row in enumerate(rows) if row.setting.get("num_steps", 0) == most[row.name]]
    chosen = [slowest[at] for at in _nearest([rows[i] for i in slowest], evaluator.corpus).values()]
    humans, generator = evaluator.humans, make_generator(evaluator.config.seed)
    longest = median(len(evaluator.words.split(text)) for text in humans)
    ends = sorted({round(longest * (i + 1) / LENGTH_GROUPS) for i in range(LENGTH_GROUPS)} - {0})
    written = {None: humans, **{at: rows[at].evaluation.texts for at in chosen}}
    for at, texts in written.items():
        parts = evaluator.nats_along(texts, ends) if ends else None
        if parts is not None:
            yield LengthProfile(
                row=at,
                figure="judge_nats",
                words=tuple(map(float, ends)),
                intervals=tuple(bootstrap_mean(values, generator=generator) for values in parts),
            )
        elif at is None:
            return


def _differences(rows: Sequence[Row], quality: str | None, evaluator: Evaluator) -> Iterator[Difference]:
    """Every two models at every setting that both have, and where each is at its best."""
    seed, prompts = evaluator.config.seed, len(evaluator.data.prompts)
    chosen = best(rows, quality)
    for i, j in itertools.combinations(range(len(rows)), 2):
        first, second = rows[i], rows[j]
        if first.name == second.name:
            continue
        same = first.setting == second.setting
        bests = (chosen[first.name], chosen[second.name]) == (i, j)
        if not same and not bests:
            continue
        why = "best of each" if bests else "same setting"
        for figure in QUALITIES:
            ours, theirs = (row.evaluation.measured.get(figure) for row in (first, second))
            found = difference_of(ours, theirs, evaluator.resamples) if ours and theirs else None
            if found is not None:
                yield Difference(first=i, second=j, why=why, figure=figure, interval=found, prompts=prompts)
        for figure in [name for name in first.evaluation.items if name in second.evaluation.items]:
            pair = torch.stack([row.evaluation.items[figure].nanmean(0) for row in (first, second)])
            ours, theirs = pair[:, pair.isfinite().all(0)]
            if len(ours) > 1:
                interval = bootstrap_difference(ours, theirs, generator=make_generator(seed))
                yield Difference(first=i, second=j, why=why, figure=figure, interval=interval, prompts=len(ours))
