"""`manta doctor FILE|RECIPE|DIR`: look for trouble in a data file, a run or a model before it costs time."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manta.cli.options import argument, parse_options
from manta.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from manta.recipes import Recipe


LIMITS = ("max_prompt", "max_text", "vocab_size")
"""Options that say what a model to be trained would be like."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Examine data as `manta train` would read it, a run folder or a model, and warn of what would waste a run."""

    target: str = argument()
    """A .txt, .jsonl or .csv file; builtin:weather; a structured task: builtin:sudoku4, builtin:sudoku9,
    builtin:countdown, builtin:paths, d1-countdown:PATH, sudoku17:PATH (d1-sudoku:PATH is a test set
    only); e2e:PATH, tinystories:PATH, hf:NAME; images: images:FOLDER, FILE.npz, builtin:shapes; a recipe.toml;
    a run folder of `manta train`, or a model folder."""
    max_prompt: int | None = None
    """Longest prompt of the model to be trained, in tokens; the recipe's, or 64."""
    max_text: int | None = None
    """Longest text, in tokens; the recipe's, or 96."""
    vocab_size: int | None = None
    """Tokens of the tokenizer to be trained; the recipe's, or 1024. A structured task has a token a symbol."""
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
    if folder.is_dir() and (given := next((name for name in LIMITS if getattr(options, name) is not None), None)):
        raise UsageError(
            f"doctor: --{given.replace('_', '-')} is for data, and the recipe of {folder} says it; leave it out"
        )
    if (found := _of_images(options.target, folder)) is not None:
        figures, findings = found
    elif not folder.is_dir():
        figures, findings = _examine_data(options)
    elif (folder / "recipe.json").exists():
        figures, findings = _examine_run(folder)
    elif any((folder / name).exists() for name in ("config.json", "model")):
        figures, findings = _examine_model(folder)
    else:
        raise DataError(
            f"{folder} is a folder that holds neither a run nor a model; name a data file in it, "
            "or say what it is: e2e:PATH"
        )
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


def _of_images(target: str, folder: Path) -> tuple[dict[str, Any], list[Finding]] | None:
    """What is found of images, a run on images or a model of them; None for all else."""
    from manta.cli.doctor_images import STAGE, examine_image_model, examine_image_run, examine_images, examine_other
    from manta.cli.writing import family_of
    from manta.config import read_toml
    from manta.families import DRAWING
    from manta.image.photos import is_photos, photos_of
    from manta.image.sources import is_images
    from manta.recipes.states import recipe_class
    from manta.runtime import read_json

    if target.endswith(".toml") and folder.is_file():
        told = read_toml(folder)
        target = str(told.get("data", recipe_class(told.get("state", "text"))().data))
    if is_photos(target):
        target = photos_of(target)
    if is_images(target):
        print("reading the images", file=sys.stderr)
        figures, found = examine_images(target)
    elif folder.is_dir() and (folder / "recipe.json").exists():
        recipe: Any = read_json(folder / "recipe.json")
        if not isinstance(recipe, dict) or recipe.get("state") not in STAGE:
            return None
        figures, found = examine_image_run(folder, recipe["state"])
    elif folder.is_dir() and family_of([target]) == "image":
        figures, found = examine_image_model(folder)
    elif folder.is_dir() and family_of([target]) in DRAWING:
        figures, found = examine_other(folder)
    else:
        return None
    return figures, [Finding(text, advice) for text, advice in found]


def _recipe(options: DoctorOptions) -> "Recipe":
    """The recipe of a run on the data, resolved as `manta train` does."""
    from dataclasses import replace

    from manta.config import load_toml
    from manta.recipes import Recipe, resolve

    is_recipe = options.target.endswith(".toml")
    recipe = load_toml(Recipe, options.target) if is_recipe else Recipe(data=options.target)
    given = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    return resolve(replace(recipe, **given))


def _examine_data(options: DoctorOptions) -> tuple[dict[str, Any], list[Finding]]:
    from manta.text import describe, read, task_of, tokenizer_for

    recipe = _recipe(options)
    print("reading the data twice: tokenizer, then figures", file=sys.stderr)
    tokenizer = tokenizer_for(recipe.data, recipe.vocab_size, recipe.num_examples, split=recipe.split)
    rows = read(recipe.data, recipe.split, recipe.num_examples)
    found = describe(rows, tokenizer, *recipe.lengths)
    held_out = _held_out(recipe.data)
    figures = {"split": recipe.split, **{f"{split}_examples": count for split, count in held_out.items()}}
    figures |= asdict(found)
    findings = list(_data_findings(found, recipe))
    for split in (split for split, count in held_out.items() if count == 0):
        findings.append(Finding(f"no example falls into the split {split}, which is held out", "give more data"))
    if task_of(recipe.data) is None:
        findings += _vocabulary_findings(found, recipe)
    return figures, findings


