"""Which words a masked model learns from in a step: complementary masks against gradient sparsity, and maskers.

    python benchmarks/masking.py --num-steps 400 --seeds 3 --out benchmarks/results/masking.json

A masked model on the built-in weather corpus, at equal steps, in arms with equally many rows in a step: one mask a
text; a mask and its complement; as the control two masks of the same text drawn independently, which halve the texts of
a step as the complement does; and one mask that hides runs of words, rare words more often, or those of which the model
is undecided. For each: the share of the texts' words that a step supervises (from the training log), the likelihood
bound of held-out texts (under uniform masks for all), and the oracle's verdict on texts written by every budget.
Finished rows in --out are kept, so the command can be repeated; with --folder models are kept, and measured without
training where they stand there already.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from manta.bench import machine
from manta.config import from_dict
from manta.families.masked import MaskedLM
from manta.families.masked_objective import bound
from manta.hub import load
from manta.masked import MaskedObjectiveConfig
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write, make_generator
from manta.text import Corpus, build, collate, read, weather

ARMS: dict[str, dict[str, Any]] = {
    "one mask": {"copies": 1},
    "a mask and its complement": {"complementary": True},
    "two independent masks": {"copies": 2},
    "runs of words": {"masker": "span"},
    "rare words more often": {"masker": "rarity"},
    "undecided words more often": {"masker": "entropy"},
}
BUDGETS = (4, 8, 16)


def recipe_of(arm: str, seed: int, args: argparse.Namespace) -> Recipe:
    """The recipe of an arm; `batch_tokens` is divided by the rows of a text, so that steps cost the same."""
    masking = ARMS[arm]
    rows = MaskedObjectiveConfig(**masking).times
    given = {"data": "builtin:weather", "family": "masked", "size": args.size, "num_examples": args.num_examples}
    given |= {"batch_tokens": args.batch_tokens // rows, "masking": masking, "seed": seed}
    length = {"num_steps": args.num_steps} if args.num_steps else {"time_budget": f"{args.minutes * 60:.0f}s"}
    return from_dict(Recipe, {**given, **length})


def held_out(lm: MaskedLM, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Nats a token of held-out texts by the bound, and the mean standard error of its estimate."""
    examples = read("builtin:weather", "dev", args.num_texts)
    build(
        examples, lm.tokenizer, folder / "dev", max_prompt=lm.model.config.max_prompt, max_text=lm.model.config.max_text
    )
    corpus = Corpus.open(folder / "dev", tokenizer=lm.tokenizer)
    batch = collate(corpus, np.arange(len(corpus)), 1).to(lm.device)
    generators = [make_generator(row) for row in range(len(batch))]
    found = bound(lm.model, batch, generators, num_samples=args.num_samples)
    tokens = batch.text_lengths + 1
    return {
        "bound_nats_a_token": (found.nats.sum() / tokens.sum()).item(),
        "standard_error": (found.standard_error.square().sum().sqrt() / tokens.sum()).item(),
    }


def written(lm: MaskedLM, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The oracle's verdict at every budget."""
    prompts = [example.prompt or "" for example in read("builtin:weather", "test", args.num_texts)]
    rows = {}
    for budget in BUDGETS:
        texts = lm.write(prompts, num_steps=budget)
        verdict = weather.judge(list(zip(prompts, texts, strict=True)))
        rows[str(budget)] = {key: verdict[key] for key in ("grammatical", "faithful", "num")}
    return rows


def measure(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one arm, trained first if no model of it is kept."""
    with tempfile.TemporaryDirectory() as passing:
        folder = (args.folder or Path(passing)) / f"{arm.replace(' ', '-')}-{seed}"
        if not (folder / "model" / "config.json").exists():
            for _ in TrainingRun(recipe_of(arm, seed, args), folder).events():
                pass
        lm = load(folder / "model")
        assert isinstance(lm, MaskedLM)
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        row: dict[str, Any] = {"arm": arm, "seed": seed, "steps": len(log)}
        row["supervised_share"] = round(mean(line["supervised"] for line in log), 4)
        row["gradient_norm"] = round(mean(line["gradient_norm"] for line in log[len(log) // 2 :]), 4)
        return {**row, **held_out(lm, Path(passing), args), "written": written(lm, args)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each arm and seed")
    parser.add_argument("--num-steps", type=int, help="instead of minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-examples", type=int, default=10_000)
    parser.add_argument("--batch-tokens", type=int, default=1500)
    parser.add_argument("--num-texts", type=int, default=300)
    parser.add_argument("--num-samples", type=int, default=32, help="masks a text of the bound")
    parser.add_argument("--folder", type=Path, help="where models are kept; they are thrown away without it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "folder", "seeds")}
    result = json.loads(args.out.read_text()) if args.out.exists() else {"settings": settings, "rows": []}
    if result["settings"] != settings:
        sys.exit(f"{args.out} has other settings; name another --out")
    result["machine"] = machine()
    for seed in range(args.seeds):
        for arm in ARMS:
            if any(row["arm"] == arm and row["seed"] == seed for row in result["rows"]):
                continue
            result["rows"].append(measure(arm, seed, args))
            print(json.dumps(result["rows"][-1]), flush=True)
            atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return result


if __name__ == "__main__":
    main()
