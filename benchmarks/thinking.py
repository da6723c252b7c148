"""Thinking and doubting: masked models that carry thoughts or take back what they doubt, beside plain ones.

    python benchmarks/thinking.py --seeds 0 1 2 --only sudoku4 --models plain "carry and slots" doubts \
        --out benchmarks/results/thinking.json
    python benchmarks/thinking.py --only sudoku4 --models "plain, twice" --out benchmarks/results/thinking.json
    python benchmarks/thinking.py --only paths --models plain "plain, twice" "carry and slots" \
        --out benchmarks/results/thinking.json

Three tasks with exact oracles, models of about 0.8M parameters, equal steps; "plain, twice" has twice the steps, as
what thinks takes up to twice the time a step. Every model writes the same test puzzles under the same budgets of
network calls, the prompt's among them: a plain one by confidence, by ReMDM and with a round of taking back, one that
thinks with and without calls before its first word, one that doubts by its doubts. Finished rows in --out are kept.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from manta.config import from_dict
from manta.families.events import GenerateOptions, Request, finished
from manta.hub import load
from manta.metrics.bootstrap import wilson
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write
from manta.text import read, task_of

TASKS = {"sudoku4": (400, 4_000), "paths": (2_000, 600), "countdown": (1_500, 2_000)}
"""Steps, and tokens of the texts of a step."""
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, twice": {},
    "carry and slots": {"carry": True, "slots": 8},
    "doubts": {"doubts": True},
    "carry": {"carry": True},
    "slots": {"slots": 8},
    "everything": {"carry": True, "slots": 8, "doubts": True},
}
BUDGETS = (2, 3, 5, 9)
"""Network calls of a text, the prompt's among them."""
NUM_TESTS = 500


def decoders(model: dict[str, Any], budget: int) -> dict[str, dict[str, Any]]:
    """How a model writes within a budget."""
    found: dict[str, dict[str, Any]] = {
        "confidence": {"decoder": "confidence"},
        "threshold": {"decoder": "threshold"},
    }
    if budget >= 3:
        found["remask"] = {"decoder": "remask"}
        found["a round of taking back"] = {"decoder": "deferred", "rounds": 1, "window_masked": 99}
    if (model.get("carry") or model.get("slots")) and budget >= 5:
        found["two calls of thinking"] = {"decoder": "confidence", "think": 2}
    if model.get("doubts"):
        found["doubt"] = {"decoder": "doubt"}
    return found


def trained(task: str, name: str, seed: int, folder: Path) -> tuple[Any, float]:
    """A model and its minutes."""
    steps, tokens = TASKS[task]
    steps *= 2 if "twice" in name else 1
    recipe: dict[str, Any] = {"data": f"builtin:{task}", "family": "masked", "size": "nano", "seed": seed}
    recipe |= {"num_steps": steps, "batch_tokens": tokens, "masked": {"thinking": MODELS[name]}}
    start = time.perf_counter()
    for _ in TrainingRun(from_dict(Recipe, recipe), folder / "run").events():
        pass
    return load(folder / "run"), (time.perf_counter() - start) / 60


def tested(lm: Any, task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Share of the test puzzles that are solved, and the calls it took."""
    judge = task_of(f"builtin:{task}")
    assert judge is not None
    examples = list(read(f"builtin:{task}", "test", NUM_TESTS))
    requests = [Request(prompt=example.prompt, seed=i) for i, example in enumerate(examples)]
    options = GenerateOptions(style="consensus", **settings)
    done = sorted(finished(lm.generate(requests, options, batch_size=100)), key=lambda e: e.index)
    verdict = judge.judge([(example.prompt or "", event.text) for example, event in zip(examples, done, strict=True)])
    interval = wilson(round(verdict["solved"] * len(done)), len(done))
    return {
        "solved": round(verdict["solved"], 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "calls": round(sum(e.nfe for e in done) / len(done), 2),
        "num": len(done),
    }


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for task in TASKS:
            for name in args.models if args.only in (None, task) else ():
                key = {"task": task, "model": name, "seed": seed}
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                folder = Path(tempfile.mkdtemp())
                lm, minutes = trained(task, name, seed, folder)
                for budget in BUDGETS:
                    for decoder, settings in decoders(MODELS[name], budget).items():
                        row = {**key, "minutes": round(minutes, 2), "decoder": decoder, "budget": budget}
                        rows.append({**row, **tested(lm, task, {"num_steps": budget, **settings})})
                        print(rows[-1], flush=True)
                shutil.rmtree(folder)
                atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