def _held_out(data: str) -> dict[str, int]:
    """Examples of a file that a run does not learn from; of other sources nothing, as counting them takes too long."""
    from manta.text import read

    if not Path(data).is_file():
        return {}
    return {split: sum(1 for _ in read(data, split)) for split in ("dev", "test")}


def _data_findings(found: Any, recipe: "Recipe") -> Iterator[Finding]:
    kept = found.rows
    if kept == 0:
        yield Finding("nothing is left to train on", "see below, or give more data")
    elif kept < 1000:
        yield Finding(f"only {kept:,} examples to train on", "expect the model to repeat them; 10,000 is a good start")
    if found.duplicates > 0.05 * found.examples:
        share = found.duplicates / found.examples
        yield Finding(f"{share:.0%} of the examples are exact duplicates", "they are dropped; check the export")
    if found.empty > 0.01 * found.examples:
        share = found.empty / found.examples
        yield Finding(f"{share:.0%} of the examples have no text", "they are dropped; check the field names")
    if found.prompts and found.without_prompt:
        share = found.without_prompt / (found.examples - found.empty)
        yield Finding(
            f"{share:.1%} of the examples have no prompt, or an empty one, beside others that have one",
            "they teach texts that answer nothing; give them prompts, or leave them out",
        )
    distinct = max(1, found.examples - found.empty - found.duplicates)
    for name, dropped, quantiles in (
        ("prompt", found.long_prompts, found.prompt_quantiles),
        ("text", found.long_texts, found.text_quantiles),
    ):
        limit, longest = getattr(recipe, f"max_{name}"), quantiles.get(0.99, 0)
        if dropped > 0.02 * distinct:
            yield Finding(
                f"{dropped / distinct:.0%} of the pairs are dropped: their {name} is longer than {limit} tokens",
                f"set max_{name}={max(longest, limit + 1)} (99% of the {name}s have at most {longest} tokens)",
            )


def _vocabulary_findings(found: Any, recipe: "Recipe") -> Iterator[Finding]:
    """What only concerns a tokenizer that was trained: one advice, larger or smaller or neither."""
    from manta.text.tokenizers import MAX_VOCAB, MIN_VOCAB

    # A byte-level vocabulary keeps all 256 bytes, which plain text hardly uses; what counts is what was learned.
    learned = recipe.vocab_size - 256
    unused = found.unused_vocabulary_share * recipe.vocab_size - 256
    idle, coarse = unused > 0.3 * learned, found.bytes_per_token < 2
    if idle and coarse:
        yield Finding(
            f"{found.bytes_per_token:.1f} bytes a token, and {unused / learned:.0%} of the learned vocabulary is never "
            "used: the texts share few sequences of characters",
            "give more data; no other vocab_size helps",
        )
    elif coarse and 2 * recipe.vocab_size <= MAX_VOCAB:
        yield Finding(
            f"{found.bytes_per_token:.1f} bytes a token: the vocabulary does not cover the texts",
            f"set vocab_size={2 * recipe.vocab_size}",
        )
    elif idle and recipe.vocab_size >= 2 * MIN_VOCAB:
        yield Finding(
            f"{unused / learned:.0%} of the learned vocabulary is never used",
            f"set vocab_size={recipe.vocab_size // 2}",
        )


