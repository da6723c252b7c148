"""What distilling the flow of a Manta-LM gains: few calls of its students beside few and many of its own.

    python benchmarks/distillation.py --data PATH --train-steps 600 --folder runs/distilled \
        --out benchmarks/results/distillation.json

PATH is e2e-dataset.zip or its folder. Two students of MODEL are trained, `progressive` for --num-steps calls and a
`flow_map`, and, as the control, the model itself for as many steps with its own objectives (`manta train --from`). Each
then writes the prompts of the test split in few calls, in both styles, as the network tells the words (no counts), and
the model itself in 2^halvings times its actions too. Runs that stand in --folder are kept, and rows in --out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from e2e import measured, references

from manta.cli import main as manta
from manta.evaluation import write
from manta.evaluation.features import hashed_ngrams
from manta.evaluation.results import Figure
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.metrics import mauve, resampled
from manta.runtime import atomic_write, make_generator

FIGURES = ("bleu", "slot_error_rate", "distinct_4", "mauve")
STYLES: tuple[Any, ...] = ("diverse", "consensus")


def trained(folder: Path, command: list[str]) -> Path:
    """Run a command that trains, or go on with it, unless it is done."""
    if not (folder / "model").exists():
        again = [command[0], "--resume", "--out", str(folder)]
        if status := manta(again if (folder / "recipe.json").exists() else [*command, "--out", str(folder)]):
            sys.exit(status)
    return folder


def main() -> None:
    """Read the command line, train what is missing, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="e2e-dataset.zip or its folder")
    parser.add_argument("--model", default="builtin:e2e")
    parser.add_argument("--num-steps", type=int, default=2, help="calls of the progressive student")
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--batch-tokens", type=int, default=2000)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=2, help="texts a prompt, each of its own noise")
    parser.add_argument("--only", nargs="+", choices=("itself", "trained on", "progressive", "flow map"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = f"e2e:{args.data}"
    data = references(source, args.split)
    size = f"batch_tokens={args.batch_tokens}"
    distil = ["distill", args.model, "--num-steps", str(args.num_steps), "--train-steps", str(args.train_steps)]
    distil += ["--data", source, size]
    longer = ["train", source, "--from", args.model, "--num-steps", str(args.train_steps), size]
    few = (args.num_steps, 2 * args.num_steps - 1)
    models: dict[str, tuple[Path | None, list[str], tuple[int, ...]]] = {
        "itself": (None, [], (*few, 5, 9, 16)),
        "trained on": (args.folder / "on", longer, few),
        "progressive": (args.folder / "progressive", distil, few),
        "flow map": (args.folder / "flow_map", [*distil, "--method", "flow_map"], (*few, 5)),
    }
    times = resampled(len(data.prompts), generator=make_generator(0))
    human = hashed_ngrams([group[0] for group in data.references])
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(row["model"], row["style"], row["num_steps"]) for row in rows}
    for name in args.only or models:
        folder, command, budgets = models[name]
        lm: Any = load(args.model if folder is None else trained(folder, command), device="cpu")
        for style in STYLES:
            for calls in dict.fromkeys(budgets):
                if (name, style, calls) in done:
                    continue
                options = GenerateOptions(num_steps=calls, style=style, fluency=0.0)
                runs = [write(lm, data, options, seed=100_000 * seed) for seed in range(args.seeds)]
                found = [measured(run.texts, data) for run in runs]
                row: dict[str, Any] = {"model": name, "style": style, "num_steps": calls}
                for each, run in zip(found, runs, strict=True):
                    each["mauve"] = mauve(hashed_ngrams(run.texts), human, generator=make_generator(0)).measured
                for figure in FIGURES:
                    told = Figure.of([each[figure] for each in found], times)
                    row[figure] = round(told.mean, 5)
                    if told.interval is not None:
                        row[f"{figure}_interval"] = [round(told.interval.low, 5), round(told.interval.high, 5)]
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                result = {"split": args.split, "prompts": len(data.prompts), "train_steps": args.train_steps}
                result |= {"batch_tokens": args.batch_tokens, "seeds": args.seeds, "rows": rows}
                atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
