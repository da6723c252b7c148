"""`manta bench [MODEL …]`: what writing, training and starting up cost on this machine."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file, marked
from manta.errors import UsageError
from manta.families.options import CacheKind, DecoderName

if TYPE_CHECKING:
    from manta.recipes import Recipe

Part = Literal["start", "writing", "outside", "training", "operators"]
PARTS: tuple[Part, ...] = get_args(Part)
QUICK: dict[str, Any] = {
    "repeats": 1,
    "batches": (1, 4),
    "operator_lengths": (64, 256),
    "decoders": ("deferred", "confidence"),
}
"""What --quick changes, unless it was said otherwise."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure this machine: cold start and memory, texts and tokens a second against batch and length for every family
    and decoder, an outside reference, training as a share of the matrix rate, and operators against length."""

    models: tuple[str, ...] = argument(())
    """Model folders, run folders or hub names; the model that ships if none is named."""
    parts: tuple[Part, ...] = ()
    """What to measure; all without it."""
    lengths: tuple[int, ...] = ()
    """Tokens of a text; a quarter, half and all of what each model writes, if left out."""
    batches: tuple[int, ...] = (1, 16)
    """Texts written at once."""
    num_steps: int = 8
    """Budget of network calls for a text."""
    decoders: tuple[DecoderName, ...] = ()
    """Masked models: the decoders to compare; all without it."""
    caches: tuple[CacheKind, ...] = ("none",)
    """Masked models: what is kept between calls; prefix and dual are measured at batch 1."""
    prompt: str | None = None
    """Of every text."""
    operator_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Elements of a row for the operators."""
    operator_batch: int = 4
    """Rows for the operators; 1 reaches to longer ones."""
    most_seconds: float = 60.0
    """An operator that would take longer for one call is left out from that length on."""
    page: Path | None = None
    """A file for a page that draws the operators' seconds and memory against length."""
    repeats: int = 3
    """Rounds; within one, rivals take turns, and medians count."""
    recipe: Path | None = None
    """A recipe whose training is measured; without it every family on builtin:weather, of the size tiny."""
    quick: bool = False
    """One round of little of everything, in less than a minute."""
    json: bool = False
    """One JSON object on stdout instead of tables."""
    out: Path | None = None
    """A file for the JSON object as well."""
    device: str | None = None
    """cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        counts = (*self.lengths, *self.batches, *self.operator_lengths, self.repeats, self.num_steps)
        if min(counts) < 1 or not self.batches:
            raise UsageError("lengths, batches, steps and rounds should be at least 1")
        if self.operator_batch < 1 or not self.most_seconds > 0:
            raise UsageError("--operator-batch should be at least 1, and --most-seconds above 0")
        if self.page is not None and self.parts and "operators" not in self.parts:
            raise UsageError("--page draws the operators, which --parts leaves out; name them, or leave --page out")
        if self.operator_lengths and len(set(self.operator_lengths)) < 2:
            raise UsageError("growth shows between two --operator-lengths or more")


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(BenchOptions, argv, "bench")
    claim_file(options.out, "bench")
    claim_file(options.page)
    if options.quick:
        usual = BenchOptions()
        less = {name: value for name, value in QUICK.items() if getattr(options, name) == getattr(usual, name)}
        options = replace(options, **less)
    from manta.bench import machine, operators_page, rows_as_table
    from manta.runtime import atomic_write, resolve_device

    if options.page is not None:
        from manta.report.plots import require

        require()

    result = marked("bench", {"machine": machine(resolve_device(options.device))})
    for part, rows in _measured(options):
        result[part] = rows
        if options.out is not None:  # part by part, so that a long one that fails takes no other with it
            atomic_write(options.out, (json.dumps(result, indent=1) + "\n").encode())
        if not options.json and rows:
            print(f"{part.replace('_', ' ')}\n{rows_as_table(rows)}\n", flush=True)
    if options.json:
        print(json.dumps(result))
    if options.page is not None:
        atomic_write(options.page, operators_page(result["operators"], result["machine"]).encode())
    return 0


def _measured(options: BenchOptions) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The parts that are asked for, each as it is done."""
    from manta.bench import cold_start, crossings, growth, operator_costs
    from manta.runtime import resolve_device

    models, parts = options.models or ("",), options.parts or PARTS
    if "start" in parts:
        _tell("start")
        start = {"repeats": options.repeats, "prompt": options.prompt or "", "device": options.device}
        yield "start", cold_start(models, **start)
    if "writing" in parts or "outside" in parts:
        written, outside = [], []
        for model in models:
            ours, theirs = _writing(model, options, parts)
            written += ours
            outside += [row for row in theirs if row not in outside]
        yield "writing", written
        yield "outside", outside
    if "training" in parts:
        yield "training", list(_training(options))
    if "operators" in parts:
        _tell("operators")
        given = {"repeats": options.repeats, "batch": options.operator_batch, "most_seconds": options.most_seconds}
        costs = operator_costs(options.operator_lengths, device=resolve_device(options.device), **given)
        yield "operators", costs
        yield "growth_of_operators", growth(costs)
        yield "operators_beside_attention", crossings(costs)


def _writing(model: str, options: BenchOptions, parts: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """Rates of a model, and of an outside one of its shape."""
    from manta.bench import has_transformers, outside_rates, settings_of, writing_rates
    from manta.families import FAMILIES
    from manta.families.asked import follows
    from manta.hub import load_writer
    from manta.runtime import resolve_device

    lm = load_writer(model or None, device=options.device)
    most = min(lm.capacity, 256)
    lengths = options.lengths or ((most // 2,) if options.quick else (most // 4, most // 2, most))
    name, rows, outside = model or "the model that ships", [], []
    if "writing" in parts:
        _tell(f"writing with {name}")
        asked: Any = (options.decoders, options.caches)
        if not follows(lm.family, "cache") and asked != ((), ("none",)):
            print(f"manta: decoders and caches are of masked models; {name} has none of them", file=sys.stderr)
            asked = ()
        settings = settings_of(lm, *asked)
        given = {"num_steps": options.num_steps, "prompt": options.prompt, "repeats": options.repeats}
        rows = [{"model": name, **row} for row in writing_rates(lm, lengths, options.batches, settings, **given)]
    if "outside" in parts and FAMILIES[lm.family].writer is not None:
        if not has_transformers():
            print("manta: transformers is not installed, so there is no outside reference", file=sys.stderr)
            return rows, outside
        _tell(f"an outside model of the shape of {name}")
        device = str(resolve_device(options.device))
        outside = outside_rates(
            cast(Any, lm).model.config, lengths, options.batches, repeats=options.repeats, device=device
        )
    return rows, outside


def _training(options: BenchOptions) -> Iterator[dict[str, Any]]:
    from manta.bench import training_rates

    for recipe in _recipes(options):
        _tell(f"training, {recipe.family}")
        yield from training_rates(recipe, pairs=1 if options.quick else 5, device=options.device)


def _recipes(options: BenchOptions) -> "list[Recipe]":
    from manta.config import from_dict, load_toml
    from manta.families import FamilyName
    from manta.recipes import Recipe

    if options.recipe is not None:
        return [load_toml(Recipe, options.recipe)]
    base = {"data": "builtin:weather", "num_examples": 2000, "size": "tiny"}
    if options.quick:
        base |= {"num_examples": 300, "size": "nano", "vocab_size": 512, "batch_tokens": 1024}
    return [from_dict(Recipe, {**base, "family": family}) for family in get_args(FamilyName)]


def _tell(what: str) -> None:
    print(f"manta: measuring {what}", file=sys.stderr, flush=True)
