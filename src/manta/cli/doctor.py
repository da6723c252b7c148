"""`manta doctor FILE|DIR`: look for trouble in a data file or a run before it costs time."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options
from manta.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Examine a data file, or a run folder of `manta train`, and warn of what would waste a run."""

    target: str = argument()
    """A .txt, .jsonl or .csv file; builtin:weather; a structured task: builtin:sudoku4, builtin:sudoku9,
    builtin:countdown, d1-countdown:PATH, sudoku17:PATH (d1-sudoku:PATH is a test set only); e2e:PATH,
    tinystories:PATH, hf:NAME; or a run folder."""
    max_prompt: int = 64
    """Longest prompt of the model to be trained, in tokens; a structured task has its own."""
    max_text: int = 96
    """Longest text, in tokens; a structured task has its own."""
    vocab_size: int = 1024
    """Tokens of the tokenizer to be trained; a structured task has a token a symbol."""
    json: bool = False
    """Print one JSON object: figures and warnings."""


@dataclass(frozen=True)
class Finding:
    """A warning and what to do about it."""

    text: str
    advice: str


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(DoctorOptions, argv, "doctor")
    folder = Path(options.target)
    if folder.is_dir() and ((folder / "recipe.json").exists() or (folder / "config.json").exists()):
        figures, findings = _examine_run(folder)
    else:
        figures, findings = _examine_data(options)
    if options.json:
        warnings = [{"warning": f.text, "advice": f.advice} for f in findings]
        print(json.dumps({"figures": figures, "warnings": warnings}, ensure_ascii=False))
        return 0
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<32} {_shown(value)}")
    print()
    for finding in findings:
        print(f"warning: {finding.text}\n   try: {finding.advice}")
    if not findings:
        print("nothing to warn of")
    return 0


def _examine_data(options: DoctorOptions) -> tuple[dict[str, Any], list[Finding]]:
    from manta.data import describe, read, task_of, tokenizer_for

    print("reading the data twice: tokenizer, then figures", file=sys.stderr)
    tokenizer, task = tokenizer_for(options.target, options.vocab_size), task_of(options.target)
    if task is not None:  # the lengths that a run takes of itself
        options = replace(options, max_prompt=task.prompt_length, max_text=task.text_length)
    found = describe(read(options.target), tokenizer, options.max_prompt, options.max_text)
    findings = list(_data_findings(found, options))
    return asdict(found), findings if task is not None else [*findings, *_vocabulary_findings(found, options)]


def _data_findings(found: Any, options: DoctorOptions) -> Iterator[Finding]:
    if found.examples < 1000:
        yield Finding(f"only {found.examples:,} examples", "expect the model to repeat them; 10,000 is a good start")
    if found.duplicate_share > 0.05:
        yield Finding(
            f"{found.duplicate_share:.0%} of the examples are exact duplicates", "they are dropped; check the export"
        )
    if found.empty_share > 0.01:
        yield Finding(
            f"{found.empty_share:.0%} of the examples have no text", "they are dropped; check the field names"
        )
    if found.truncation_share > 0.02:
        longest = found.text_quantiles[0.99]
        yield Finding(
            f"{found.truncation_share:.0%} of the examples do not fit {options.max_prompt} + {options.max_text} tokens",
            f"set max_text={longest} (99% of the texts fit), or a larger vocab_size",
        )


def _vocabulary_findings(found: Any, options: DoctorOptions) -> Iterator[Finding]:
    """What only concerns a tokenizer that was trained."""
    from manta.data.tokenizers import MIN_VOCAB

    if found.bytes_per_token < 2:
        yield Finding(
            f"{found.bytes_per_token:.1f} bytes a token: the vocabulary does not cover the texts", "double vocab_size"
        )
    # A byte-level vocabulary keeps all 256 bytes, which plain text hardly uses; what counts is what was learned.
    learned = options.vocab_size - 256
    unused = found.unused_vocabulary_share * options.vocab_size - 256
    if options.vocab_size >= 2 * MIN_VOCAB and unused > 0.3 * learned:
        yield Finding(f"{unused / learned:.0%} of the learned vocabulary is never used", "halve vocab_size")


