"""Captions and images in one state: are captions drawn and images described, by where words and patches are?

    python benchmarks/joint.py --num-steps 3000 --seeds 0 --only axial "circle, alternating" \
        --out benchmarks/results/joint.json

Scenes of `builtin:shapes`, whose captions name each shape with its colour and its place, equal steps for every kind of
places. Of 200 held-out scenes the captions are drawn in 16 calls, and read back by the oracle, and the images are
described in four. Finished rows in --out are kept.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manta.bench import machine
from manta.config import from_dict
from manta.evaluation.joint import measure_joint
from manta.hub import load
from manta.recipes import TrainingRun
from manta.recipes.joint_recipe import JointRecipe
from manta.runtime import atomic_write, resolve_device

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


def row_of(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one kind of places."""
    given = {"data": "builtin:shapes", "size": args.size, "num_steps": args.num_steps, "seed": seed}
    folder, start = Path(tempfile.mkdtemp()) / "run", time.perf_counter()
    for _ in TrainingRun(from_dict(JointRecipe, {**given, "model": ARMS[name]}), folder).events():
        pass
    minutes = round((time.perf_counter() - start) / 60, 2)
    found = measure_joint(load(folder), "builtin:shapes", num=200)
    return {"name": name, "seed": seed, "steps": args.num_steps, "minutes": minutes, **asdict(found)}


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), help="kinds of places, in this order")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    report["machine"] = machine(resolve_device("cpu"))
    for seed in args.seeds:
        for name in args.only or ARMS:
            if any((row["name"], row["seed"], row["steps"]) == (name, seed, args.num_steps) for row in report["rows"]):
                continue
            report["rows"].append(row_of(name, seed, args))
            print(json.dumps(report["rows"][-1]), flush=True)
            atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
