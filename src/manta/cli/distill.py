"""`manta distill MODEL --num-steps N --data DATA --out DIR`: teach a Manta-LM to write in few calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options, refuse_beside_resume
from manta.config import apply_overrides, from_dict
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """Teach a Manta-LM to write in a few network calls what it writes in many.

    A student learns to be, after one action, where two actions of its teacher have led; halved again and again, or all
    budgets at once."""

    model: str = argument("")
    """A model folder, a run folder, or builtin:NAME, of a Manta-LM."""
    overrides: tuple[str, ...] = argument((), "KEY=VALUE")
    """Fields of the recipe, such as `distillation.consensus_rows=1`."""
    num_steps: int | None = None
    """Network calls that the new model is to write a text in, from 2 on, as in `manta generate`."""
    method: Literal["progressive", "flow_map"] | None = None
    """`progressive`, the default: half the calls, and half of those, each by a student of the one before; the model is
    for --num-steps. `flow_map`: one model for that budget and its doubles, which is told how far a step goes."""
    halvings: int | None = None
    """Times that the calls beside the prompt's encoder are halved; 3 without it: 2 calls learn from 9."""
    data: str | None = None
    """What its prompts and lengths are taken from, best what the model was trained on; see `manta train --help`."""
    out: Path | None = None
    """The run folder, new or empty; the model will be in its folder `model`."""
    time_budget: str | None = None
    """Time for the whole run, such as 10m or 2h; 30m without one."""
    train_steps: int | None = None
    """Training steps of all stages together, instead of a time budget."""
    seed: int | None = None
    """All randomness of the run."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""
    resume: bool = False
    """Continue the run in --out, exactly where its last checkpoint stands."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(DistillOptions, argv, "distill")
    if options.out is None:
        raise UsageError("say where the run goes: manta distill MODEL --num-steps 2 --data DATA --out DIR")
    from manta.cli.train import Progress, follow
    from manta.recipes import TrainingRun

    progress = Progress()
    how: dict[str, Any] = {"device": options.device, "tell": progress.say}
    if options.resume:
        _refuse_others(options, options.out)
        training = TrainingRun(None, options.out, resume=True, time_budget=options.time_budget, **how)
    else:
        training = TrainingRun(_recipe(options), options.out, **how)
    return follow(training, options.out, progress)


def _refuse_others(options: DistillOptions, out: Path) -> None:
    """A run that goes on has a recipe; the time alone can be said anew.

    Raises:
        UsageError: something else was said, or the run distils nothing.
    """
    from manta.recipes.recipe import Recipe
    from manta.recipes.runfolder import stored_recipe

    refuse_beside_resume(options, ("num_steps", "method", "halvings", "data", "train_steps", "seed"))
    recipe = stored_recipe(out)
    if not isinstance(recipe, Recipe) or recipe.distillation.num_steps is None:
        raise UsageError(f"{out} is no distillation; go on with manta train --resume --out {out}")


def _recipe(options: DistillOptions) -> Any:
    """The recipe that the options describe."""
    from manta.recipes.origins import placed
    from manta.recipes.states import recipe_class, state_of

    if not options.model:
        raise UsageError("say what to distill: manta distill MODEL --num-steps 2 --data DATA --out DIR")
    if options.num_steps is None:
        raise UsageError("say in how many network calls it is to write, such as --num-steps 2")
    if not options.data:
        raise UsageError("say where its prompts are, best what the model was trained on: --data DATA")
    if state_of(options.data) != "text":
        raise UsageError("what is distilled is a Manta-LM, a model of texts; give its data")
    named = {name: getattr(options, name) for name in ("data", "time_budget", "seed")}
    given = {name: value for name, value in named.items() if value is not None}
    if options.train_steps is not None:
        given["num_steps"] = options.train_steps
    distillation = {name: getattr(options, name) for name in ("num_steps", "method", "halvings")}
    distillation = {name: value for name, value in distillation.items() if value is not None}
    described = {**given, "begin_from": placed(options.model), "distillation": distillation}
    return apply_overrides(from_dict(recipe_class("text"), described), options.overrides)
