"""One frozen evaluator for every family: texts of several seeds, their figures beside the corpus' own, and warnings."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError, MantaError, RequestError, UsageError
from manta.evaluation.dataset import EvaluationSet, Metric
from manta.evaluation.features import hashed_ngrams
from manta.evaluation.judges import JudgeModel, asked_without_prompt, shared_training
from manta.evaluation.likelihood import Likelihood, likelihood
from manta.evaluation.texts import RecordedTexts
from manta.evaluation.writing import Contestant, Progress, Written, silent, write
from manta.families.events import GenerateOptions
from manta.metrics import (
    Copying,
    CorpusFigures,
    JudgedQuality,
    bleu,
    chrf,
    copying,
    corpus_figures,
    diversity,
    find_collapse,
    judge_quality,
    mauve,
    repeated_share,
    rouge,
    slot_error_rate,
    slot_errors,
    token_entropy,
)
from manta.metrics.perplexity import first_words
from manta.runtime import make_generator

METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
SHARES: Final = ("slot_error_rate", "missing", "wrong", "hallucinated", "clean")


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """What is measured, and how much of it."""

    metrics: tuple[Metric, ...] = ()
    """Groups of figures; empty: all that the data allows, and `judge` where there is one."""
    num_seeds: int = 3
    """Texts for each prompt, each of another seed; figures are their mean ± half their range."""
    seed: int = 0
    """Of all texts and draws."""
    likelihood_texts: int = 256
    """Human texts whose likelihood is measured."""
    likelihood_samples: int = 8
    """Draws a text for a bound."""
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
class Spread:
    """A figure of several seeds."""

    values: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def half_range(self) -> float:
        """(largest − smallest) / 2; 0 for one seed, which says nothing of the spread."""
        return (max(self.values) - min(self.values)) / 2

    def row(self) -> dict[str, Any]:
        """By name, for JSON."""
        return {"mean": self.mean, "half_range": self.half_range, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of one model with one way to write."""

    model: str
    """Name."""
    family: str
    """manta, masked, ar, or the layout of a published model."""
    figures: Mapping[str, Spread]
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

    def row(self) -> dict[str, Any]:
        """Everything but texts and items, for JSON."""
        return {
            "model": self.model,
            "family": self.family,
            "likelihood": self.likelihood and self.likelihood.row(),
            "figures": {name: spread.row() for name, spread in self.figures.items()},
            "judged": [quality.row() for quality in self.judged],
            "warnings": list(self.warnings),
        }


