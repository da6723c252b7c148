"""Captions and images in one state: are captions drawn and images described, by where words and patches are?

    python benchmarks/joint.py --num-steps 3000 --seeds 0 1 --out benchmarks/results/joint.json
    python benchmarks/joint.py --minutes 10 --seeds 0 1 --out benchmarks/results/joint.json

Scenes of `builtin:shapes`, whose captions name each shape with its colour and its place. Every kind of places has equal
steps, or equal minutes of one thread. Of 200 held-out scenes the captions are drawn in 16 calls, and read back by the
oracle, the images are described in four, and it is measured what attention favours by places alone. Minutes are those
of the clock, beside those of the processor: where the two differ the machine was busy with something else, and equal
minutes were not equal. Finished rows in --out are kept, and so are the models in --keep, which are then not trained
again.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from manta.bench import machine
from manta.config import from_dict
from manta.evaluation.joint import measure_joint
from manta.evaluation.joint_bias import attention_bias
from manta.hub import load
from manta.recipes import TrainingRun
from manta.recipes.joint_recipe import JointRecipe
from manta.runtime import atomic_write, read_json, resolve_device

DATA, TOLD = "builtin:shapes", "trained.json"
ARMS: dict[str, dict[str, Any]] = {
    "line": {"positions": {"kind": "line"}},
    "axial": {"positions": {"kind": "axial"}},
    "M-RoPE": {"positions": {"kind": "mrope"}},
    "circle": {"positions": {"kind": "circle"}},
    "circle, alternating": {"positions": {"kind": "circle", "layers": "alternating"}},
    "unordered": {"positions": {"kind": "unordered"}},
    "axial, no absolute places": {"positions": {"kind": "axial"}, "absolute_places": False},
    "circle, no absolute places": {"positions": {"kind": "circle"}, "absolute_places": False},
}


def trained(name: str, seed: int, budget: dict[str, Any], size: str, folder: Path) -> dict[str, Any]:
    """Train one kind of places in a folder that has no such model yet; steps and minutes that it took."""
    if (folder / TOLD).exists():
        return read_json(folder / TOLD)
    shutil.rmtree(folder / "run", ignore_errors=True)  # of a command that was cut off: minutes are those of one sitting
    wall, work = time.perf_counter(), time.process_time()
    given = {"data": DATA, "size": size, "seed": seed, "model": ARMS[name], **budget}
    run = TrainingRun(from_dict(JointRecipe, given), folder / "run")
    for _ in run.events():
        pass
    minutes = {"minutes": (time.perf_counter() - wall) / 60, "cpu_minutes": (time.process_time() - work) / 60}
    told = {"steps": run.plan["joint"], **{key: round(value, 2) for key, value in minutes.items()}}
    atomic_write(folder / TOLD, json.dumps(told).encode())
    return told


def row_of(name: str, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and measure one kind of places."""
    budget = {"num_steps": args.num_steps} if args.minutes is None else {"time_budget": f"{60 * args.minutes:g}s"}
    told = trained(name, seed, budget, args.size, folder)
    flow = load(folder / "run")
    found = measure_joint(flow, DATA, num=args.num)
    bias = [asdict(each) for each in attention_bias(flow, DATA)]
    return {"name": name, "seed": seed, "asked": asked(args), **told, **asdict(found), "bias": bias}


def asked(args: argparse.Namespace) -> str:
    """How long each is trained."""
    return f"{args.num_steps:,} steps" if args.minutes is None else f"{args.minutes:g} minutes"


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=3_000)
    parser.add_argument("--minutes", type=float, help="of each, instead of steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), help="kinds of places, in this order")
    parser.add_argument("--num", type=int, default=200, help="held-out scenes")
    parser.add_argument("--keep", type=Path, help="folder for the models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    report["machine"] = machine(resolve_device("cpu"))
    for seed in args.seeds:
        for name in args.only or ARMS:
            if any((row["name"], row["seed"], row["asked"]) == (name, seed, asked(args)) for row in report["rows"]):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                place = (args.keep or Path(scratch)) / f"{name}-{seed}-{asked(args)}".replace(" ", "_")
                report["rows"].append(row_of(name, seed, args, place))
            print(json.dumps(report["rows"][-1]), flush=True)
            atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
