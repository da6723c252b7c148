"""`manta evaluate [MODEL] --data NAME`: measure a model's texts beside the corpus' own."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from manta.cli.measuring import Line, MeasureOptions, check_data, make_evaluator
from manta.cli.options import argument
from manta.cli.outputs import MARK, claim_file
from manta.cli.writing import parse_writing, run_elsewhere
from manta.errors import UsageError
from manta.families.asked import follows
from manta.families.options import GenerateOptions, given, spelled

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""See `manta.metrics.spread`, which loads what the help does not need."""

OF_MODELS = ("num_seeds", "likelihood_texts", "likelihood_samples", "batch_size")
"""Options that ask more of a model than its texts."""

OF_TASKS = ("lm_eval_include", "lm_eval_shots", "lm_eval_context", "lm_eval_cut", "lm_eval_cache")
"""Options of tasks of lm-evaluation-harness."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Measure a model on held-out data: likelihood, diversity, overlap with references, oracles, signs of collapse."""

    model: str = argument("")
    """A model folder, a run folder of `manta train`, a hub name, or `builtin:NAME` of one that ships; `builtin:e2e`
    without it."""
    texts: tuple[str, ...] = ()
    """Instead of a model, texts that any system has written: a .jsonl, .csv, .tsv or Parquet file with `prompt` and
    `text`, or `text` alone (the E2E challenge's `MR` and `output` serve, too); a folder of .jsonl and Parquet files,
    such as `manta generate --engine ray` writes, or a URL of one; may be repeated."""
    engine: Literal["none", "ray"] = "none"
    """ray: many processes compare --texts with their references, on this machine or on a cluster; figures stay the
    same. It needs `pip install 'manta[ray]'`."""
    workers: int | None = None
    """With --engine ray, processes of this machine; as many as there are cores without it."""
    address: str | None = None
    """With --engine ray, a cluster that runs, such as `auto` or HOST:PORT; RAY_ADDRESS, or this machine, without it."""
    lm_eval: tuple[str, ...] = ()
    """Instead of `--data`, tasks of lm-evaluation-harness, separated by commas or repeated, of each the first `--num`
    documents; they need `pip install 'manta[lm-eval]'`."""
    lm_eval_include: Path | None = None
    """A folder with tasks of your own, a YAML file each."""
    lm_eval_shots: int | None = None
    """Examples before each question; as the task says without it."""
    lm_eval_context: Literal["auto", "prompt", "beginning"] = "auto"
    """Whether what stands before a question is the model's prompt or the beginning of its text; auto: as it was
    trained."""
    lm_eval_cut: bool = False
    """Cut contexts that the model has no room for, at their beginning, instead of stopping at them."""
    lm_eval_cache: Path | None = None
    """A file that keeps answers, so that an interrupted evaluation goes on where it was."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path | None = None
    """Write that JSON object to a file, too."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb; a model of images is measured by `cli.evaluate_images`.

    Args:
        argv: what follows the verb.

    Returns:
        0.

    Raises:
        UsageError: wrong options, among them a perplexity without what has to stand beside it, or texts and a model.
        DataError: the data is missing, empty, or does not allow a figure that was asked for.
        ModelError: the model or the judge cannot be loaded.
    """
    if (status := run_elsewhere(argv, "evaluate")) is not None:
        return status
    options, how = parse_writing(EvaluateOptions, argv, "evaluate")
    claim_file(options.out, "evaluate")
    if options.lm_eval:
        from manta.cli.evaluate_tasks import run_tasks_of

        return run_tasks_of(options, argv)
    if moot := [name for name in OF_TASKS if getattr(options, name) != getattr(EvaluateOptions(), name)]:
        raise UsageError(f"--{moot[0].replace('_', '-')} is for tasks; name some with --lm-eval, or leave it out")
    check_engine(options)
    if options.texts:
        if options.model or "likelihood" in ",".join(options.metrics).split(","):
            raise UsageError(
                "--texts stands in the place of a model and has no likelihood; leave out MODEL and likelihood"
            )
        usual = EvaluateOptions()
        moot = [spelled(name) for name in given(how)]
        options = replace(options, num_seeds=usual.num_seeds if options.num_seeds == 1 else options.num_seeds)
        moot += [f"--{name.replace('_', '-')}" for name in OF_MODELS if getattr(options, name) != getattr(usual, name)]
        if moot:
            raise UsageError(f"--texts reads what is written, so {moot[0]} means nothing; leave it out")
        options = replace(options, num_seeds=1)
    check_data(options, "evaluate")
    with spreading(options) as spread:
        return _measure(options, how, argv, spread)


def check_engine(options: EvaluateOptions) -> None:
    """Refuse options of an engine without it, and an engine for what it does not do.

    Raises:
        UsageError: as said.
    """
    if options.engine == "none":
        if moot := [name for name in ("workers", "address") if getattr(options, name) is not None]:
            raise UsageError(f"--{moot[0]} is for --engine ray; give that too, or leave it out")
        return
    if not options.texts:
        raise UsageError(
            "--engine ray compares texts that are written; write them first: manta generate MODEL --engine ray "
            "--input FILE --out DIR, and give --texts DIR"
        )
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers should be at least 1, received {options.workers}")


@contextmanager
def spreading(options: EvaluateOptions) -> Iterator[Spread | None]:
    """What measures shards of prompts: the processes of an engine; None without one."""
    if options.engine == "none":
        yield None
        return
    from manta.cluster import spreading

    with spreading(options.address, workers=options.workers) as spread:
        yield spread


def _measure(options: EvaluateOptions, how: GenerateOptions, argv: Sequence[str], spread: Spread | None) -> int:
    """Measure, and tell what was found."""
    progress = Line()
    from manta.evaluation import RecordedTexts, contestant, recorded_texts
    from manta.runtime import atomic_write

    said = []
    if not options.texts:
        model = contestant(options.model, device=options.device, task=options.task)
        if "num_steps" in given(how) and not follows(model.lm.family, "num_steps"):
            # One command is meant to serve models of all families, as `compare` does.
            how = replace(how, num_steps=GenerateOptions().num_steps)
            said.append(f"{model.name} takes a call a token, so --num-steps is left out")
        evaluator = make_evaluator(options, progress, "evaluate", [model])
    else:
        evaluator = make_evaluator(options, progress, "evaluate", spread=spread)
        model = recorded_texts(options.texts, evaluator.data.prompts)
    evaluation = evaluator.measure(model, how, with_likelihood=not options.texts)
    corpus = evaluator.corpus
    progress.clear()
    report = {
        MARK: "manta evaluate",
        "command": shlex.join(["manta", "evaluate", *argv]),
        "data": evaluator.data.name,
        "split": evaluator.data.split,
        "prompts": len(evaluator.data.prompts),
        "left_out_prompts": evaluator.left_out,
        "conditional": evaluator.data.conditional,
        "words": evaluator.data.words,
        "references": sum(map(len, evaluator.data.references)),
        "seeds": evaluator.config.num_seeds,
        "options": None if options.texts else _followed(how, model.lm.family),
        **evaluation.row(),
        "corpus": corpus,
        "corpus_judged": None if evaluator.held_out is None else evaluator.held_out.row(),
        "corpus_intervals": {name: [i.low, i.high] for name, i in evaluator.corpus_intervals.items()},
        "level": 0.95,
        "read_by": evaluator.words.row(),
        "mauve_features": evaluator.features,
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if isinstance(model.lm, RecordedTexts) and (spare := len(model.lm) - len(evaluation.texts)):
        print(f"warning: {spare} texts of {model.lm.where} were not asked for", file=sys.stderr)
    for warning in (*said, *evaluation.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(report, ensure_ascii=False) if options.json else _table(report))
    return 0


def _followed(how: GenerateOptions, family: str) -> dict[str, Any]:
    """The options that a family follows, by name."""
    return {name: value for name, value in asdict(how).items() if follows(family, name)}


def _table(report: dict[str, Any]) -> str:
    several = report["seeds"] > 1
    of = "" if report["words"] is None else f", all passages of {report['words']} {report['read_by']['unit']}"
    part = "the whole file" if report["split"] == "all" else report["split"]
    head = f"{'':<22} {'model':>10} {'95% interval':>20} " + (f"{'over seeds':>20} " if several else "")
    lines = [
        f"{report['model']} ({report['family']}) on {report['data']}, {part}: "
        f"{report['prompts']} texts a seed for {report['references']} human ones{of}; "
        f"{report['seeds']} sampling seed{'s' if several else ''}",
        "",
        head + f"{'corpus':>10} {'95% interval':>20}",
    ]
    for name, figure in report["figures"].items():
        cells = f"{name:<22} {figure['mean']:>10.4g} {_ends(figure['low'], figure['high']):>20} "
        if several:
            cells += f"{_ends(figure['seed_least'], figure['seed_most']):>20} "
        known = name in report["corpus"]
        human = f"{report['corpus'][name]:.4g}" if known else "–"
        lines.append(f"{cells}{human:>10} {_ends(*report['corpus_intervals'].get(name, (None, None))):>20}".rstrip())
    lines += ["", *_notes(report)]
    return "\n".join(lines)


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _notes(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the figures."""
    items = "prompts" if report["conditional"] else "texts"
    notes = [f"intervals are over {items}, for this training and these seeds; where there is none, none can be had"]
    notes += _overlap(report)
    notes += [_likelihood(report["likelihood"])] if report["likelihood"] is not None else []
    for row in report["judged"][:1]:
        held_out = report["corpus_judged"]
        human = (
            "none"
            if held_out is None
            else f"{held_out['perplexity']:.4g} a token, {held_out['perplexity_per_word']:.4g} a word, "
            f"{held_out['bits_per_byte']:.4g} bits a byte"
        )
        notes.append(
            f"perplexity under {row['judge']}, {row['tokens']} tokens a seed: {row['perplexity_per_word']:.4g} a word, "
            f"{row['bits_per_byte']:.4g} bits a byte; of the human texts, its held-out perplexity: {human}; read it "
            f"beside entropy and repeated_4 of the same texts: {row['entropy']:.3f} nats, {row['repeated_4']:.2%}"
        )
    if "mauve" in report["figures"]:
        notes.append(f"MAUVE compares {report['mauve_features']}")
    return notes


