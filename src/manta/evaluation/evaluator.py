"""One frozen evaluator for every family: texts of several seeds, their figures beside the corpus' own, and warnings."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError, MantaError, RequestError, UsageError
from manta.evaluation.dataset import EvaluationSet, Metric
from manta.evaluation.features import hashed_ngrams
from manta.evaluation.judges import JudgeModel, asked_without_prompt, shared_training
from manta.evaluation.likelihood import Likelihood, likelihood
from manta.evaluation.results import METRICS, Evaluation, EvaluatorConfig, Figure
from manta.evaluation.texts import RecordedTexts
from manta.evaluation.writing import Contestant, Progress, Written, fitting, silent, trained_with_prompts, write
from manta.families.asked import follows
from manta.families.events import GenerateOptions
from manta.metrics import (
    Copying,
    CorpusFigures,
    Interval,
    JudgedQuality,
    Measured,
    OverlapSums,
    Share,
    Sums,
    Words,
    copying,
    corpus_figures,
    diversity_measured,
    find_collapse,
    interval_of,
    judge_quality,
    mauve,
    normal,
    repeated_share,
    resampled,
    slot_errors,
    slot_errors_measured,
    token_entropy,
    value_of,
    words_of,
)
from manta.metrics.spread import Spread, in_turn
from manta.runtime import make_generator

FEW_JUDGED: Final = 100
"""Texts below which a generative perplexity is warned of: its interval is then too narrow and its texts too few."""


class Evaluator:
    """Measure models on one set, so that all that belongs to the set is computed once and is the same for all of them.

    Args:
        data: what the models are evaluated on.
        config: what is measured.
        judge: for generative perplexity and for MAUVE's features.
        progress: told what is being done.
        spread: measures shards of prompts, where a figure is made of what each prompt adds; it changes no figure.

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
        spread: Spread = in_turn,
    ) -> None:
        self.data, self.config, self.judge = data, config or EvaluatorConfig(), judge
        self.progress, self.spread = progress, spread
        for metric in self.config.metrics:
            if reason := data.why_not(metric):
                raise DataError(reason)
        if "judge" in self.config.metrics and judge is None:
            raise UsageError("the figures of a judge need one; name it: --judge MODEL")
        self.metrics = self.config.metrics or self._default_metrics()
        self._warnings: list[str] = []
        self.references = [[normal(text) for text in group] for group in data.references]
        """Human texts as they are scored: in the composed form NFC."""
        self.left_out = 0
        """Prompts of the data that a model has no room for; see `fitting`."""

    def fitting(self, models: Sequence[Contestant]) -> "Evaluator":
        """The same evaluator on the prompts that all models have room for, so that all are measured on the same.

        Raises:
            RequestError: a model has room for none of them.
        """
        kept = list(range(len(self.data.prompts)))
        for model in models:
            if isinstance(model.lm, RecordedTexts):
                continue
            room = fitting(model.lm, [self.data.prompts[at] for at in kept])
            kept = [at for at, fits in zip(kept, room, strict=True) if fits]
        lost = len(self.data.prompts) - len(kept)
        if not lost:
            return self
        prompts, references = (tuple(side[at] for at in kept) for side in (self.data.prompts, self.data.references))
        data = replace(self.data, prompts=prompts, references=references)
        found = Evaluator(data, self.config, judge=self.judge, progress=self.progress, spread=self.spread)
        found.left_out = self.left_out + lost
        return found

    def _default_metrics(self) -> tuple[Metric, ...]:
        fitting: list[Metric] = [metric for metric in METRICS if self.data.why_not(metric) is None]
        if self.judge is None:
            fitting.remove("judge")
        if self.data.task:  # a solution is one word, right or wrong
            fitting = [metric for metric in fitting if metric in ("likelihood", "diversity", "oracle", "judge")]
        return tuple(fitting)

    @cached_property
    def words(self) -> Words:
        """How texts are read, by the script of the human ones."""
        return words_of(text for group in self.references for text in group)

    @property
    def humans(self) -> list[str]:
        """One human text a prompt, as it is scored."""
        return [group[0] for group in self.references]

    @property
    def corpus(self) -> dict[str, float]:
        """The figures of human texts: one a prompt; where they are compared with others of their prompt, each with the
        rest, so that such figures are those ending in `_one_fewer`."""
        return {name: value_of(measured) for name, measured in self._corpus.items()}

    @cached_property
    def corpus_intervals(self) -> dict[str, Interval]:
        """Of those figures that have one, over prompts."""
        found = {name: interval_of([measured], self.resamples) for name, measured in self._corpus.items()}
        return {name: interval for name, interval in found.items() if interval is not None}

    @cached_property
    def _corpus(self) -> dict[str, Measured]:
        self.progress("figures of the corpus", 0, 1)
        humans = self.humans
        return self._figures(humans, human=True) | self._copied([humans])[0] | self._row(self.held_out)

    @cached_property
    def resamples(self) -> Float[Tensor, "r n"]:
        """Of the prompts, the same for every figure and every model."""
        return resampled(len(self.data.prompts), generator=make_generator(self.config.seed))

    @cached_property
    def held_out(self) -> JudgedQuality | None:
        """What the judge says of human texts that it did not learn."""
        return self._judged(self.humans, self.config.seed) if "judge" in self.metrics else None

    @property
    def features(self) -> str:
        """Of what MAUVE compares the distributions."""
        return (
            f"hashed 1- and 2-grams of {self.words.unit}"
            if self.judge is None
            else f"mean hidden states of {self.judge.name}"
        )

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
        how: dict[str, Any] = {"batch_size": config.batch_size, "progress": self.progress}
        runs = [write(model.lm, self.data, options, seed=seed, **how) for seed in seeds]
        runs = [replace(run, texts=[self.data.cut(text) for text in run.texts]) for run in runs]
        shown = tuple(runs[0].texts)
        runs = [replace(run, texts=[normal(text) for text in run.texts]) for run in runs]
        judged: list[JudgedQuality] = []
        rows: list[dict[str, Measured]] = []
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
        forms = _other_form(shown, self.data.references)
        warnings = [*self._faults(runs[0].texts), *self._doubts(model, options, runs, judged), *forms, *self._warnings]
        # A figure that one seed lacks would not be the mean of the same thing.
        measured = {name: [row[name] for row in rows] for name in rows[0] if all(name in row for row in rows)}
        return Evaluation(
            model=model.name,
            family=model.lm.family,
            figures={name: Figure.of(each, self.resamples) for name, each in measured.items()},
            likelihood=found,
            judged=tuple(judged),
            warnings=tuple(dict.fromkeys(warnings)),
            texts=shown,
            items=self._items(runs, judged) | _of_each(measured),
            measured=measured,
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

    def _figures(self, texts: Sequence[str], *, human: bool = False) -> dict[str, Measured]:
        found: dict[str, Measured] = {}
        words = self.words
        groups: dict[Metric, Callable[[], Mapping[str, Measured]]] = {
            "diversity": lambda: diversity_measured(texts, words.split, unit=words.unit),
            "mauve": lambda: self._mauve(texts, human),
            "overlap": lambda: self._overlap.of_people if human else self._overlap.of_model(texts),
            "slots": lambda: slot_errors_measured(self._pairs(texts), self.spread),
            "oracle": lambda: self._oracle(texts),
        }
        for metric, figures in groups.items():
            if metric in self.metrics:
                found |= self._allowed(metric, figures) or {}
        return found

    @cached_property
    def _overlap(self) -> OverlapSums:
        return OverlapSums(self.references, words=self.words, spread=self.spread)

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

    def _copied(self, sets: Sequence[Sequence[str]]) -> list[dict[str, Measured]]:
        """For each set of texts the share of training texts among them; one pass over the training texts for all."""
        if "copying" not in self.metrics:
            return [{} for _ in sets]
        span, n = self.config.span, len(sets[0])
        texts = [text for texts in sets for text in texts]
        found = copying(texts, self._training_texts, span=span, tokenize=self.words.split)
        parts = [
            Copying(span, found.whole[at : at + n], found.covered[at : at + n]) for at in range(0, n * len(sets), n)
        ]
        return [
            {
                "training_texts": Share(torch.tensor(part.whole)),
                f"training_{span}_{self.words.unit}": Share(torch.tensor(part.covered) > 0),
            }
            for part in parts
        ]

    @cached_property
    def _training_texts(self) -> list[str]:
        self.progress("reading the training texts", 0, 1)
        return [normal(text) for text in self.data.training()]

    def _mauve(self, texts: Sequence[str], human: bool) -> dict[str, Measured]:
        """Of human texts the scale: second references against first ones, where so many prompts have two that the
        number of texts, on which the score depends, is about that of a model."""
        if not human:
            ours, theirs = self._encoded(texts), self._references
        else:
            pairs = [group[:2] for group in self.references if len(group) > 1]
            if len(pairs) < max(2, 0.95 * len(self.references)):
                return {}
            theirs, ours = (self._encoded(side) for side in zip(*pairs, strict=True))
        found = mauve(ours, theirs, generator=make_generator(self.config.seed))
        # Prompts left out would not be the items of the other figures.
        return {"mauve": found.measured if len(ours) == len(self.references) else found.value}

    @cached_property
    def _references(self) -> Float[Tensor, "n d"]:
        return self._encoded(self.humans)

    def _encoded(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return hashed_ngrams(texts) if self.judge is None else self.judge.features(list(texts))

    def _oracle(self, texts: Sequence[str]) -> dict[str, Measured]:
        oracle = self.data.oracle
        assert oracle is not None, "checked when the evaluator was made"
        verdict = oracle.judge(self._pairs(texts))
        found: dict[str, Measured] = {
            f"oracle_{name}": float(value)
            for name, value in verdict.items()
            if isinstance(value, int | float) and name != "num" and not re.search("stderr|corpus", name)
        }
        right = [oracle.right(*pair) for pair in self._pairs(texts)]
        found[f"oracle_{oracle.name}"] = Share(torch.tensor(right))
        return found

    def _judged(self, texts: Sequence[str], seed: int) -> JudgedQuality | None:
        judge = self.judge
        assert judge is not None, "checked when the evaluator was made"

        def judged() -> JudgedQuality:
            return judge_quality(
                texts,
                self._judge_of_texts,
                judge_name=judge.name,
                generator=make_generator(seed),
                tokenize=self.words.split,
            )

        return self._allowed("judge", judged)

    @staticmethod
    def _row(quality: JudgedQuality | None) -> dict[str, Measured]:
        """Perplexity as a figure; its `row` refuses where entropy or repetition is missing."""
        return {} if quality is None or not quality.row() else {"perplexity": quality.measured}

    @cached_property
    def _guards(self) -> CorpusFigures:
        self.progress("figures of the corpus", 0, 1)
        texts = [text for group in self.references for text in group]
        return corpus_figures(texts, training=self._training(), tokenize=self.words.split)

    def _training(self) -> list[str] | None:
        return self._training_texts if "copying" in self.metrics else None

    def _faults(self, texts: Sequence[str]) -> list[str]:
        if "guards" not in self.metrics:
            return []
        return [f"{found.fault}: {found}" for found in find_collapse(texts, self._guards, training=self._training())]

    def _doubts(
        self, model: Contestant, options: GenerateOptions, runs: Sequence[Written], judged: Sequence[JudgedQuality]
    ) -> list[str]:
        doubts, unit = [], self.words.unit
        ours, human = (
            sum(len(self.words.split(text)) for text in texts) / len(texts) for texts in (runs[0].texts, self.humans)
        )
        if not human / 1.5 <= ours <= 1.5 * human:
            advice = "" if self.data.conditional else "; --words N compares passages of one length"
            told = f"lengths: {ours:.1f} {unit} a text, {human:.1f} in the corpus"
            doubts.append(f"{told}; most figures depend on length{advice}")
        doubts += self._prompts_amiss(model)
        if "overlap" in self.metrics and (wordless := self._allowed("overlap", lambda: self._overlap.wordless)):
            doubts.append(
                f"ROUGE leaves out {wordless} of {len(self.references)} prompts, whose references have no word"
            )
        if "overlap" in self.metrics and self._allowed("overlap", lambda: self._overlap.phrases) is False:
            doubts.append("BLEU is left out: it counts sequences of four words, and no reference has one")
        if len(runs) > 1 and all(run.texts == runs[0].texts for run in runs):
            how = "--style diverse draws" if follows(model.lm.family, "style") else "--temperature 1 draws"
            doubts.append(f"all seeds wrote the same texts, so that they agree says nothing; {how} different ones")
        if self.judge is not None and "judge" in self.metrics:
            if len(runs[0].texts) < FEW_JUDGED:
                told = f"the perplexity is that of {len(runs[0].texts)} texts, which tell little"
                doubts.append(f"{told}; give at least {FEW_JUDGED}")
            if unread := sum(quality.unjudged for quality in judged):
                of = sum(quality.texts for quality in judged)
                doubts.append(
                    f"the judge {self.judge.name} could not read {unread} of {of} texts, too long or too short for it, "
                    "which are in none of its figures"
                )
            doubts += shared_training(self.judge, model)
            doubts += filter(None, [asked_without_prompt(self.judge)])
            if options.top_k is not None or options.top_p < 1:
                doubts.append("words were drawn with a cut (top-k, top-p); compare perplexities only with such texts")
        return doubts

    def _prompts_amiss(self, model: Contestant) -> list[str]:
        """Say that a model of prompts is asked without, or the other way round, and which prompts it is not asked."""
        said, learned = [], trained_with_prompts(model)
        if learned and not self.data.conditional:
            said.append(f"{model.name} learned to answer prompts, and {self.data.name} has none; it writes without")
        if learned is False and self.data.conditional:
            said.append(
                f"{model.name} learned texts without prompts, and {self.data.name} has some; it may ignore them"
            )
        if self.left_out:
            of = self.left_out + len(self.data.prompts)
            said.append(
                f"{self.left_out} of {of} prompts do not fit the model, or one of those compared, and are left out of "
                "all figures, the human ones too"
            )
        return said

    def _items(self, runs: Sequence[Written], judged: Sequence[JudgedQuality]) -> dict[str, Tensor]:
        """What each text shows by itself."""
        data, metrics, split = self.data, self.metrics, self.words.split
        singles: dict[str, Callable[[int, str], float]] = {}
        if "diversity" in metrics:
            singles["entropy"] = lambda _, text: token_entropy([text], split)
            singles["repeated_4"] = lambda _, text: repeated_share([text], 4, split)
            singles[self.words.unit] = lambda _, text: len(split(text))
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
        if len(judged) == len(runs):
            items["judge_nats"] = torch.stack([quality.nats_a_token for quality in judged])
        return items

    @property
    def _judge_of_texts(self) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
        """Passages end where they are cut, so that their end is not judged."""
        assert self.judge is not None, "checked when the evaluator was made"
        return self.judge.nats if self.data.words is None else self.judge.beginnings

    def nats_along(self, texts: Sequence[str], ends: Sequence[int]) -> Float[Tensor, "parts n"] | None:
        """What the judge says of each part of a text, given what is before it.

        Args:
            texts: any.
            ends: after how many words, or characters, each part ends, ascending; the first begins with the text.

        Returns:
            Nats a token of every part of the texts that reach the last end; None where that is fewer than two texts,
            or the judge cannot read so much.
        """
        long = [text for text in texts if len(self.words.split(text)) >= ends[-1]]
        if self.judge is None or len(long) < 2:
            return None
        rows = [torch.zeros(2, len(long), dtype=torch.float64)]
        for end in ends:
            try:
                nats, tokens = self.judge.beginnings([self.words.first(text, end) for text in long])
            except RequestError:
                return None
            rows.append(torch.stack([nats.double(), tokens.double()]))
        nats, tokens = torch.stack(rows).diff(dim=0).unbind(1)
        return nats / tokens


def _of_each(measured: Mapping[str, Sequence[Measured]]) -> dict[str, Tensor]:
    """chrF of every text by itself: the figure of its own row of counts."""
    rows = [run for run in measured.get("chrf", ()) if isinstance(run, Sums)]
    return {"chrf": torch.stack([run.figure(run.rows) for run in rows])} if rows else {}


def _cost(run: Written) -> dict[str, Measured]:
    return {
        "nfe": Sums.mean(torch.tensor(run.nfe, dtype=torch.float64)),
        "most_nfe": float(max(run.nfe)),
        "seconds": run.seconds,
        "seconds_per_text": run.seconds / len(run.texts),
    }


def _other_form(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Say that some texts are not in the form in which all are compared."""
    ours = sum(normal(text) != text for text in texts)
    human = [normal(text) != text for group in references for text in group]
    if not ours and not any(human):
        return []
    return [
        f"{ours} of {len(texts)} texts and {sum(human)} of {len(human)} human ones are not in the composed form NFC; "
        "all were composed before they were compared"
    ]
