"""Learned schedules beside fixed rules, at equal mean calls.

    python benchmarks/schedule.py --model MODEL --data e2e:PATH --num 64 --prices 0.005 0.02 --updates 30 --seeds 0 \
        --out benchmarks/results/schedule.json

MODEL is `RUNS/fixed-0` of `benchmarks/elastic.py --keep RUNS`. A masked model writes the texts of test
prompts by thresholds, by Fast-dLLM's factors and with an even share of words a call, and by schedules that it has
learned at several prices. `worth` is what was learned for: of a task, the share solved; of other texts, the share of
places that are as the model writes them a word a call. `beside` is the worth that fixed rules have at the same mean
calls, between the two nearest of their best rows. Finished rows in --out are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any, cast

from manta.hub import load
from manta.masked import ConfidenceConfig, DecoderConfig, ThresholdConfig
from manta.recipes.scheduling import Player, Scored, learn_schedule
from manta.runtime import atomic_write
from manta.text import read, task_of

RULES: dict[str, DecoderConfig] = {
    **{f"threshold {t}": ThresholdConfig(threshold=t) for t in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)},
    **{f"factor {f}": ThresholdConfig(factor=f) for f in (0.25, 0.5, 1.0, 2.0, 4.0)},
    **{f"{n} calls": ConfidenceConfig(num_steps=n) for n in (2, 3, 4, 6, 8, 12, 16)},
}


def best_at(calls: float, fixed: list[dict[str, Any]]) -> float | None:
    """Worth of fixed rules at a mean number of calls: between the best rows with no more calls and with more."""
    frontier: list[dict[str, Any]] = []
    for row in sorted(fixed, key=lambda row: row["calls"]):
        if not frontier or row["worth"] > frontier[-1]["worth"]:
            frontier.append(row)
    below = [row for row in frontier if row["calls"] <= calls]
    above = [row for row in frontier if row["calls"] > calls]
    if not below:
        return None
    if not above:
        return below[-1]["worth"]
    (left, right), (low, high) = (below[-1]["calls"], above[0]["calls"]), (below[-1]["worth"], above[0]["worth"])
    return low + (high - low) * (calls - left) / (right - left)


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a masked model")
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--prices", type=float, nargs="+", default=[0.005, 0.02, 0.05])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--num", type=int, default=300, help="test prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    lm = cast(Any, load(args.model))
    data = args.data if args.data.startswith("builtin") else args.data.partition(":")[0]
    player = Player(lm, task_of(args.data))
    examples = [e for e in read(args.data, "test", args.num) if e.prompt]

    def add(name: str, price: float | None, seed: int | None, found: Scored) -> None:
        row = {"data": data, "rule": name, "price": price, "seed": seed}
        rows.append({**row, "worth": round(found.quality, 4), "calls": round(found.calls, 3)})
        print(json.dumps(rows[-1]), flush=True)
        atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())

    def has(name: str, price: float | None, seed: int | None) -> bool:
        key = (data, name, price, seed)
        return any((row["data"], row["rule"], row["price"], row["seed"]) == key for row in rows)

    for name, rule in RULES.items():
        if not has(name, None, None):
            add(name, None, None, player.scored(examples, rule, getattr(rule, "num_steps", None)))
    for seed in args.seeds:
        for price in args.prices:
            if not has("learned", price, seed):
                found = learn_schedule(lm, args.data, price, updates=args.updates, seed=seed)
                add("learned", price, seed, player.scored(examples, found.decoder))
                fixed = [row for row in rows if row["data"] == data and row["price"] is None]
                rows[-1]["beside"] = best_at(rows[-1]["calls"], fixed)
    atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
