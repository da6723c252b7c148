"""What it costs to make attention another operator: converted models beside the same trained from scratch.

    python benchmarks/conversions.py --data e2e:PATH --seeds 0 1 --keep runs/conversions \
        --out benchmarks/results/conversions.json
    python benchmarks/conversions.py --data tinystories:PATH --seeds 0 --keep runs/conversions \
        --out benchmarks/results/conversions.json

A source of each family is trained, converted with 5% and 20% of its steps, and beside it the same shape is trained from
scratch with as many steps, on the same texts. `linear` is the control of `dijiang`; new operators are trained alone
for the first 30% of the steps; "task alone" does so without the source's words and states, and "all at once" trains
everything from the first step, which is the default now. Figures are nats a word of the family's
own task on held-out texts, the same draws for all. Finished rows in --out are kept, so that the command can be repeated
after an interruption.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from manta.config import from_dict
from manta.families import users
from manta.families.trained import TrainedWriter
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.conversion import mean_parts
from manta.recipes.text_conversion import held_out, task_of_model
from manta.runtime import atomic_write

FAMILIES = ("ar", "masked", "manta")
SHARES = (0.05, 0.2)
HELD_OUT = 512
RUN: dict[str, Any] = {"size": "nano", "consensus": "none", "warm_start": False}
"""One stage a family: no teacher, and none in states of its own."""
SHAPES = {"ar": "teacher", "masked": "masked", "manta": "model"}
NEW_FIRST = {"new_share": 0.3}
WHOLE = {
    "all": NEW_FIRST,
    "task alone": {**NEW_FIRST, "outputs": 0.0, "states": 0.0},
    "all at once": {"new_share": 0.0},
}
"""How a conversion is taught: the new operators first, by task, words and states; by the task alone; and what is the
default now."""


def rows_wanted(family: str, operators: list[str]) -> Iterator[dict[str, Any]]:
    """What is trained for one family and seed, its source first."""
    yield {"how": "source"}
    for operator in operators:
        if family == "ar" and operator == "pyramid_conv":
            continue
        for share in SHARES:
            yield {"how": "all", "operator": operator, "share": share}
            yield {"how": "scratch", "operator": operator, "share": share}
    for how in list(WHOLE)[1:]:
        yield {"how": how, "operator": operators[0], "share": SHARES[-1]}


def nats(lm: TrainedWriter[Any], recipe: Recipe) -> float:
    """A word, of the family's own task on held-out texts."""
    return mean_parts(lm.model, task_of_model(lm, recipe), held_out(recipe, lm, HELD_OUT))["nats"]


def recipe_of(family: str, seed: int, row: dict[str, Any], source: Path, args: argparse.Namespace) -> Recipe:
    """What a row is trained by."""
    common = {"data": args.data, "seed": seed, "batch_tokens": args.batch_tokens, "num_steps": args.num_steps}
    common |= {"num_examples": args.num_examples}
    common |= {"shares": {"policy": 1.0, "own": 0.0}} if family in users("shares") else {}
    if row["how"] == "source":
        return from_dict(Recipe, {**RUN, **common, "family": family})
    common["num_steps"] = max(4, round(row["share"] * args.num_steps))
    operator = {"kind": row["operator"]}
    if row["how"] == "scratch":
        return from_dict(Recipe, {**RUN, **common, "family": family, SHAPES[family]: {"operator": operator}})
    conversion = {"operator": operator, **WHOLE[row["how"]]}
    return from_dict(Recipe, {**common, "consensus": "none", "converted_from": str(source), "conversion": conversion})


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--operators", nargs="+", default=["dijiang", "linear", "pyramid_conv"])
    parser.add_argument("--num-steps", type=int, default=600, help="of a source")
    parser.add_argument("--num-examples", type=int, help="of the data; all without it")
    parser.add_argument("--batch-tokens", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the sources")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    data = args.data.partition(":")[0]
    for seed in args.seeds:
        for family in args.families:
            source = args.keep / f"{data}-{family}-{seed}"
            for row in rows_wanted(family, args.operators):
                row = {"data": data, "family": family, "seed": seed, **row}
                if any(all(old.get(name) == value for name, value in row.items()) for old in done):
                    continue
                done.append(trained(row, recipe_of(family, seed, row, source, args), source))
                print(json.dumps(done[-1]), flush=True)
                atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


def trained(row: dict[str, Any], recipe: Recipe, source: Path) -> dict[str, Any]:
    """A row with what was measured of it."""
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    run = TrainingRun(recipe, folder / "run")
    for _ in run.events():
        pass
    found = {**row, "steps": run.recipe.num_steps, "minutes": round((time.perf_counter() - start) / 60, 2)}
    if run.parts.scores:
        found |= {"before": run.parts.scores[1].task, "divergence": run.parts.scores[2].apart}
    found["parameters"] = sum(p.numel() for p in run.model.model.parameters())
    if row["how"] == "source":
        shutil.copytree(folder / "run" / "model", source, dirs_exist_ok=True)
    found["nats"] = nats(cast(Any, load(folder / "run")), run.recipe)
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
