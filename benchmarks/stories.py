"""TinyStories: every family at about equal parameters and equal steps, or equal minutes where a step is dearer, judged
by a model that shares no text with them.

    python benchmarks/stories.py --data tinystories:PATH --num-steps 2000 --batch-tokens 2000 --judge-steps 2300 \
        --seeds 2 --num 100 --folder runs/stories --out benchmarks/results/stories_blocks.json

Contestants learn from one half of the training split, the judge, larger and longer trained, from the other. They write
windows of stories, so passages of equal length are compared, human ones from anywhere in a story. Models that stand in
--folder are kept, so that the command can be repeated after an interruption; what each really was given is recorded.
`--longer M` adds one run of M steps of each. `stories.json` is of an earlier form of this script, by minutes and with
embeddings in place of blocks; its models are gone. The pages of the comparisons are left in --folder.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manta.bench import machine
from manta.cli import main as manta
from manta.runtime import atomic_write, resolve_device

CONTESTANTS: dict[str, tuple[str, ...]] = {
    "latents": (),
    "masked": ("--family", "masked", "masked.depth=5", "warm_start=true"),
    "block": ("--family", "block", "block.depth=5", "warm_start=true"),
    "autoregressive": ("--family", "ar", "teacher.depth=5", "teacher.draft_horizon=8"),
}
"""Without an encoder of latents the others get its block, so that parameters agree. All but the last start from an
autoregressive model that takes a share of their steps; the last has a drafter, so that its texts take fewer calls."""
DEARER = {"block": 0.5}
"""Share of the steps for about equal minutes: a batch of a block-causal model holds every text twice."""
DECODERS = ("deferred", "block", "threshold", "confidence", "remask", "first_hitting")
ENTROPY_MARGIN = 0.5
"""Nats that a decoder's texts may fall below human ones to be chosen by their perplexity: fewer are a collapse."""
BUDGETS = "1,2,4,8,16,32,64"
WORDS = 40
"""Words of a passage: what a window of the tokenizer surely holds."""
APART = 5000
"""Seed of the texts that the decoder is chosen by, so that none of them is compared later."""


def trained(folder: Path, data: str, split: str, *arguments: str) -> Path:
    """Train a model, or continue a run that was interrupted, unless it is there."""
    if not (folder / "model").exists():
        unfinished = (folder / "recipe.json").exists()
        command = [data, "--out", str(folder), f"split={split}", *arguments]
        if status := manta(["train", *(["--out", str(folder), "--resume"] if unfinished else command)]):
            sys.exit(status)
    return folder


def steps(num: int, args: argparse.Namespace) -> tuple[str, ...]:
    """How long a run is."""
    return "--num-steps", str(num), f"batch_tokens={args.batch_tokens}"


