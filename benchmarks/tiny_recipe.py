"""The four parts of the recipe for small models, alone and together, at equal parameters and equal steps.

    python benchmarks/tiny_recipe.py --data e2e:PATH --seeds 0 1 2 --keep runs/tiny \
        --out benchmarks/results/tiny_recipe.json

A base whose vocabulary holds more than a third of its parameters is changed part by part: a compact tokenizer, whose
saved parameters go into blocks; more and narrower blocks; blocks inherited from a model of half as many again; a second
round with the hard half of the texts (beside it, the control, any half). Figures are nats a byte of held-out texts, as
vocabularies differ, by the family's own task. Finished rows in --out are kept.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from manta.config import from_dict
from manta.families import users
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.conversion import mean_parts
from manta.recipes.shrinking import vocabulary_share
from manta.recipes.text_conversion import held_out, task_of_model
from manta.runtime import atomic_write

LARGE_VOCABULARY, SMALL_VOCABULARY = 4096, 1024
BASE = {"dim": 96, "depth": 3}
COMPACT = {"dim": 96, "depth": 5}
"""What the parameters of the smaller vocabulary buy."""
NARROW_LARGE = {"dim": 80, "depth": 5}
NARROW = {"dim": 80, "depth": 8}
"""More and narrower blocks, at the parameters of each."""
ROUNDS = {"rounds": 2, "round_elements": 256}
ROWS: dict[str, dict[str, Any]] = {
    "base": {"vocab_size": LARGE_VOCABULARY, "shape": BASE},
    "compact tokenizer": {"vocab_size": SMALL_VOCABULARY, "shape": COMPACT},
    "architecture alone": {"vocab_size": LARGE_VOCABULARY, "shape": NARROW_LARGE},
    "inheritance alone": {"vocab_size": LARGE_VOCABULARY, "shape": BASE, "larger": "larger base"},
    "second round alone": {"vocab_size": LARGE_VOCABULARY, "shape": BASE, "train": ROUNDS},
    "any half, alone": {
        "vocab_size": LARGE_VOCABULARY,
        "shape": BASE,
        "train": {**ROUNDS, "round_choice": "uniform"},
    },
    "tokenizer, architecture": {"vocab_size": SMALL_VOCABULARY, "shape": NARROW},
    "tokenizer, architecture, inheritance": {
        "vocab_size": SMALL_VOCABULARY,
        "shape": NARROW,
        "larger": "larger narrow",
    },
    "all four": {
        "vocab_size": SMALL_VOCABULARY,
        "shape": NARROW,
        "larger": "larger narrow",
        "train": ROUNDS,
    },
}
LARGER: dict[str, dict[str, Any]] = {
    "larger base": {"vocab_size": LARGE_VOCABULARY, "shape": {**BASE, "depth": 6}},
    "larger narrow": {"vocab_size": SMALL_VOCABULARY, "shape": {**NARROW, "depth": 12}},
}
"""Models to inherit from, trained for as many steps."""
SHAPES = {"ar": "teacher", "manta": "model"}


def recipe_of(family: str, seed: int, row: dict[str, Any], args: argparse.Namespace) -> Recipe:
    """What a row is trained by."""
    shape = {**row["shape"], "heads": 4, "prompt_depth": 2}
    recipe: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "consensus": "none"}
    recipe |= {"batch_tokens": args.batch_tokens, "train": row.get("train", {})}
    recipe |= {"warm_start": False, "size": "nano", "family": family}
    recipe |= {"shares": {"policy": 1.0, "own": 0.0}} if family in users("shares") else {}
    if "larger" in row:
        inherited = str(args.keep / f"{family}-{row['larger'].replace(' ', '-')}-{seed}")
        del recipe["size"]
        return from_dict(Recipe, {**recipe, "inherit": inherited, SHAPES[family]: {"depth": shape["depth"]}})
    return from_dict(Recipe, {**recipe, "vocab_size": row["vocab_size"], SHAPES[family]: shape})


def trained(name: str, family: str, seed: int, row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A row with what was measured of it."""
    recipe, folder, start = recipe_of(family, seed, row, args), Path(tempfile.mkdtemp()), time.perf_counter()
    run = TrainingRun(recipe, folder / "run")
    for _ in run.events():
        pass
    found: dict[str, Any] = {"name": name, "family": family, "seed": seed, "plan": run.plan}
    found["minutes"] = round((time.perf_counter() - start) / 60, 2)
    lm = cast(Any, load(folder / "run"))
    batches = held_out(run.recipe, lm, 512)
    texts = [text for batch in batches for text in lm.tokenizer.decode_batch(batch.text)]
    num_bytes, num_tokens = sum(len(text.encode()) for text in texts), sum(b.num_elements + len(b) for b in batches)
    nats = mean_parts(lm.model, task_of_model(lm, run.recipe), batches)["nats"]
    found |= {"parameters": sum(p.numel() for p in lm.model.parameters())}
    found |= {"vocabulary_share": vocabulary_share(lm.model), "nats_a_byte": nats * num_tokens / num_bytes}
    if (told := folder / "run" / "inheritance.json").exists():
        found["inheritance"] = json.loads(told.read_text())
    if name in LARGER:
        place = args.keep / f"{family}-{name.replace(' ', '-')}-{seed}"
        shutil.copytree(folder / "run" / "model", place, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--families", nargs="+", default=["ar"], choices=list(SHAPES))
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the larger models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for family in args.families:
            for name, row in {**LARGER, **ROWS}.items():
                if any((old["name"], old["family"], old["seed"]) == (name, family, seed) for old in done):
                    continue
                done.append(trained(name, family, seed, row, args))
                print(json.dumps(done[-1]), flush=True)
                atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
