"""`manta convert MODEL --operator KIND --data DATA --out DIR`: make a trained model's attention a cheaper operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options, refuse_beside_resume
from manta.config import apply_overrides, from_dict, nearest
from manta.errors import UsageError

GRID_KERNEL = 7
"""Patches along each axis of a convolution's kernel, unless it is said otherwise; of texts its own default."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn the attention of a trained model into another operator, and train it until it writes as it did."""

    model: str = argument("")
    """A model folder, a run folder, or builtin:NAME, of any family that manta trains, images included; or the folder of
    a published causal model of Llama's or GPT-NeoX's layout."""
    overrides: tuple[str, ...] = argument((), "KEY=VALUE")
    """Fields of the recipe, such as `conversion.states=0`, or `conversion.operator.radius=chi` of dijiang."""
    operator: str | None = None
    """What attention becomes: a kind of operator, such as `dijiang`, `linear`, `downsampled` or `windowed`."""
    layers: str | None = None
    """Blocks that change: `all`, numbers from 0 on such as `0,2`, or `local`, those whose measured attention stays
    within reach of the operator; `all` without it."""
    data: str | None = None
    """What to train on, best what the model was trained on; see `manta train --help`."""
    out: Path | None = None
    """The run folder, new or empty; the model will be in its folder `model`, with a card that says what it cost."""
    time_budget: str | None = None
    """Time for the whole run, such as 3m or 2h; 30m without one."""
    num_steps: int | None = None
    """Steps of all stages together, instead of a time budget."""
    seed: int | None = None
    """All randomness of the run."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""
    resume: bool = False
    """Continue the run in --out, exactly where its last checkpoint stands."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ConvertOptions, argv, "convert")
    if options.out is None:
        raise UsageError("say where the run goes: manta convert MODEL --operator KIND --data DATA --out DIR")
    from manta.cli.train import Progress, follow
    from manta.recipes import TrainingRun

    progress = Progress()
    if options.resume:
        _refuse_others(options)
        training = TrainingRun(
            None,
            options.out,
            resume=True,
            device=options.device,
            time_budget=options.time_budget,
            tell=progress.say,
        )
    else:
        training = TrainingRun(_recipe(options), options.out, device=options.device, tell=progress.say)
    return follow(training, options.out, progress)


def _refuse_others(options: ConvertOptions) -> None:
    """A run that goes on has a recipe; the time alone can be said anew.

    Raises:
        UsageError: something else was said.
    """
    from manta.recipes.runfolder import stored_recipe

    refuse_beside_resume(options, ("operator", "layers", "data", "num_steps", "seed"))
    if options.out is not None and getattr(stored_recipe(options.out), "converted_from", None) is None:
        raise UsageError(f"{options.out} is no conversion; go on with manta train --resume --out {options.out}")


def _recipe(options: ConvertOptions):
    """The recipe that the options describe."""
    from manta.operators import KINDS
    from manta.recipes.origins import placed
    from manta.recipes.states import STATES, recipe_class, state_of

    if not options.model:
        raise UsageError("say what to convert: manta convert MODEL --operator KIND --data DATA --out DIR")
    if options.operator is None:
        raise UsageError("say what attention becomes, such as --operator dijiang")
    if options.operator not in KINDS:
        raise UsageError(f"--operator: no kind {options.operator!r}{nearest(options.operator, KINDS)}")
    if not options.data:
        raise UsageError("say what to train on, best what the model was trained on: --data DATA")
    named = {name: getattr(options, name) for name in ("data", "time_budget", "num_steps", "seed")}
    given = {name: value for name, value in named.items() if value is not None}
    state = state_of(options.data)
    if not hasattr(recipe_class(state), "converted_from"):
        raise UsageError(
            f"no model of {STATES[state].words} is converted; give the data of a model of texts or of images"
        )
    conversion: dict[str, Any] = {"operator": {"kind": options.operator}}
    if state == "image" and options.operator == "pyramid_conv":
        conversion["operator"]["kernel"] = GRID_KERNEL
    if options.layers is not None:
        conversion["layers"] = options.layers.replace(" ", "")
    described = {**given, "converted_from": placed(options.model), "conversion": conversion}
    recipe = from_dict(recipe_class(state), described)
    return apply_overrides(recipe, options.overrides)
