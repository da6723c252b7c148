"""How much of the machine a training step uses, and how fast texts come out.

    python benchmarks/training_rate.py configs/e2e.toml --data e2e:PATH --model MODEL --out benchmarks/results/rate.json

The share of the matrix rate is that of `manta.bench.training_rates`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from manta.bench import machine, training_rates
from manta.config import load_toml
from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.recipes import Recipe
from manta.runtime import peak_memory_bytes
from manta.text import read


def training(config: str, data: str) -> list[dict[str, Any]]:
    """Share of the matrix rate, tokens a second and milliseconds a step of every stage."""
    rows = []
    for row in training_rates(replace(load_toml(Recipe, Path(config)), data=data)):
        rows.append(row)
        print(row, flush=True)
    return rows


def generation(model: str | None, data: str) -> list[dict[str, Any]]:
    """Texts a second at batch 1 and 64, three times each."""
    lm = load(model)
    prompts = list(dict.fromkeys(example.prompt for example in read(data, "dev")))[:192]
    rows = []
    for batch, count in ((1, 24), (64, 192)):
        speeds = []
        for _ in range(3):
            requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(prompts[:count])]
            start = time.perf_counter()
            list(lm.generate(requests, GenerateOptions(num_steps=8), batch_size=batch))
            speeds.append(count / (time.perf_counter() - start))
        rows.append({"batch": batch, "num_steps": 8, "texts_per_second": [round(s, 1) for s in sorted(speeds)]})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--out")
    args = parser.parse_args()
    result = {"training": training(args.config, args.data), "generation": generation(args.model, args.data)}
    result |= {"peak_memory_mib": round(peak_memory_bytes() / 2**20), "machine": machine()}  # pyright: ignore
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
