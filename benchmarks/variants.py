"""Ablations: train variants at equal steps and judge their texts.

    python benchmarks/variants.py weather --seeds 0 1 --keep runs/variants \
        --out benchmarks/results/weather_variants.json
    python benchmarks/variants.py e2e --data PATH --size tiny --seeds 0 1 2 --out benchmarks/results/e2e_spaces.json
    python benchmarks/variants.py e2e --data PATH --size tiny --num-steps 2000 \
        --only masked "latents, r = 4" autoregressive --out benchmarks/results/e2e_steps.json

`weather` changes one thing at a time; `e2e` compares the spaces (rate r, nats a text, embeddings) and the other
families, each with its own teacher, at the size asked for. Finished variants in --out are kept, so that the command can
be repeated after an interruption. `--only NAME…` trains these; `--keep DIR` keeps the models, which
`benchmarks/prediction.py` reads.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from e2e import references, scores

from manta.config import from_dict
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.metrics import distinct_share
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write
from manta.text import read, weather

BUDGETS = (4, 8, 16, 32)
FEW = (1, 2)
"""Further budgets of models that write a text in one call or two."""
WEATHER_RUN: dict[str, Any] = {"size": "nano", "batch_tokens": 1_000, "num_steps": 1_000, "num_examples": 8_000}
"""About three minutes on one core. Steps are equal rather than minutes, which a noisy machine makes into different
steps; what a variant costs is in its row."""
NUM_RECORDS = 200

WEATHER: dict[str, dict[str, Any]] = {
    "base": {},
    "no noise floor": {"model": {"space": {"noise_floor": 0.0}}},
    "noise floor 0.5": {"model": {"space": {"noise_floor": 0.5}}},
    "uniform times": {"model": {"time": {"kind": "uniform"}}},
    "no self-conditioning": {"objective": {"flow": {"self_cond_probability": 0.0}}},
    "no velocity matching": {"objective": {"velocity_weight": 0.0}},
    "no own states": {"shares": {"policy": 0.8, "own": 0.0}},
    "more own states": {"shares": {"policy": 0.5, "own": 0.3}},
    "operator: fourier": {"model": {"operator": {"kind": "fourier"}}},
    "operator: attention + fourier": {"model": {"operator": {"kind": "attention_fourier"}}},
    "operator: windowed": {"model": {"operator": {"kind": "windowed"}}},
    "latents, r = 1": {"model": {"space": {"rate": 1}}},
    "embeddings": {"model": {"space": {"kind": "embedding"}}},
    "masked": {"family": "masked"},
    "masked, places not told": {"family": "masked", "absolute_places": False},
    "aligned": {"family": "aligned"},
    "aligned, nothing revealed": {"family": "aligned", "alignment": {"reveal_share": 0.0}},
    "aligned, no glancing": {"family": "aligned", "alignment": {"glance": 0.0}},
    "aligned, human texts": {"family": "aligned", "consensus": "none"},
    "aligned, left to right too": {
        "family": "aligned",
        "aligned": {"causal": True},
        "alignment": {"slots_learn": "all"},
        "consensus_share": 1.0,
    },
}
"""Words are read from the policy's own call, so the cross-entropy that trains them is the terminal cost and cannot be
left out; what can is velocity matching."""
E2E: dict[str, dict[str, Any]] = {
    "latents, r = 4": {},
    "latents, r = 1": {"model": {"space": {"rate": 1}}},
    "latents, r = 8": {"model": {"space": {"rate": 8, "channels": 16}}},
    "latents, r = 4, 10 nats": {"model": {"space": {"information": 10.0}}},
    "latents, r = 4, no noise floor": {"model": {"space": {"noise_floor": 0.0}}},
    "latents, r = 4, noise floor 0.5": {"model": {"space": {"noise_floor": 0.5}}},
    "embeddings": {"model": {"space": {"kind": "embedding"}, "depth": 6}},
    "masked": {"family": "masked", "masked": {"depth": 6}},
    "masked, places not told": {"family": "masked", "masked": {"depth": 6}, "absolute_places": False},
    "aligned": {"family": "aligned", "aligned": {"depth": 6}},
    "autoregressive": {"family": "ar", "consensus": "none", "warm_start": False, "teacher": {"depth": 6}},
}
"""Without an encoder of latents the others get its blocks, so that parameters agree."""


def judge_weather(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Oracle's verdict on forecasts for unseen records, at several budgets."""
    lm = load(folder)
    prompts = [example.prompt or "" for example in read("builtin:weather", "test", NUM_RECORDS)]
    rows = {}
    style: dict[str, Any] = {} if lm.family == "aligned" else {"style": "consensus"}
    for budget in (*FEW, *BUDGETS) if lm.family == "aligned" else BUDGETS:
        texts = lm.write(prompts, num_steps=budget, fluency=0.0, **style)
        rows[str(budget)] = _counted(prompts, texts)
    if lm.family == "aligned":  # by its own reading, or the teacher that it has kept
        rows["left to right"] = _counted(prompts, lm.write(prompts, decoder="sequential"))
    return rows


