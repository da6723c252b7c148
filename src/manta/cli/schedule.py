"""`manta schedule MODEL --data DATA --out DIR`: teach a masked model which words to write when."""

import shutil
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from manta.cli.options import argument, parse_options
from manta.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from manta.recipes.scheduling import ScheduleRecipe


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Teach a masked model a schedule of its own: which words to commit in a call, against a price per call.

    The model's weights stay as they are; the new folder writes by its schedule unless --decoder says otherwise. What is
    learned is kept after each update, in DIR.learning beside it, until the folder is written: interrupted, it goes on
    with `manta schedule --resume --out DIR`."""

    model: str = argument("")
    """A model folder or run folder of a masked model."""
    data: str | None = None
    """Prompts to learn on; a structured task is judged by its rules, other texts are compared with the model's own of a
    word a call."""
    out: Path | None = None
    """The new model folder, new or empty."""
    price: float | None = None
    """What a network call costs, where a text is worth 1 at most: more makes fewer calls; 0.02 without one."""
    updates: int | None = None
    """Updates of the schedule, each of 16 prompts with 8 texts; 100 without it."""
    seed: int | None = None
    """Of all draws."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""
    resume: bool = False
    """Go on learning for --out, exactly where its last update stands."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ScheduleOptions, argv, "schedule")
    if options.out is None or not (options.resume or (options.model and options.data)):
        raise UsageError("say manta schedule MODEL --data DATA --out DIR")
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UsageError(f"{options.out} is there already; give --out a new folder")
    from manta.families.masked import MaskedLM
    from manta.hub import card_of, load_writer, model_config, save_model
    from manta.hub.digest import digest_of
    from manta.recipes.origins import refuse_tasks
    from manta.recipes.scheduling import Kept, learn_schedule, scheduling_card

    out = options.out.resolve()
    folder = out.with_name(f"{out.name}.learning")
    begun = Kept.found(folder) if options.resume else None
    recipe = _recipe(options, folder) if begun is None else _resumed(options, begun.recipe)
    lm = load_writer(recipe.model, device=options.device)
    if lm.family != "masked":
        raise UsageError(f"{recipe.model} is of the family {lm.family}; a schedule is for masked models of manta")
    refuse_tasks(lm, recipe.model)
    masked = cast(MaskedLM, lm)
    kept = Kept(folder, recipe, digest_of(masked))
    if begun is not None and begun.model != kept.model:
        raise CheckpointError(
            f"the model in {recipe.model} has changed since its schedule was begun; bring it back as it was, or begin "
            "anew with another --out"
        )
    how: dict[str, Any] = {"updates": recipe.updates, "seed": recipe.seed, "tell": _tell, "kept": kept}
    found = learn_schedule(masked, recipe.data, recipe.price, **how)
    card = scheduling_card(card_of(recipe.model), Path(recipe.data.rpartition(":")[2]).name, found)
    taught = copy(masked)
    taught.decoder = found.decoder
    save_model(options.out, taught, recipe=model_config(recipe.model).get("recipe", {}), card=card)
    shutil.rmtree(folder)
    print(card.rpartition("\n\n")[2], end="")
    _tell(f"written to {options.out}; write with manta generate {options.out} --prompt …")
    return 0


def _recipe(options: ScheduleOptions, folder: Path) -> "ScheduleRecipe":
    """What the options ask for.

    Raises:
        UsageError: another schedule is half learned for the same folder.
    """
    from manta.recipes.scheduling import ScheduleRecipe

    if folder.exists():
        raise UsageError(
            f"{folder} holds a schedule that is half learned; add --resume to go on with it, or choose another --out"
        )
    given = {name: getattr(options, name) for name in ("price", "updates", "seed")}
    asked = {name: value for name, value in given.items() if value is not None}
    return ScheduleRecipe(model=options.model, data=cast(str, options.data), **asked)


def _resumed(options: ScheduleOptions, recipe: "ScheduleRecipe") -> "ScheduleRecipe":
    """The recipe of what goes on.

    Raises:
        UsageError: something of it was said anew.
    """
    names = ("data", "price", "updates", "seed")
    said = [
        *(["MODEL"] if options.model else []),
        *(f"--{name}" for name in names if getattr(options, name) is not None),
    ]
    if said:
        raise UsageError(f"--resume goes on with what it began with; leave {', '.join(said)} out")
    return recipe


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
