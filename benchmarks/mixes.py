"""Which operators a Manta-LM should have: mixes at equal operations, from short rows to long ones.

    python benchmarks/mixes.py --data tinystories:PATH --lengths 64 256 1024 --seeds 0 1 \
        --out benchmarks/results/mixes.json
    python benchmarks/mixes.py --data e2e:PATH --lengths 64 --seeds 0 1 --out benchmarks/results/mixes.json
    python benchmarks/mixes.py --data builtin:sudoku9 --lengths 81 --seeds 0 1 --out benchmarks/results/mixes.json

Every mix is trained from nothing for as many steps of as many tokens. What a mix saves over attention, at the length of
its rows, goes into wider pointwise networks, so that all take the same operations; where it costs more, they are
narrower. Figures are nats a word of held-out texts, by the family's own task. Finished rows in --out are kept;
stored are two seeds, of stories of 64 words one; rows of 1,024 are missing.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from manta.config import from_dict
from manta.hub import load
from manta.operators import KINDS
from manta.recipes import Recipe, TrainingRun
from manta.recipes.conversion import mean_parts
from manta.recipes.text_conversion import held_out, task_of_model
from manta.runtime import atomic_write

MIXES = (
    "attention",
    "linear",
    "pyramid_conv",
    "downsampled",
    "attention,pyramid_conv",
    "attention,linear",
    "attention,fourier",
)
DIM, HEADS, DEPTH, HIDDEN = 96, 4, 4, 256
LEAST_HIDDEN = 32


def hidden_of(mix: str, length: int) -> int:
    """Width of the pointwise networks at which a mix takes the operations of attention with `HIDDEN`.

    Args:
        mix: kinds, repeated from block to block.
        length: elements of a row.
    """
    kinds = mix.split(",")
    own = [KINDS[kinds[i % len(kinds)]]().build(DIM, heads=HEADS).flops(length, DIM) for i in range(DEPTH)]
    budget = DEPTH * KINDS["attention"]().build(DIM, heads=HEADS).flops(length, DIM)
    each = 6 * length * DIM  # of a gated network, a unit of its width
    return max(LEAST_HIDDEN, round(HIDDEN + (budget - sum(own)) / (DEPTH * each)))


def trained(mix: str, length: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A row with what was measured of it."""
    hidden = hidden_of(mix, length)
    shape = {"dim": DIM, "heads": HEADS, "depth": DEPTH, "hidden": hidden}
    shape["operators"] = [{"kind": kind} for kind in mix.split(",")]
    recipe: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "consensus": "none"}
    recipe |= {"batch_tokens": args.batch_tokens, "shares": {"policy": 1.0, "own": 0.0}, "warm_start": False}
    recipe |= {"size": "nano", "model": shape}
    if not args.data.startswith("builtin:sudoku"):
        recipe |= {"max_text": length}
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    run = TrainingRun(from_dict(Recipe, recipe), folder / "run")
    for _ in run.events():
        pass
    lm = cast(Any, load(folder / "run"))
    parts = mean_parts(lm.model, task_of_model(lm, run.recipe), held_out(run.recipe, lm, args.held_out))
    shutil.rmtree(folder)
    return {
        "data": args.data.partition(":")[0] if not args.data.startswith("builtin:") else args.data,
        "mix": mix,
        "length": length,
        "seed": seed,
        "hidden": hidden,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "nats": parts["nats" if "nats" in parts else "cross_entropy"],
    }


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES))
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="tokens of a row")
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=2_048)
    parser.add_argument("--held-out", type=int, default=256, help="texts measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    kind = args.data if args.data.startswith("builtin:") else args.data.partition(":")[0]
    for seed in args.seeds:
        for length in args.lengths:
            for mix in args.mixes:
                row = {"data": kind, "mix": mix, "length": length, "seed": seed}
                if any(all(old[name] == value for name, value in row.items()) for old in done):
                    continue
                done.append(trained(mix, length, seed, args))
                print(json.dumps(done[-1]), flush=True)
                atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