def _counted(prompts: list[str], texts: list[str]) -> dict[str, float]:
    verdicts = [weather.check(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return {
        "grammatical": sum(v.grammatical for v in verdicts) / len(verdicts),
        "faithful": sum(v.faithful for v in verdicts) / len(verdicts),
        "distinct": distinct_share(texts),
    }


def _as_told(budget: int, style: Any) -> GenerateOptions:
    """Words as the network tells them, without the counts of the training texts."""
    return GenerateOptions(num_steps=budget, style=style, fluency=0.0)


def judge_e2e(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """BLEU and slot errors on dev, both styles, at several budgets; left to right greedily and sampled."""
    lm, groups = load(folder), references(f"e2e:{args.data}", "dev")
    if lm.family == "ar":
        how = {"consensus": GenerateOptions(), "diverse": GenerateOptions(temperature=1.0)}
        return {style: {"its own": scores(lm, groups, options)} for style, options in how.items()}
    if lm.family == "aligned":
        return {
            "consensus": {
                str(b): scores(lm, groups, GenerateOptions(num_steps=b, fluency=0.0)) for b in (*FEW, *BUDGETS)
            }
        }
    budgets = {"consensus": BUDGETS, "diverse": BUDGETS[1:3]}
    return {
        style: {str(b): scores(lm, groups, _as_told(b, style)) for b in chosen} for style, chosen in budgets.items()
    }


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("weather", "e2e"))
    parser.add_argument("--data", help="e2e-dataset.zip or its folder")
    parser.add_argument("--size", default="nano", help="of the e2e suite")
    parser.add_argument("--num-steps", type=int, default=4_000, help="of each run of the e2e suite")
    parser.add_argument("--batch-tokens", type=int, default=6_000, help="of the e2e suite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--only", nargs="+", help="names of variants, in this order")
    parser.add_argument("--keep", type=Path, help="folder for the models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    variants, judge = (WEATHER, judge_weather) if args.suite == "weather" else (E2E, judge_e2e)
    common: dict[str, Any] = {"data": "builtin:weather", **WEATHER_RUN}
    if args.suite == "e2e":
        common = {"data": f"e2e:{args.data}", "size": args.size, "consensus": "teacher"}
        common |= {"num_steps": args.num_steps, "batch_tokens": args.batch_tokens}
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for name in args.only or variants:
            changes = variants[name]
            if any(row["name"] == name and row["seed"] == seed for row in done):
                continue
            recipe = from_dict(Recipe, {**common, **changes, "seed": seed})
            folder = Path(tempfile.mkdtemp())
            start = time.perf_counter()
            run = TrainingRun(recipe, folder / "run")
            for _ in run.events():
                pass
            minutes = (time.perf_counter() - start) / 60
            parameters = sum(p.numel() for p in run.model.model.parameters())
            tokens = sum(json.loads(line)["tokens"] for line in (run.out / "metrics.jsonl").read_text().splitlines())
            row = {"name": name, "seed": seed, "minutes": round(minutes, 2), "parameters": parameters}
            row |= {"steps": run.recipe.num_steps, "tokens": tokens}
            row["scores"] = judge(folder / "run", args)
            if args.suite == "weather":
                row["quality"] = {k: scored["faithful"] for k, scored in row["scores"].items() if k.isdigit()}
            if args.keep is not None:
                place = args.keep / f"{name.replace(': ', '-').replace(' ', '-').replace(',', '')}-{seed}"
                shutil.copytree(folder / "run" / "model", place, dirs_exist_ok=True)
                row["folder"] = str(place)
            done.append(row)
            atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())
            print(json.dumps(row), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
