"""`manta schedule MODEL --data DATA --out DIR`: teach a masked model which words to write when."""

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from manta.cli.options import argument, parse_options
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Teach a masked model a schedule of its own: which words to commit in a call, against a price per call.

    The model's weights stay as they are; the new folder writes by its schedule unless --decoder says otherwise."""

    model: str = argument()
    """A model folder or run folder of a masked model."""
    data: str | None = None
    """Prompts to learn on; a structured task is judged by its rules, other texts are compared with the model's own of a
    word a call."""
    out: Path | None = None
    """The new model folder, new or empty."""
    price: float = 0.02
    """What a network call costs, where a text is worth 1 at most: more makes fewer calls."""
    updates: int = 100
    """Updates of the schedule, each of 16 prompts with 8 texts."""
    seed: int = 0
    """Of all draws."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ScheduleOptions, argv, "schedule")
    if options.data is None or options.out is None:
        raise UsageError("say manta schedule MODEL --data DATA --out DIR")
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UsageError(f"{options.out} is there already; give --out a new folder")
    from manta.families.masked import MaskedLM
    from manta.hub import card_of, load_writer, model_config, save_model
    from manta.recipes.origins import refuse_tasks
    from manta.recipes.scheduling import learn_schedule, scheduling_card

    lm = load_writer(options.model, device=options.device)
    if lm.family != "masked":
        raise UsageError(f"{options.model} is of the family {lm.family}; a schedule is for masked models of manta")
    refuse_tasks(lm, options.model)
    masked = cast(MaskedLM, lm)
    found = learn_schedule(masked, options.data, options.price, updates=options.updates, seed=options.seed, tell=_tell)
    card = scheduling_card(card_of(options.model), Path(options.data.rpartition(":")[2]).name, found)
    taught = copy(masked)
    taught.decoder = found.decoder
    save_model(options.out, taught, recipe=model_config(options.model).get("recipe", {}), card=card)
    print(card.rpartition("\n\n")[2], end="")
    _tell(f"written to {options.out}; write with manta generate {options.out} --prompt …")
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
