"""TinyStories: every family at equal minutes and parameters, judged by a model that shares no text with them.

    python benchmarks/stories.py --data tinystories:PATH --minutes 8 --seeds 3 --folder runs/stories \
        --out benchmarks/results/stories.json

Contestants learn from one half of the training split, the judge, larger and longer trained, from the other. Models that
stand in --folder are kept, so that the command can be repeated after an interruption. `--longer M` adds one run of M
minutes of each. The pages of the comparisons are left in --folder, and kept, too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from manta.bench import machine
from manta.cli import main as manta
from manta.runtime import atomic_write

CONTESTANTS: dict[str, tuple[str, ...]] = {
    "latents": (),
    "embeddings": ("model.space.kind=embedding", "model.depth=5"),
    "masked": ("--family", "masked", "masked.depth=5", "warm_start=true"),
    "autoregressive": ("--family", "ar", "teacher.depth=5"),
}
"""Without an encoder of latents the others get its block, so that parameters agree. All but the last start from an
autoregressive model that takes a share of their minutes."""
DECODERS = ("deferred", "block", "threshold", "confidence", "remask", "first_hitting")
ENTROPY_MARGIN = 0.1
"""Nats that a decoder's texts may fall below human ones to be chosen by their perplexity."""
BUDGETS = "1,2,4,8,16,32,64"
WORDS = 40
"""Words of a text that are judged: what a window of the tokenizer surely holds."""


def trained(folder: Path, data: str, split: str, *arguments: str) -> Path:
    """Train a model, or continue a run that was interrupted, unless it is there."""
    if not (folder / "model").exists():
        unfinished = (folder / "recipe.json").exists()
        command = [data, "--out", str(folder), f"split={split}", *arguments]
        if status := manta(["train", *(["--out", str(folder), "--resume"] if unfinished else command)]):
            sys.exit(status)
    return folder


def main() -> int:
    """Read the command line, train what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--longer", type=float, help="minutes of one longer run of each")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num", type=int, default=200, help="texts a model and setting")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    larger = {"nano": "tiny", "tiny": "small", "small": "base"}[args.size]
    time = ("--time-budget", f"{2 * args.minutes}m", "--family", "ar", "--size", larger)
    judge = trained(args.folder / "judge", args.data, "train:2/2", *time)
    result: dict[str, Any] = {"machine": machine(), "minutes": args.minutes, "longer_minutes": args.longer}
    masked = CONTESTANTS["masked"]
    first = ("train:1/2", "--size", args.size, "--time-budget", f"{args.minutes}m", "seed=0", *masked)
    decoder, result["decoders"] = chosen_decoder(trained(args.folder / "masked-0", args.data, *first), judge, args)
    result["decoder"] = decoder
    runs = {str(seed): ("--time-budget", f"{args.minutes}m", f"seed={seed}") for seed in range(args.seeds)}
    longer = {"longer": ("--time-budget", f"{args.longer}m")} if args.longer else {}
    for report, wanted in {"seeds": runs, "longer": longer}.items():
        models = [
            trained(args.folder / f"{name}-{run}", args.data, "train:1/2", "--size", args.size, *budget, *changes)
            for run, budget in wanted.items()
            for name, changes in CONTESTANTS.items()
        ]
        if models:
            result[report] = kept(compared(models, judge, args.folder / f"compared-{report}", decoder, args))
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def compared(models: list[Path], judge: Path, report: Path, decoder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compare models, unless it is done."""
    if not (report / "compare.json").exists():
        command = ["compare", *map(str, models), "--data", args.data, "--out", str(report), "--judge", str(judge)]
        command += ["--num", str(args.num), "--num-seeds", "1", "--num-steps", BUDGETS, "--judge-words", str(WORDS)]
        if status := manta([*command, "--temperature", "0,0.5,1", "--decoder", decoder]):
            sys.exit(status)
    return json.loads((report / "compare.json").read_text())


def chosen_decoder(masked: Path, judge: Path, args: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The decoder whose texts of the dev split have the lowest perplexity at about the entropy of human ones."""
    rows = []
    for decoder in DECODERS:
        file = args.folder / f"decoder-{decoder}.json"
        if not file.exists():
            command = ["evaluate", str(masked), "--data", args.data, "--split", "dev", "--num", str(args.num)]
            command += ["--num-seeds", "1", "--judge", str(judge), "--judge-words", str(WORDS), "--decoder", decoder]
            command += ["--metrics", "diversity", "--metrics", "judge", "--num-steps", "16", "--temperature", "1"]
            if status := manta([*command, "--out", str(file)]):
                sys.exit(status)
        found = json.loads(file.read_text())
        figures = {name: found["figures"][name]["mean"] for name in ("perplexity", "entropy", "repeated_4", "nfe")}
        rows.append({"decoder": decoder, "human_entropy": found["corpus"]["entropy"], **figures})
    fair = [row for row in rows if row["entropy"] > row["human_entropy"] - ENTROPY_MARGIN]
    return min(fair or rows, key=lambda row: row["perplexity"])["decoder"], rows


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """A comparison without its texts and command, which names places of this machine."""
    rows = [
        {
            "model": Path(row["model"]).name,
            "setting": row["setting"],
            "figures": {name: float(f"{figure['mean']:.4g}") for name, figure in row["figures"].items()},
        }
        for row in found["rows"]
    ]
    short = {name: found[name] for name in ("prompts", "corpus", "frontier", "lengths")}
    models = [{**model, "name": Path(model["name"]).name} for model in found["models"]]
    nearest = {Path(name).name: row for name, row in found["nearest_entropy"].items()}
    return {**short, "models": models, "nearest_entropy": nearest, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