def _overlap(report: dict[str, Any]) -> list[str]:
    """How texts were read for overlap, and which figures of people and of the model compare."""
    if "chrf" not in report["figures"]:
        return []
    read = report["read_by"]
    known = {
        "bleu": f"BLEU: sacreBLEU's tokens {read['bleu_tokens']}, lower-cased",
        "rougeL": f"ROUGE: {read['rouge_words']}",
    }
    notes = ["; ".join(how for name, how in known.items() if name in report["figures"])]
    if "chrf_one_fewer" in report["figures"]:
        notes.append(
            "bleu, chrf and rouge take all references, as published scores do; people have one fewer, since a text is "
            "none of its own, so people and model compare by …_one_fewer: each reference left out in turn"
        )
    else:
        notes.append("every prompt has one reference, so there is no such score of people")
    return list(filter(None, notes))


def _likelihood(found: dict[str, Any]) -> str:
    if found["kind"] == "none":
        return f"likelihood: none ({found['estimator']})"
    sign = "≤ " if found["kind"] == "bound" else ""
    error = found["standard_error"]
    samples = "" if found["samples"] is None else f", {found['samples']} draws a text"
    bits = f"{found['bits_per_byte']:.4g} [{found['bits_per_byte_low']:.4g}, {found['bits_per_byte_high']:.4g}]"
    nats = f"{sign}{found['nats_per_token']:.4g}"
    drawn = "" if error is None else f" (standard error of the draws {error:.2g})"
    return (
        f"likelihood: {found['kind']}, {nats} nats a token{drawn}, {sign}{bits} bits a byte; "
        f"{found['texts']} human texts ({found['too_long']} too long); {found['estimator']}{samples}; "
        f"self-conditioning {found['self_conditioning']}"
    )