def _examine_run(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    from manta.hub import load

    figures: dict[str, Any] = {}
    findings: list[Finding] = []
    if (folder / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        recipe = json.loads((folder / "recipe.json").read_text())
        figures["steps"] = len(rows)
        findings += _log_findings(rows, recipe, figures)
    if not (folder / "model").exists() and not (folder / "config.json").exists():
        if not figures:
            raise ModelError(f"{folder} holds neither a log nor a model; give the folder of a run")
        return figures, findings
    findings += _model_findings(load(folder), figures)
    return figures, findings


def _log_findings(rows: list[dict[str, Any]], recipe: dict[str, Any], figures: dict[str, Any]) -> Iterator[Finding]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    for name, stage in stages.items():
        last = stage[-max(1, len(stage) // 10) :]
        figures[f"{name}_loss"] = sum(row["loss"] for row in last) / len(last)
        horizon = recipe["train"]["average_share"] * len(stage)
        if horizon < 10:
            yield Finding(
                f"{name} is {len(stage)} steps long", "the weight average reaches over fewer than 10; train longer"
            )
        if recipe["train"]["average_share"] > 0.3:
            yield Finding(
                "the weight average is longer than 30% of the run",
                "lower train.average_share: it returns early weights",
            )
    if "policy" in stages and "rate" in stages["policy"][0]:
        tail = stages["policy"][-max(1, len(stages["policy"]) // 10) :]
        figures["rate_nats_a_text"] = sum(row["rate"] for row in tail) / len(tail)
        target = recipe["model"]["space"]["information"]
        if abs(figures["rate_nats_a_text"] / target - 1) > 0.25:
            yield Finding(
                f"the rate ended at {figures['rate_nats_a_text']:.0f} nats a text, not at {target:.0f}",
                "train longer, or set model.space.information to what the texts need",
            )
        for name, place in (("nats_start", "nats_a_token_without_plan"), ("nats_end", "nats_a_token_with_plan")):
            found = [row[name] for row in tail if name in row]
            if found:
                figures[place] = sum(found) / len(found)
        without, with_plan = (figures.get(f"nats_a_token_{kind}_plan") for kind in ("without", "with"))
        if without and with_plan and with_plan > 0.8 * without:
            yield Finding(
                f"the plan hardly helps: {with_plan:.2f} nats a token with it, {without:.2f} without",
                "raise model.space.information, or train longer",
            )


MOST_ROWS = 2048
"""Rows of a token table that are compared with all of it."""


def _model_findings(lm: Any, figures: dict[str, Any]) -> Iterator[Finding]:
    import torch

    net = getattr(lm, "model", None) or lm.net  # of a published model
    table = net.embedding.weight.detach().float()
    unit = torch.nn.functional.normalize(table, dim=-1)
    some = torch.linspace(0, len(unit) - 1, min(len(unit), MOST_ROWS)).long().unique()
    similar = unit[some] @ unit.T
    similar[torch.arange(len(some)), some] = -1
    nearest = similar.max(-1).values
    figures["parameters"] = sum(p.numel() for p in net.parameters())
    figures["nearest_embedding_cosine_median"] = nearest.median().item()
    if nearest.median() > 0.95:
        yield Finding("the token embeddings have collapsed onto each other", "lower the learning rate")
    if lm.family != "manta":
        return
    density = lm.density
    if not density.calibrated:
        yield Finding("the time density never saw enough losses to be calibrated", "train the flow longer")
        return
    gamma, loss, _ = density.measured_loss()
    spread = (loss.max() - loss.min()).item()
    figures["loss_spread_over_time"] = spread
    steepest = loss.diff().abs().argmax()
    t = torch.sigmoid(-gamma[steepest : steepest + 2]).sort().values
    figures["transition_time"] = t.mean().item()
    draws = density.sample(4096, torch.Generator().manual_seed(0))
    low, high = max(0.0, t[0].item() - 0.05), min(1.0, t[1].item() + 0.05)
    share = ((draws >= low) & (draws <= high)).float().mean().item()
    figures["training_times_at_the_transition"] = share
    if share < 0.5 * (high - low):
        yield Finding("few training times fall where the loss changes most", "use model.time.kind='calibrated'")
    if hasattr(lm.model.space, "std"):
        std = lm.model.space.std
        figures["latent_deviation_least_to_largest"] = f"{std.min():.2f} … {std.max():.2f}"
        dead = int((std < 1.02 * max(lm.model.space.config.noise_floor, 1e-6)).sum())
        if dead:
            yield Finding(
                f"{dead} of {len(std)} latent channels carry nothing but the noise floor", "lower model.space.channels"
            )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{float(q):.0%} {n}" for q, n in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
