"""`manta evaluate [MODEL] --data NAME`: measure a model's texts beside the corpus' own."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manta.cli.measuring import Line, MeasureOptions, make_evaluator
from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file
from manta.errors import UsageError

WRITING = ("num_steps", "style", "decoder", "temperature", "guidance_scale", "top_k", "top_p", "batch_size")
"""Options that say how a model writes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Measure a model on held-out data: likelihood, diversity, overlap with references, oracles, signs of collapse."""

    model: str = argument("")
    """A model folder, a run folder of `manta train`, or a hub name; the model that ships without it."""
    texts: Path | None = None
    """Instead of a model, texts that any system has written: a .jsonl, .csv or .tsv file with `prompt` and `text`, or
    `text` alone (the E2E challenge's `MR` and `output` serve, too)."""
    num_steps: int = 8
    """Budget of network calls for a text."""
    temperature: float = 0.0
    """Temperature of the words; 0 takes the most likely one."""
    guidance_scale: float = 1.0
    """Strength of guidance by the prompt; 1 is off, anything else doubles the flow's calls."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path | None = None
    """Write that JSON object to a file, too."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows the verb.

    Returns:
        0.

    Raises:
        UsageError: wrong options, among them a perplexity without what has to stand beside it, or texts and a model.
        DataError: the data is missing, empty, or does not allow a figure that was asked for.
        ModelError: the model or the judge cannot be loaded.
    """
    options = parse_options(EvaluateOptions, argv, "evaluate")
    claim_file(options.out, "evaluate")
    if options.texts is not None:
        if options.model or "likelihood" in ",".join(options.metrics).split(","):
            raise UsageError(
                "--texts stands in the place of a model and has no likelihood; leave out MODEL and likelihood"
            )
        usual = EvaluateOptions()
        if moot := [name for name in WRITING if getattr(options, name) != getattr(usual, name)]:
            raise UsageError(f"--texts writes nothing, so --{moot[0].replace('_', '-')} means nothing; leave it out")
        options = replace(options, num_seeds=1)
    progress = Line()
    evaluator = make_evaluator(options, progress, "evaluate")
    from manta.config import from_dict
    from manta.evaluation import RecordedTexts, contestant, recorded_texts
    from manta.families.events import GenerateOptions
    from manta.runtime import atomic_write

    how = from_dict(GenerateOptions, {name: getattr(options, name) for name in WRITING})
    if options.texts is None:
        model = contestant(options.model, device=options.device)
    else:
        model = recorded_texts(options.texts)
    evaluation = evaluator.measure(model, how, with_likelihood=options.texts is None)
    corpus = evaluator.corpus
    progress.clear()
    report = {
        "command": shlex.join(["manta", "evaluate", *argv]),
        "data": evaluator.data.name,
        "split": evaluator.data.split,
        "prompts": len(evaluator.data.prompts),
        "words": evaluator.data.words,
        "references": sum(map(len, evaluator.data.references)),
        "seeds": evaluator.config.num_seeds,
        "options": {name: getattr(options, name) for name in WRITING} if options.texts is None else None,
        **evaluation.row(),
        "corpus": corpus,
        "mauve_features": evaluator.features,
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if isinstance(model.lm, RecordedTexts) and (spare := len(model.lm) - len(evaluation.texts)):
        print(f"warning: {spare} texts of {options.texts} were not asked for", file=sys.stderr)
    for warning in evaluation.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(report, ensure_ascii=False) if options.json else _table(report))
    return 0


def _table(report: dict[str, Any]) -> str:
    seeds = f"{report['seeds']} seeds: mean ± half their range" if report["seeds"] > 1 else "1 seed"
    of = "" if report["words"] is None else f", all passages of {report['words']} words"
    lines = [
        f"{report['model']} ({report['family']}) on {report['data']}, {report['split']}: "
        f"{report['prompts']} texts a seed for {report['references']} human ones{of}; {seeds}",
        "",
        f"{'':<26} {'model':>20} {'corpus':>12}",
    ]
    for name, spread in report["figures"].items():
        ours = f"{spread['mean']:.4g}" + (f" ± {spread['half_range']:.2g}" if report["seeds"] > 1 else "")
        human = f"{report['corpus'][name]:.4g}" if name in report["corpus"] else "–"
        lines.append(f"{name:<26} {ours:>20} {human:>12}")
    lines += ["", *_notes(report)]
    return "\n".join(lines)


def _notes(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the figures."""
    notes = [_likelihood(report["likelihood"])] if report["likelihood"] is not None else []
    for row in report["judged"][:1]:
        held_out = report["corpus"].get("perplexity")
        human = "none" if held_out is None else f"{held_out:.4g}"
        notes.append(
            f"perplexity under {row['judge']}, {row['tokens']} tokens a seed; of the human texts, its held-out "
            f"perplexity: {human}; read it beside entropy and repeated_4 of the same texts: {row['entropy']:.3f} nats, "
            f"{row['repeated_4']:.2%}"
        )
    if "mauve" in report["figures"]:
        notes.append(f"MAUVE compares {report['mauve_features']}")
    return notes


def _likelihood(found: dict[str, Any]) -> str:
    if found["kind"] == "none":
        return f"likelihood: none ({found['estimator']})"
    sign = "≤ " if found["kind"] == "bound" else ""
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.2g}"
    samples = "" if found["samples"] is None else f", {found['samples']} draws a text"
    bits = f"{found['bits_per_byte']:.4g} [{found['bits_per_byte_low']:.4g}, {found['bits_per_byte_high']:.4g}]"
    nats = f"{sign}{found['nats_per_token']:.4g}{error}"
    return (
        f"likelihood: {found['kind']}, {nats} nats a token, {sign}{bits} bits a byte; "
        f"{found['texts']} human texts ({found['too_long']} too long); {found['estimator']}{samples}; "
        f"self-conditioning {found['self_conditioning']}"
    )