class Evaluator:
    """Measure models on one set, so that all that belongs to the set is computed once and is the same for all of them.

    Args:
        data: what the models are evaluated on.
        config: what is measured.
        judge: for generative perplexity and for MAUVE's features.
        progress: told what is being done.

    Raises:
        DataError: a group of figures was asked for that the data does not allow.
        UsageError: a judge's figures were asked for without a judge.
    """

    def __init__(
        self,
        data: EvaluationSet,
        config: EvaluatorConfig | None = None,
        *,
        judge: JudgeModel | None = None,
        progress: Progress = silent,
    ) -> None:
        self.data, self.config, self.judge, self.progress = data, config or EvaluatorConfig(), judge, progress
        for metric in self.config.metrics:
            if reason := data.why_not(metric):
                raise DataError(reason)
        if "judge" in self.config.metrics and judge is None:
            raise UsageError("the figures of a judge need one; name it: --judge MODEL")
        self.metrics = self.config.metrics or self._default_metrics()
        self._warnings: list[str] = []

    def _default_metrics(self) -> tuple[Metric, ...]:
        fitting: list[Metric] = [metric for metric in METRICS if self.data.why_not(metric) is None]
        if self.judge is None:
            fitting.remove("judge")
        if self.data.task:  # a solution is one word, right or wrong
            fitting = [metric for metric in fitting if metric in ("likelihood", "diversity", "oracle", "judge")]
        return tuple(fitting)

    @cached_property
    def corpus(self) -> dict[str, float]:
        """The figures of human texts: one a prompt, compared with the others of its prompt where there are others."""
        self.progress("figures of the corpus", 0, 1)
        humans = self.data.humans
        return self._figures(humans, human=True) | self._copied([humans])[0] | self._row(self.held_out)

    @cached_property
    def held_out(self) -> JudgedQuality | None:
        """What the judge says of human texts that it did not learn."""
        return self._judged(self.data.humans, self.config.seed) if "judge" in self.metrics else None

    @property
    def features(self) -> str:
        """Of what MAUVE compares the distributions."""
        return "hashed word 1- and 2-grams" if self.judge is None else f"mean hidden states of {self.judge.name}"

    def measure(self, model: Contestant, options: GenerateOptions, *, with_likelihood: bool = True) -> Evaluation:
        """Write texts with every seed and measure them.

        Args:
            model: any family.
            options: how to write.
            with_likelihood: measure that too; it does not depend on the options.

        Raises:
            RequestError: a prompt does not fit the model.
            UsageError: the options do not fit the model.
        """
        self._warnings = []
        n, config = len(self.data.prompts), self.config
        seeds = [config.seed + n * number for number in range(config.num_seeds)]
        runs = [write(model.lm, self.data, options, seed=seed, progress=self.progress) for seed in seeds]
        runs = [replace(run, texts=[self.data.cut(text) for text in run.texts]) for run in runs]
        judged: list[JudgedQuality] = []
        rows: list[dict[str, float]] = []
        for number, run in enumerate(runs):
            self.progress("measuring", number, len(runs))
            quality = self._judged(run.texts, seeds[number]) if "judge" in self.metrics else None
            judged += [quality] if quality else []
            cost = {} if isinstance(model.lm, RecordedTexts) else _cost(run)
            rows.append({**cost, **self._figures(run.texts), **self._row(quality)})
        for row, copies in zip(rows, self._copied([run.texts for run in runs]), strict=True):
            row |= copies
        found = None
        if with_likelihood and "likelihood" in self.metrics:
            found = self.likelihood(model)
        warnings = [*self._faults(runs[0].texts), *self._doubts(model, options, runs), *self._warnings]
        return Evaluation(
            model=model.name,
            family=model.lm.family,
            # A figure that one seed lacks would not be the mean of the same thing.
            figures={
                name: Spread(tuple(row[name] for row in rows)) for name in rows[0] if all(name in r for r in rows)
            },
            likelihood=found,
            judged=tuple(judged),
            warnings=tuple(dict.fromkeys(warnings)),
            texts=tuple(runs[0].texts),
            items=self._items(runs),
        )

    def likelihood(self, model: Contestant) -> Likelihood:
        """How likely the model finds the human texts."""
        config = self.config
        return likelihood(
            model.lm,
            self.data,
            texts=config.likelihood_texts,
            samples=config.likelihood_samples,
            seed=config.seed,
            progress=self.progress,
        )

    def _figures(self, texts: Sequence[str], *, human: bool = False) -> dict[str, float]:
        found: dict[str, float] = {}
        groups: dict[Metric, Callable[[], Mapping[str, float]]] = {
            "diversity": lambda: diversity(texts),
            "mauve": lambda: self._mauve(texts, human),
            "overlap": lambda: self._overlap(texts, human),
            "slots": lambda: _only(slot_error_rate(self._pairs(texts)), SHARES),
            "oracle": lambda: self._oracle(texts),
        }
        for metric, figures in groups.items():
            if metric in self.metrics:
                found |= self._allowed(metric, figures) or {}
        return found

    def _allowed(self, metric: Metric, measure: Callable[[], Any]) -> Any:
        """The figures; or, where they were not asked for by name and cannot be had, a warning."""
        try:
            return measure()
        except MantaError as error:
            if metric in self.config.metrics:
                raise
            self._warnings.append(f"no {metric}: {error}")
            return None

    def _pairs(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        return [(prompt or "", text) for prompt, text in zip(self.data.prompts, texts, strict=True)]

    def _copied(self, sets: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """For each set of texts the share of training texts among them; one pass over the training texts for all."""
        if "copying" not in self.metrics:
            return [{} for _ in sets]
        span, n = self.config.span, len(sets[0])
        found = copying([text for texts in sets for text in texts], self._training_texts, span=span)
        parts = [
            Copying(span, found.whole[at : at + n], found.covered[at : at + n]) for at in range(0, n * len(sets), n)
        ]
        return [{"training_texts": part.whole_share, f"training_{span}_words": part.span_share} for part in parts]

    @cached_property
    def _training_texts(self) -> list[str]:
        self.progress("reading the training texts", 0, 1)
        return list(self.data.training())

    def _overlap(self, texts: Sequence[str], human: bool) -> dict[str, float]:
        pairs = list(zip(texts, self.data.references, strict=True))
        if human:
            pairs = [(text, group[1:]) for text, group in pairs if len(group) > 1]
            if not pairs:
                return {}
        written, references = (list(side) for side in zip(*pairs, strict=True))
        return {"bleu": bleu(written, references), "chrf": chrf(written, references), **rouge(written, references)}

    def _mauve(self, texts: Sequence[str], human: bool) -> dict[str, float]:
        """Of human texts the scale: second references against first ones, where nearly all prompts have two."""
        if not human:
            ours, theirs = self._encoded(texts), self._references
        else:
            pairs = [group[:2] for group in self.data.references if len(group) > 1]
            if len(pairs) < max(2, 0.8 * len(self.data.references)):
                return {}
            theirs, ours = (self._encoded(side) for side in zip(*pairs, strict=True))
        return {"mauve": mauve(ours, theirs, generator=make_generator(self.config.seed)).value}

    @cached_property
    def _references(self) -> Float[Tensor, "n d"]:
        return self._encoded(self.data.humans)

    def _encoded(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return hashed_ngrams(texts) if self.judge is None else self.judge.features(list(texts))

    def _oracle(self, texts: Sequence[str]) -> dict[str, float]:
        assert self.data.oracle is not None, "checked when the evaluator was made"
        verdict = self.data.oracle.judge(self._pairs(texts))
        return {
            f"oracle_{name}": float(value)
            for name, value in verdict.items()
            if isinstance(value, int | float) and name != "num" and not re.search("stderr|corpus", name)
        }

    def _judged(self, texts: Sequence[str], seed: int) -> JudgedQuality | None:
        judge = self.judge
        assert judge is not None, "checked when the evaluator was made"

        def judged() -> JudgedQuality:
            return judge_quality(texts, self._judge_of_texts, judge_name=judge.name, generator=make_generator(seed))

        return self._allowed("judge", judged)

    @staticmethod
    def _row(quality: JudgedQuality | None) -> dict[str, float]:
        """Perplexity as a figure; its `row` refuses where entropy or repetition is missing."""
        return {} if quality is None else {"perplexity": float(quality.row()["perplexity"] or 0)}

    @cached_property
    def _guards(self) -> CorpusFigures:
        self.progress("figures of the corpus", 0, 1)
        texts = [text for group in self.data.references for text in group]
        return corpus_figures(texts, training=self._training())

    def _training(self) -> list[str] | None:
        return self._training_texts if "copying" in self.metrics else None

    def _faults(self, texts: Sequence[str]) -> list[str]:
        if "guards" not in self.metrics:
            return []
        return [f"{found.fault}: {found}" for found in find_collapse(texts, self._guards, training=self._training())]

    def _doubts(self, model: Contestant, options: GenerateOptions, runs: Sequence[Written]) -> list[str]:
        doubts = []
        ours, human = (_mean_words(texts) for texts in (runs[0].texts, self.data.humans))
        if not human / 1.5 <= ours <= 1.5 * human:
            advice = "" if self.data.conditional else "; --words N compares passages of one length"
            told = f"lengths: {ours:.1f} words a text, {human:.1f} in the corpus"
            doubts.append(f"{told}; most figures depend on length{advice}")
        if len(runs) > 1 and all(run.texts == runs[0].texts for run in runs):
            how = "--temperature 1 draws" if model.lm.family == "ar" else "--style diverse draws"
            doubts.append(f"all seeds wrote the same texts, so half-ranges of 0 say nothing; {how} different ones")
        if self.judge is not None and "judge" in self.metrics:
            doubts += shared_training(self.judge, model)
            doubts += filter(None, [asked_without_prompt(self.judge)])
            if options.top_k is not None or options.top_p < 1:
                doubts.append("words were drawn with a cut (top-k, top-p); compare perplexities only with such texts")
        return doubts

    def _items(self, runs: Sequence[Written]) -> dict[str, Tensor]:
        """What each text shows by itself."""
        data, metrics = self.data, self.metrics
        singles: dict[str, Callable[[int, str], float]] = {}
        if "diversity" in metrics:
            singles["entropy"] = lambda _, text: token_entropy([text])
            singles["repeated_4"] = lambda _, text: repeated_share([text])
            singles["words"] = lambda _, text: len(text.split())
        if "overlap" in metrics:
            singles["chrf"] = lambda i, text: chrf([text], [data.references[i]])
        if "slots" in metrics:
            singles["slot_errors"] = lambda i, text: slot_errors(data.prompts[i] or "", text).errors
        if "oracle" in metrics and (oracle := data.oracle) is not None:
            singles[oracle.name] = lambda i, text: oracle.right(data.prompts[i] or "", text)
        items = {
            name: torch.tensor(
                [[float(single(i, text)) for i, text in enumerate(run.texts)] for run in runs], dtype=torch.float64
            )
            for name, single in singles.items()
        }
        if "judge" in metrics:
            nats = [self._allowed("judge", partial(self._nats_a_token, run.texts)) for run in runs]
            if all(found is not None for found in nats):
                items["judge_nats"] = torch.stack(nats)
        return items

    @property
    def _judge_of_texts(self) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
        """Passages end where they are cut, so that their end is not judged."""
        assert self.judge is not None, "checked when the evaluator was made"
        return self.judge.nats if self.data.words is None else self.judge.beginnings

    def nats_along(self, texts: Sequence[str], ends: Sequence[int]) -> Float[Tensor, "parts n"] | None:
        """What the judge says of each part of a text, given the words before it.

        Args:
            texts: any.
            ends: after how many words each part ends, ascending; the first begins with the text.

        Returns:
            Nats a token of every part of the texts that reach the last end; None where that is fewer than two texts,
            or the judge cannot read so much.
        """
        long = [text for text in texts if len(text.split()) >= ends[-1]]
        if self.judge is None or len(long) < 2:
            return None
        rows = [torch.zeros(2, len(long), dtype=torch.float64)]
        for end in ends:
            try:
                nats, tokens = self.judge.beginnings([first_words(text, end) for text in long])
            except RequestError:
                return None
            rows.append(torch.stack([nats.double(), tokens.double()]))
        nats, tokens = torch.stack(rows).diff(dim=0).unbind(1)
        return nats / tokens

    def _nats_a_token(self, texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Of each text under the judge; nan for one without a word."""
        found = torch.full((len(texts),), torch.nan, dtype=torch.float64)
        said = torch.tensor([bool(text.split()) for text in texts])
        if bool(said.any()):
            nats, tokens = self._judge_of_texts([text for text in texts if text.split()])
            found[said] = nats.double() / tokens
        return found


def _cost(run: Written) -> dict[str, float]:
    return {
        "nfe": sum(run.nfe) / len(run.nfe),
        "most_nfe": float(max(run.nfe)),
        "seconds": run.seconds,
        "seconds_per_text": run.seconds / len(run.texts),
    }


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)


def _only(figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: figures[name] for name in names}
