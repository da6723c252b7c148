"""Block-causal models from left to right to masked diffusion: blocks of b words at equal steps.

    python benchmarks/blocks.py --data e2e:PATH --lengths 1 4 8 16 96 --seeds 0 --num-steps 600 --every 8 \
        --out benchmarks/results/blocks.json

Every model has the same shape and sees the same texts as often. `nats` is a word's, of held-out texts: exact for blocks
of one word, else the bound. Texts are written for the prompts of the development split, greedily, with so many network
calls a block (`steps`; none: every word as sure as the threshold), and scored as `manta evaluate` does; `calls` is the
mean of a text. Finished rows in --out are kept.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from e2e import references, scores

from manta.config import from_dict
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.recipes.text_conversion import held_out
from manta.runtime import atomic_write, make_generator

STEPS = (None, 1, 2, 4)
"""Most calls a block."""


def nats(lm: Any, recipe: Recipe, num: int) -> float:
    """A word, the end counted, of held-out texts."""
    total, words = 0.0, 0
    for batch in held_out(recipe, lm, num):
        generators = [make_generator(words + row) for row in range(len(batch))]
        total -= float(lm.log_likelihood(batch, generators, 16).value.sum())
        words += batch.num_elements + len(batch)
    return total / words


def trained(length: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A row with what was measured of it."""
    recipe: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "size": args.size}
    recipe |= {"family": "block", "block": {"block_length": length}, "batch_tokens": args.batch_tokens}
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    run = TrainingRun(from_dict(Recipe, recipe), folder / "run")
    for _ in run.events():
        pass
    lm = cast(Any, load(folder / "run"))
    found: dict[str, Any] = {"data": args.data.partition(":")[0], "length": length, "seed": seed}
    found |= {"minutes": round((time.perf_counter() - start) / 60, 2), "nats": nats(lm, run.recipe, 256)}
    found["parameters"] = sum(p.numel() for p in lm.model.parameters())
    if found["data"] == "e2e":
        dev = references(args.data, "dev")
        dev = replace(dev, prompts=dev.prompts[:: args.every], references=dev.references[:: args.every])
        found["texts"] = []
        for steps in STEPS if length > 1 else STEPS[:1]:
            row = scores(lm, dev, GenerateOptions(block_steps=steps))
            kept = ("bleu", "slot_error_rate", "mean_calls", "seconds")
            found["texts"].append({"steps": steps, **{name: row[name] for name in kept}})
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 4, 8, 16, 96], help="words of a block")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--batch-tokens", type=int, default=2_000)
    parser.add_argument("--every", type=int, default=8, help="use every n-th prompt of dev")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for length in args.lengths:
            row = {"data": args.data.partition(":")[0], "length": length, "seed": seed}
            if any(all(old[name] == value for name, value in row.items()) for old in done):
                continue
            done.append(trained(length, seed, args))
            print(json.dumps(done[-1]), flush=True)
            atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
