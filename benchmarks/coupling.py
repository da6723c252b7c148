"""Noise that belongs to a text against noise that is drawn afresh: what `diverse` texts of few calls gain.

    python benchmarks/coupling.py --train-steps 1500 --seeds 0 1 --folder runs/coupling \
        --out benchmarks/results/coupling.json

Two Manta-LMs a seed learn the built-in weather corpus, of equal steps and with equal teachers, which take a fifth of
them: one whose texts are put on the path from independent noise, one from the noise that they have under the teacher
(`objective.coupling=teacher`). Each then writes forecasts of the test split as the network tells the words, without
counts, and the oracle says how many are grammatical and how many are true to their record. Runs that stand in --folder
are kept, and rows in --out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from manta.bench import machine
from manta.cli import main as manta
from manta.runtime import atomic_write, resolve_device

DATA = "builtin:weather"
ARMS = ("independent", "teacher")
CALLS = (2, 3, 5, 9, 17)
FIGURES = {"oracle_grammatical": "grammatical", "oracle_faithful": "faithful", "distinct": "distinct", "mauve": "mauve"}
"""Names that the evaluation has for what is recorded."""


def trained(folder: Path, coupling: str, seed: int, args: argparse.Namespace) -> Path:
    """Train a model, or go on with it, unless it is done."""
    if not (folder / "model").exists():
        how = [f"seed={seed}", f"objective.coupling={coupling}", "consensus=none", "warm_start=true"]
        new = ["train", DATA, "--size", args.size, "--num-steps", str(args.train_steps), *how]
        again = ["train", "--resume"] if (folder / "recipe.json").exists() else new
        if status := manta([*again, "--out", str(folder)]):
            sys.exit(status)
    return folder


def end_of(folder: Path) -> dict[str, float]:
    """Mean nats a hidden word over the last tenth of the policy's steps: with no plan, and all told."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in log if row["stage"] == "policy"]
    rows = rows[-len(rows) // 10 :]
    found = {}
    for name in ("nats", "nats_start", "nats_end"):
        values = [row[name] for row in rows if name in row]
        found[name] = round(sum(values) / len(values), 4)
    return {**found, "minutes": round(sum(row["seconds"] for row in log) / 60, 2)}


def main() -> None:
    """Read the command line, train what is missing, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num", type=int, default=300, help="forecasts a setting")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    result |= {"machine": machine(resolve_device("cpu")), "train_steps": args.train_steps, "texts": args.num}
    done = {(row["coupling"], row["seed"], row["num_steps"]) for row in result["rows"]}
    for seed in args.seeds:
        for coupling in ARMS:
            folder = trained(args.folder / f"{coupling}-{seed}", coupling, seed, args)
            told = end_of(folder)
            for calls in CALLS:
                if (coupling, seed, calls) in done:
                    continue
                file = args.folder / f"{coupling}-{seed}-{calls}.json"
                command = ["evaluate", str(folder), "--data", DATA, "--split", "test", "--num", str(args.num)]
                command += ["--num-seeds", "1", "--metrics", "oracle,diversity,mauve", "--style", "diverse"]
                command += ["--num-steps", str(calls), "--fluency", "0", "--out", str(file)]
                if status := manta(command):
                    sys.exit(status)
                figures = json.loads(file.read_text())["figures"]
                row = {"coupling": coupling, "seed": seed, "num_steps": calls, **told}
                row |= {ours: round(figures[theirs]["mean"], 4) for theirs, ours in FIGURES.items()}
                result["rows"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