def _examine_run(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """A run, finished or not: its log, and its model where there is one."""
    from manta.config import from_dict
    from manta.errors import ConfigError
    from manta.recipes.states import recipe_class

    try:
        told = json.loads((folder / "recipe.json").read_bytes())
        recipe = from_dict(recipe_class(told.get("state", "text")), told)
    except (OSError, ValueError, AttributeError, RecursionError, ConfigError) as error:
        raise ModelError(f"{folder}/recipe.json does not describe a run: {error}") from error
    figures: dict[str, Any] = {}
    rows = _log(folder / "metrics.jsonl")
    figures["steps"] = len(rows)
    findings: list[Finding] = []
    finished = any((folder / name).exists() for name in ("model/config.json", "adapter/adapter_config.json"))
    if not finished:
        findings.append(_unfinished(folder, rows))
    findings += _log_findings(rows, recipe, figures)
    if finished:
        found, more = _examine_model(folder)
        figures |= found
        findings += more
    return figures, findings


def _log(file: Path) -> list[dict[str, Any]]:
    """Rows of a log up to the first that is broken, which is what resuming the run keeps."""
    rows: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        try:
            row = json.loads(line)
            rows.append({**row, "stage": str(row["stage"]), "loss": float(row["loss"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            break
    return rows


def _unfinished(folder: Path, rows: Sequence[dict[str, Any]]) -> Finding:
    """That a run has no model yet, how far it has come, and how to go on."""
    from manta.training import latest_checkpoint

    reached = f"it stopped in the stage {rows[-1]['stage']} at step {len(rows):,}" if rows else "no step is logged"
    saved = latest_checkpoint(folder)
    point = f"from its checkpoint of step {saved.name.removeprefix('step-')}" if saved else "from its beginning"
    advice = f"continue it, {point}: manta train --resume --out {folder}"
    if (folder / "teacher" / "config.json").exists():
        advice += f"; its teacher writes already: manta generate {folder / 'teacher'}"
    return Finding(f"the run has not finished, so there is no model yet: {reached}", advice)


def _log_findings(rows: Sequence[dict[str, Any]], recipe: "Recipe", figures: dict[str, Any]) -> Iterator[Finding]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    share = recipe.train.average_share
    for name, stage in stages.items():
        figures[f"{name}_loss"] = _mean_of_tail(stage, "loss")
        if share * len(stage) < 10:
            yield Finding(
                f"{name} is {len(stage)} steps long", "the weight average reaches over fewer than 10; train longer"
            )
        elif share > 0.3:
            yield Finding(
                f"the weight average is longer than 30% of {name}",
                "lower train.average_share: it returns early weights",
            )
    if "policy" in stages and _mean_of_tail(stages["policy"], "rate") is not None:
        yield from _plan_findings(stages["policy"], recipe, figures)


def _plan_findings(policy: list[dict[str, Any]], recipe: "Recipe", figures: dict[str, Any]) -> Iterator[Finding]:
    """What the latents carry: one advice about their information, as a rate off its target says nothing of the plan."""
    rate, target = _mean_of_tail(policy, "rate"), getattr(recipe.model.space, "information", None)
    figures["rate_nats_a_text"] = rate
    for name, place in (("nats_start", "nats_a_token_without_plan"), ("nats_end", "nats_a_token_with_plan")):
        if (mean := _mean_of_tail(policy, name)) is not None:
            figures[place] = mean
    without, with_plan = (figures.get(f"nats_a_token_{kind}_plan") for kind in ("without", "with"))
    if rate is None or not target:
        return
    if abs(rate / target - 1) > 0.25:
        yield Finding(f"the rate ended at {rate:.0f} nats a text, not at {target:.0f}", "train longer")
    elif without and with_plan and with_plan > 0.8 * without:
        yield Finding(
            f"the plan hardly helps: {with_plan:.2f} nats a token with it, {without:.2f} without",
            "raise model.space.information, or train longer",
        )


def _mean_of_tail(stage: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean of a figure over the last tenth of a stage; None where it was not logged."""
    tail = stage[-max(1, len(stage) // 10) :]
    found = [float(row[name]) for row in tail if isinstance(row.get(name), int | float)]
    return sum(found) / len(found) if found else None


def _examine_model(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """A model, ours or another's."""
    from manta.families import FAMILIES
    from manta.hub import load_writer
    from manta.nets.integers import count_parameters

    lm: Any = load_writer(folder)
    if FAMILIES[lm.family].writer is None:  # a published model
        figures = {"family": lm.family, "parameters": count_parameters(lm.net)}
        figures |= {"vocabulary": lm.vocab_size, "most_tokens": lm.max_length}
        return figures, list(_foreign_findings(lm))
    figures = {"family": lm.family}
    return figures, list(_model_findings(lm, figures))


def _foreign_findings(lm: Any) -> Iterator[Finding]:
    if lm.tokenizer is None:
        yield Finding(
            "the folder has no tokenizer", "put its tokenizer.json there; without one it speaks token ids only"
        )


MOST_ROWS = 2048
"""Rows of a token table that are compared with all of it."""


def _model_findings(lm: Any, figures: dict[str, Any]) -> Iterator[Finding]:
    import torch

    from manta.families.scales import ClassedModel
    from manta.nets.integers import count_parameters

    net = getattr(lm, "model", None) or lm.net  # of a published model
    table = net.embedding.weight.detach().float()
    unit = torch.nn.functional.normalize(table, dim=-1)
    some = torch.linspace(0, len(unit) - 1, min(len(unit), MOST_ROWS)).long().unique()
    similar = unit[some] @ unit.T
    similar[torch.arange(len(some)), some] = -1
    nearest = similar.max(-1).values
    figures["parameters"] = count_parameters(net)
    figures["nearest_embedding_cosine_median"] = nearest.median().item()
    if nearest.median() > 0.95:
        yield Finding("the token embeddings have collapsed onto each other", "lower the learning rate")
    if isinstance(net, ClassedModel) and net.coarse is not None:
        words = net.class_of.bincount(minlength=net.config.classes)
        figures |= {"classes_of_words": len(words), "words_of_the_largest_class": int(words.max())}
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
        calibrated = lm.model.config.time.kind == "calibrated"
        advice = "train longer: the density follows the loss" if calibrated else "use model.time.kind='calibrated'"
        yield Finding("few training times fall where the loss changes most", advice)
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
