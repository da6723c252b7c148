"""Classes of words before words: models with two scales beside plain ones, at equal calls.

    python benchmarks/scales.py --data e2e:PATH --seeds 0 --plain RUNS/fixed-{} --out benchmarks/results/scales.json

    python benchmarks/scales.py --family manta --data e2e:PATH --seeds 0 --out benchmarks/results/scales_manta.json

RUNS is what `benchmarks/elastic.py --keep` leaves, whose plain models have the same training. Models of equal shape and
steps; `classes` is their number, 0 a plain model. A model with classes also writes as a plain one does, words at once
(`settled` 0), so that what it learned is told from what it does with it. Texts are written for prompts of the
development split, the likeliest ones, in `calls` network calls, the prompt's among them, by the network alone.
Finished rows in --out are kept.
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

import manta.families.scales as scales
from manta.config import from_dict
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write

SHAPES = {"masked": "masked", "manta": "model"}
"""Field of a recipe that holds a family's shape."""
CALLS = {"masked": [3, 5, 9, 17], "manta": [2, 4, 8, 16]}
DECODERS: dict[str, tuple[str | None, ...]] = {"masked": ("confidence", "threshold"), "manta": (None,)}


def trained(classes: int, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A model's rows."""
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    if args.plain is not None and classes == 0:
        lm = cast(Any, load(str(args.plain).format(seed)))
    else:
        recipe: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "size": args.size}
        recipe |= {"family": args.family, SHAPES[args.family]: {"classes": classes}, "batch_tokens": args.batch_tokens}
        for _ in TrainingRun(from_dict(Recipe, recipe), folder / "run").events():
            pass
        lm = cast(Any, load(folder / "run"))
    shutil.rmtree(folder)
    minutes = round((time.perf_counter() - start) / 60, 2)
    dev = references(args.data, "dev")
    dev = replace(dev, prompts=dev.prompts[:: args.every], references=dev.references[:: args.every])
    rows = []
    for calls in args.calls or CALLS[args.family]:
        for settled in (0.0, 0.5) if classes else (0.0,):
            scales.COARSE_SHARE = settled
            for decoder in DECODERS[args.family]:
                how: dict[str, Any] = {"style": "consensus", "num_steps": calls, "fluency": 0.0}
                told: dict[str, Any] = {} if decoder is None else {"decoder": decoder}
                row = scores(lm, dev, GenerateOptions(**how, **told))
                rows.append({"classes": classes, "seed": seed, "minutes": minutes, "settled": settled, "budget": calls})
                rows[-1] |= told
                rows[-1] |= {name: row[name] for name in ("bleu", "slot_error_rate", "mean_calls")}
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(SHAPES), default="masked")
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 32])
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=1_500)
    parser.add_argument("--batch-tokens", type=int, default=3_000)
    parser.add_argument("--calls", type=int, nargs="+", help="by default 3 5 9 17, of a Manta-LM 2 4 8 16")
    parser.add_argument("--every", type=int, default=4, help="use every n-th prompt of dev")
    parser.add_argument("--plain", help="model folders of equal training, {} for the seed, instead of training them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for classes in args.classes:
            if any((row["classes"], row["seed"]) == (classes, seed) for row in rows):
                continue
            rows += trained(classes, seed, args)
            atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
