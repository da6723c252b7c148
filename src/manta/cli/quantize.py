"""`manta quantize MODEL --data DATA --out DIR`: a model of integers, smaller and faster."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manta.cli.options import argument, parse_options
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Make a model of integers: a third of the size or less, and faster where its maps are wide.

    The model is watched while it works, along whole trajectories, and what each of its maps reads is rounded by steps
    of groups of times. The new folder is used as any other; it holds a page, `quantised.html`, with the error of every
    map."""

    model: str = argument()
    """A model folder or run folder, or builtin:NAME: of texts, of images, of captions and images, or a restorer."""
    bits: Literal["w8a8", "w4a8", "w8"] = "w8a8"
    """Weights and inputs: `w8a8`, `w4a8`, or `w8`, which rounds weights alone: small, exact, and no faster."""
    data: str | None = None
    """What the model is watched on, best what it was trained on, such as restore:FOLDER for a restorer; an image flow
    can do without."""
    out: Path | None = None
    """The new model folder, new or empty."""
    num: int = 256
    """Texts or images that it makes, or tiles that it restores, while it is watched."""
    groups: str = "1"
    """Groups of neighbouring times with steps of their own: a number, or `auto`, as many as each map is worth."""
    inputs: Literal["static", "dynamic"] = "static"
    """`static`: steps are found before, by time; `dynamic`: each row is rounded by its own largest number."""
    calls: str = "4,8,16,32"
    """Budgets of network calls in which it is watched; a restorer takes one call."""
    seed: int = 0
    """Of the noise that it begins with."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(QuantizeOptions, argv, "quantize")
    if options.out is None:
        raise UsageError("say where the model goes: manta quantize MODEL --data DATA --out DIR")
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UsageError(f"{options.out} is there already; give --out a new folder")
    above = next(folder for folder in (options.out, *options.out.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK) or not above.is_dir():
        raise UsageError(f"{above} cannot be written to; give --out another folder")
    from manta.hub import card_of, model_config, save_model
    from manta.nets.integers import count_parameters
    from manta.recipes.quantised_page import card, page, summary
    from manta.recipes.quantising import QuantisationPlan, quantise
    from manta.report import plots
    from manta.runtime import atomic_write

    plots.require()
    plan = QuantisationPlan(
        bits=options.bits, num=options.num, groups=_groups(options.groups), inputs=options.inputs,
        calls=_calls(options.calls), seed=options.seed,
    )  # fmt: skip
    found = quantise(options.model, options.data, plan, _tell)
    before = 4 * count_parameters(found.model.model)
    recipe = model_config(options.model).get("recipe", {})
    save_model(options.out, found.model, recipe=recipe, card="")
    after = (options.out / "model.safetensors").stat().st_size
    atomic_write(options.out / "README.md", card(found, card_of(options.model), before, after).encode())
    atomic_write(options.out / "quantised.html", page(found, before, after).encode())
    print("\n".join(summary(found, before, after)))
    _tell(f"written to {options.out} in {found.seconds:.0f} s; the error of every map: {options.out}/quantised.html")
    return 0


def _groups(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 3:
        raise UsageError(f"--groups should be auto or a number, received {text[:40]!r}")
    return int(text)


def _calls(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(f"--calls should be numbers such as 4,8,16, received {text[:40]!r}")
    return tuple(map(int, parts))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
