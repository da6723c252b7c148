"""Bounds of the shares of hidden words in training: how much the loss varies between them, and what is learned.

    python benchmarks/rates.py --data builtin:weather --lengths 8 --seeds 2 --num-steps 600 \
        --out benchmarks/results/rates.json
    python benchmarks/rates.py --data builtin:weather --model MODEL --num-texts 48 --draws 12 \
        --out benchmarks/results/rates.json

Block-causal models of one shape at equal steps and rows, by their `masking`: shares of all sizes, shares between fixed
bounds, and bounds found on the way (`rates=auto`). `nats` is the bound a word of held-out texts, at shares of all sizes
for all alike; `gradient_norm` the mean and the standard deviation over the second half of the steps. Of a finished
model of all shares: the variance of a row's loss by the bounds of its share, from the same rows for all bounds, and of
a step's loss and gradient over draws of shares between them for one batch of texts; with --model of that model alone
(recorded: the weather model of `extension.py`), and nothing is trained. Finished rows in --out are kept.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, pstdev, pvariance
from typing import Any, cast

import torch
from blocks import nats

from manta.bench import machine
from manta.config import from_dict
from manta.families.block import BlockMatching
from manta.hub import load
from manta.masked import MaskedObjectiveConfig, Rates
from manta.recipes import Recipe, TrainingRun
from manta.recipes.text_conversion import held_out
from manta.runtime import atomic_write, make_generator

ARMS: dict[str, dict[str, Any]] = {
    "all": {},
    "0.3 to 0.8": {"least_share": 0.3, "most_share": 0.8},
    "0.5 to 1": {"least_share": 0.5},
    "auto": {"rates": "auto"},
}
NOT_SETTINGS = ("out", "model", "seeds", "lengths")
BOUNDS = ((0.001, 1.0), (0.001, 0.5), (0.25, 0.75), (0.3, 0.8), (0.45, 0.95), (0.5, 1.0))
"""Least and most shares whose variances are recorded."""


def variances(lm: Any, recipe: Recipe, args: argparse.Namespace) -> list[dict[str, Any]]:
    """By bounds: the variance of a row's loss, and of one step's loss and gradient over its draws of shares."""
    batches, rates = list(held_out(recipe, lm, args.num_texts)), Rates()
    objective = BlockMatching(MaskedObjectiveConfig(rates="auto"), rates)
    for draw in range(args.draws):
        for index, batch in enumerate(batches):
            rates.low, rates.high = 0.0, 1.0
            objective(lm.model, batch, make_generator(1000 * draw + index))
    by_bounds, found = rates.variances(), []
    for low, high in BOUNDS:
        told = BlockMatching(MaskedObjectiveConfig(least_share=low, most_share=high))
        losses, gradients = [], []
        for draw in range(args.draws):
            lm.model.zero_grad()
            loss = told(lm.model, batches[0], make_generator(draw)).total
            loss.backward()
            losses.append(loss.item())
            gradients.append(torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]))
        row = {"low": low, "high": high, "row": by_bounds[round(low, 2), high], "loss": pvariance(losses)}
        every = torch.stack(gradients)
        found.append(row | {"gradient": float((every - every.mean(0)).square().sum(1).mean())})
    lm.model.zero_grad()
    return found


def measured(length: int, arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and measure it."""
    shape = {"block_length": length, "dim": args.dim, "depth": args.depth, "heads": 4, "prompt_depth": 1}
    given: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "size": "nano"}
    given |= {"family": "block", "block": shape, "batch_tokens": args.batch_tokens, "masking": ARMS[arm]}
    given |= {"num_examples": args.num_examples}
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(from_dict(Recipe, given), Path(folder) / "run")
        for _ in run.events():
            pass
        log = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        lm = cast(Any, load(Path(folder) / "run"))
        late = [line["gradient_norm"] for line in log[len(log) // 2 :]]
        row: dict[str, Any] = {"length": length, "arm": arm, "seed": seed, "nats": nats(lm, run.recipe, args.num_texts)}
        row |= {"gradient_norm": mean(late), "gradient_norm_deviation": pstdev(late)}
        if "low" in log[-1]:
            row |= {"low": log[-1]["low"], "high": log[-1]["high"]}
        if arm == "all" and seed == 0:
            row["variances"] = variances(lm, run.recipe, args)
    return row


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--model", type=Path, help="a trained block-causal model whose variances are measured")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8], help="words of a block")
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--num-examples", type=int, help="of the training texts; all of them without it")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--batch-tokens", type=int, default=2_000)
    parser.add_argument("--num-texts", type=int, default=256, help="held-out texts")
    parser.add_argument("--draws", type=int, default=16, help="of the shares, for the variances")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    result: dict[str, Any] = (
        json.loads(args.out.read_text()) if args.out.exists() else {"settings": settings, "rows": []}
    )
    if result["settings"] != settings:
        parser.error(f"{args.out} has other settings; name another --out")
    result["machine"] = machine()
    if args.model:
        lm = cast(Any, load(args.model))
        row = {"length": lm.model.config.block_length, "arm": "a trained model", "seed": 0}
        result["rows"].append({**row, "variances": variances(lm, Recipe(data=args.data), args)})
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
        return
    for seed in range(args.seeds):
        for length in args.lengths:
            for arm in ARMS:
                row = {"length": length, "arm": arm, "seed": seed}
                if any(all(old[name] == value for name, value in row.items()) for old in result["rows"]):
                    continue
                result["rows"].append(measured(length, arm, seed, args))
                print(json.dumps(result["rows"][-1]), flush=True)
                atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
