"""Diagnoses model folders side by side and keeps the figures.

    python benchmarks/diagnose.py runs/a runs/b --data builtin:weather --num-prompts 16 \
        --out benchmarks/results/diagnose.json --report /tmp/report
    python benchmarks/diagnose.py src/manta/models/e2e masked-0 --data e2e:PATH --num-prompts 16 \
        --out benchmarks/results/diagnose_masked.json --report /tmp/report

`masked-0` is what `variants.py e2e --keep` keeps; the recorded file says `builtin:e2e` and `masked` for the two. The
JSON holds every figure's mean and spread and the verdicts; values of single prompts and profiles are in the report.
"""

import argparse
import json
import sys
from pathlib import Path

from manta.cli import main as manta
from manta.runtime import atomic_write


def main() -> int:
    """Read the command line, run the verb, keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", help="where the prompts come from; the models' own built-in corpus if left out")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--judge", help="an autoregressive model folder")
    parser.add_argument("--tune", type=int, default=0, help="updates of adjoint matching")
    parser.add_argument("--report", type=Path, required=True, help="folder of the page and of all values")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diagnose.json"))
    args = parser.parse_args()
    command = ["diagnose", *args.models, "--out", str(args.report)]
    command += ["--num-prompts", str(args.num_prompts), "--num-steps", str(args.num_steps), "--tune", str(args.tune)]
    for flag in ("data", "judge"):
        command += [f"--{flag}", getattr(args, flag)] if getattr(args, flag) else []
    if (status := manta(command)) != 0:
        return status
    atomic_write(
        args.out, (json.dumps(kept(json.loads((args.report / "diagnose.json").read_text())), indent=1) + "\n").encode()
    )
    return 0


def kept(row: dict) -> dict:
    """A diagnosis without the values of single prompts."""
    for model in row["models"]:
        del model["profiles"]
        model["figures"] = {name: rounded(figure) for name, figure in model["figures"].items()}
        for part in model["steering"]:
            part["figures"] = {name: rounded(figure) for name, figure in part["figures"].items()}
    return row


def rounded(figure: dict) -> dict:
    """Mean, spread and number of a figure."""
    short = {
        name: figure[name] if figure[name] is None else float(f"{figure[name]:.4g}") for name in ("mean", "spread")
    }
    return {**short, "n": figure["n"]}


if __name__ == "__main__":
    sys.exit(main())