def main() -> int:
    """Read the command line, train what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-steps", type=int, default=1_500, help="of each run")
    parser.add_argument("--judge-steps", type=int, help="of the judge; left out, twice as many")
    parser.add_argument("--batch-tokens", type=int, default=4_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--longer", type=int, help="steps of one longer run of each")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num", type=int, default=200, help="texts a model and setting")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    larger = {"nano": "tiny", "tiny": "small", "small": "base"}[args.size]
    how = ("--family", "ar", "--size", larger, *steps(args.judge_steps or 2 * args.num_steps, args))
    judge = trained(args.folder / "judge", args.data, "train:2/2", *how)
    device = resolve_device()
    result: dict[str, Any] = {"machine": machine(device), "steps": args.num_steps, "longer_steps": args.longer}
    result |= {"data": Path(args.data).name, "texts": args.num, "words": WORDS, "judge": spent(judge)}
    masked = CONTESTANTS["masked"]
    first = ("train:1/2", "--size", args.size, *steps(args.num_steps, args), "seed=0", *masked)
    decoder, result["decoders"] = chosen_decoder(trained(args.folder / "masked-0", args.data, *first), judge, args)
    result["decoder"] = decoder

    def budget(num: int, *more: str) -> Callable[[str], tuple[str, ...]]:
        return lambda name: (*steps(round(num * DEARER.get(name, 1)), args), *more)

    runs = {str(seed): budget(args.num_steps, f"seed={seed}") for seed in range(args.seeds)}
    longer = {"longer": budget(args.longer)} if args.longer else {}
    for report, wanted in {"seeds": runs, "longer": longer}.items():
        models = [
            trained(args.folder / f"{name}-{run}", args.data, "train:1/2", "--size", args.size, *budget(name), *changes)
            for run, budget in wanted.items()
            for name, changes in CONTESTANTS.items()
        ]
        if models:
            result[report] = kept(compared(models, judge, args.folder / f"compared-{report}", decoder, args))
            for row, folder in zip(result[report]["models"], models, strict=True):
                row |= spent(folder)
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def compared(models: list[Path], judge: Path, report: Path, decoder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compare models, unless this comparison is done."""
    command = ["compare", *map(str, models), "--data", args.data, "--out", str(report), "--judge", str(judge)]
    command += ["--num", str(args.num), "--num-seeds", "1", "--num-steps", BUDGETS, "--words", str(WORDS)]
    return done([*command, "--temperature", "0,1", "--decoder", decoder], report / "compare.json")


def done(command: list[str], file: Path) -> dict[str, Any]:
    """What a command writes into a file, run unless the file is of the same command."""
    found = json.loads(file.read_text()) if file.exists() else {}
    if found.get("command") != shlex.join(["manta", *command]):
        if status := manta(command):
            sys.exit(status)
        found = json.loads(file.read_text())
    return found


def chosen_decoder(masked: Path, judge: Path, args: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The decoder whose texts of the dev split have the lowest perplexity at about the entropy of human ones."""
    rows = []
    for decoder in DECODERS:
        file = args.folder / f"decoder-{decoder}.json"
        command = ["evaluate", str(masked), "--data", args.data, "--split", "dev", "--num", str(args.num)]
        command += ["--num-seeds", "1", "--judge", str(judge), "--words", str(WORDS), "--decoder", decoder]
        command += ["--metrics", "diversity,judge", "--num-steps", "16", "--temperature", "1", "--seed", str(APART)]
        found = done([*command, "--out", str(file)], file)
        figures = {name: found["figures"][name]["mean"] for name in ("perplexity", "entropy", "repeated_4", "nfe")}
        rows.append({"decoder": decoder, "human_entropy": found["corpus"]["entropy"], **figures})
    fair = [row for row in rows if row["entropy"] > row["human_entropy"] - ENTROPY_MARGIN]
    if fair:
        return min(fair, key=lambda row: row["perplexity"])["decoder"], rows
    return min(rows, key=lambda row: abs(row["entropy"] - row["human_entropy"]))["decoder"], rows


def spent(folder: Path) -> dict[str, float]:
    """What the training of a model took."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in log)
    return {"minutes": round(sum(row["seconds"] for row in log) / 60, 1), "steps": len(log), "tokens": tokens}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """A comparison without its texts and command, which names places of this machine."""
    rows = [
        {
            "model": Path(row["model"]).name,
            "setting": row["setting"],
            "figures": {name: float(f"{figure['mean']:.4g}") for name, figure in row["figures"].items()},
            "intervals": {
                name: [float(f"{figure[end]:.4g}") for end in ("low", "high")]
                for name, figure in row["figures"].items()
                if figure["low"] is not None
            },
        }
        for row in found["rows"]
    ]
    short = {name: found[name] for name in ("prompts", "corpus", "corpus_intervals", "frontier", "lengths")}
    models = [{**model, "name": Path(model["name"]).name} for model in found["models"]]
    nearest = {Path(name).name: row for name, row in found["nearest_entropy"].items()}
    return {**short, "models": models, "nearest_entropy": nearest, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
