"""`manta plan RECIPE|DATA --gpus N`: what a training run would need on one GPU or many, before it is begun."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import marked
from manta.config import apply_overrides, from_dict, load_toml, read_toml, to_dict
from manta.errors import UsageError
from manta.families import TrainedName


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Say what a recipe needs on one GPU or many: bytes a rank by part, FLOPs and bytes sent a step, hours and cost;
    what would not fit, and what would make it fit. Nothing is trained, and a net of any size takes seconds."""

    data: str = argument("")
    """What `manta train` would be given: data, or a recipe.toml."""
    overrides: tuple[str, ...] = argument((), "KEY=VALUE")
    """Fields of the recipe, such as `model.dim=4096` or `train.accumulate=64`."""
    gpus: int | None = None
    """GPUs, 1 to 65536; without it a table over 1, 2, 4, … 1024."""
    shard: Literal["none", "grad", "full"] | None = None
    """What is divided among the GPUs, as for `manta train`; without it what fits first, or with --gpus all three."""
    tokens: float | None = None
    """How much is learned, such as 1e9: tokens of texts, or images; without it what the recipe's steps take."""
    price: float | None = None
    """Of a GPU for an hour, in any currency."""
    gpu: str | None = None
    """A GPU by its vendor's data sheet: l4, 4090, a100, h100, h200 or b200; without it this machine is measured."""
    device_flops: float | None = None
    """FLOP/s of a GPU's bf16 matrix products, such as 990e12."""
    memory: float | None = None
    """Bytes of a GPU, such as 80e9."""
    bandwidth: float | None = None
    """Bytes a second from a GPU to another of its machine, such as 450e9."""
    network: float | None = None
    """Bytes a second from a GPU to one of another machine; 50e9 without it."""
    machine_gpus: int | None = None
    """GPUs of a machine; 8 without it."""
    efficiency: float | None = None
    """Share of the matrix rate that training reaches; measured on this machine, and 0.4 without it elsewhere."""
    family: TrainedName | None = None
    """Which family, as for `manta train`."""
    from_: str | None = None
    """A published model to train on, as for `manta train`."""
    tasks: Literal["none", "low_rank", "full", "film"] | None = None
    """Tell apart the tasks that the data name, as for `manta train`."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] | None = None
    """The size dial."""
    num_steps: int | None = None
    """Steps of all stages together."""
    json: bool = False
    """One JSON object on stdout instead of tables."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("say what to plan: manta plan FILE|builtin:weather|recipe.toml --gpus N")
        for name in ("tokens", "price"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"--{name} should be above 0, received {value}")


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(PlanOptions, argv, "plan")
    from manta.bench.planning import counted, device_of, plan_as_json, plan_as_text, planned
    from manta.bench.planning.devices import sheet_of
    from manta.bench.planning.spreading import check_world

    if options.gpus is not None:
        check_world(options.gpus)
    if options.gpu is not None:
        sheet_of(options.gpu)
    recipe = recipe_of(options)
    count = counted(recipe)
    stated = {name: getattr(options, name) for name in ("memory", "bandwidth", "network", "efficiency")}
    stated |= {"flops": options.device_flops, "per_machine": options.machine_gpus}
    device = device_of(options.gpu, stated, count, recipe)
    given: dict[str, Any] = {"elements": options.tokens, "price": options.price}
    rows = planned(count, device, gpus=options.gpus, shard=options.shard, **given)
    if options.json:
        print(json.dumps(marked("plan", plan_as_json(count, device, rows))))
    else:
        print(plan_as_text(count, device, rows))
    return 0


def recipe_of(options: PlanOptions) -> Any:
    """The recipe that the options describe."""
    from manta.recipes.prepare import telling_tasks
    from manta.recipes.states import recipe_class, state_of
    from manta.recipes.unused import refuse_written

    told = read_toml(Path(options.data)) if options.data.endswith(".toml") else {}
    if options.data.endswith(".toml"):
        begun = options.from_ or told.get("begin_from")
        state = told.get("state", state_of(str(told.get("data", "")), options.family, begun))
        recipe = load_toml(recipe_class(state), Path(options.data))
    else:
        state = state_of(options.data, options.family, options.from_)
        recipe = from_dict(recipe_class(state), {"data": options.data})
    given = {name: getattr(options, name) for name in ("family", "size", "num_steps") if getattr(options, name)}
    if "num_steps" in given:
        given["time_budget"] = None
    if options.from_ is not None:
        given["begin_from"] = options.from_
    if options.tasks is not None:
        if options.from_ is not None:
            raise UsageError("--tasks is for a new model; one that is begun with keeps its shape and its tasks")
        given |= telling_tasks(recipe, given.get("family", recipe.family), options.tasks)
    recipe = apply_overrides(from_dict(type(recipe), {**to_dict(recipe), **given}), options.overrides)
    refuse_written(recipe, told, options.overrides)
    return recipe
