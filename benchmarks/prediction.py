"""Do the diagnostics predict quality? Rank correlations over variants, none of whose quality enters a diagnosis.

    python benchmarks/prediction.py variants.json --data builtin:weather --num-prompts 8 \
        --out benchmarks/results/prediction.json

`variants.json` is a list of `{"name": …, "seed": 0, "folder": …, "quality": {"4": 0.2, "8": 0.4, "32": 0.5}}`, as
`variants.py weather --keep DIR` writes it: a model folder and its texts' quality, by the oracle, at each budget of
calls. Seeds of a variant are averaged. Every figure's mean is correlated with the quality at each budget over the
variants that have it (Spearman, two-sided permutation test). With 12 variants |ρ| > 0.59 has p < 0.05 for a single
test; with some forty figures about two a budget would pass by chance, so p is also held against 0.05 over the number of
tests (Bonferroni). Diagnoses already in --out are kept.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from manta.diagnosis import Settings, diagnose
from manta.errors import DataError
from manta.hub import load
from manta.metrics import spearman
from manta.runtime import atomic_write, make_generator
from manta.text import read

LEAST_VARIANTS = 5


def figures_of(folder: str, prompts: list[str | None], num_steps: int) -> dict[str, float | None]:
    """The mean of every figure of a model that needs no oracle; None where it is absent."""
    found = diagnose({"m": load(folder)}, prompts, Settings(num_steps=num_steps, strengths=()), keyword="none").models[
        0
    ]
    return {
        name: figure.row()["mean"]
        for name, figure in found.measured.figures.items()
        if "faithfulness" not in name and "likelihood" not in name
    }


def by_variant(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a variant: means over its training seeds, which are no independent variants."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        found.append({"name": name, **{part: _means([row[part] for row in own]) for part in ("quality", "figures")}})
    return found


def _means(parts: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of each figure that all have; None where one lacks it."""
    found: dict[str, float | None] = {}
    for name in parts[0]:
        values = [part.get(name) for part in parts]
        found[name] = None if None in values else sum(v for v in values if v is not None) / len(values)
    return found


def correlations(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Budget → figure → ρ, p and the number of variants; figures that do not vary, or that few have, are left out."""
    budgets = sorted({budget for row in rows for budget in row["quality"]}, key=int)
    names = sorted({name for row in rows for name in row["figures"]})
    found: dict[str, dict[str, dict[str, float]]] = {}
    for budget in budgets:
        found[budget] = {}
        for name in names:
            pairs = [(row["figures"].get(name), row["quality"].get(budget)) for row in rows]
            there = [pair for pair in pairs if None not in pair]
            if len(there) < LEAST_VARIANTS:
                continue
            first, second = torch.tensor(there, dtype=torch.float64).T
            try:
                link = spearman(first, second, generator=make_generator(0))
            except DataError:  # all values equal
                continue
            found[budget][name] = {"rho": round(link.rho, 3), "p": round(link.p_value, 4), "n": len(there)}
        found[budget] = dict(sorted(found[budget].items(), key=lambda item: item[1]["p"]))
    return found


def main() -> int:
    """Read the command line, diagnose what is missing, correlate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path)
    parser.add_argument("--data", default="builtin:weather")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prediction.json"))
    args = parser.parse_args()
    variants = json.loads(args.variants.read_text())
    done = (
        {(row["name"], row["seed"]): row for row in json.loads(args.out.read_text())["variants"]}
        if args.out.exists()
        else {}
    )
    distinct = dict.fromkeys(example.prompt for example in read(args.data, "test", 50 * args.num_prompts))
    prompts: list[str | None] = list(distinct)[: args.num_prompts]
    rows = []
    for variant in variants:
        row = done.get((variant["name"], variant["seed"]))
        if row is None:
            figures = figures_of(variant["folder"], prompts, args.num_steps)
            row = {"name": variant["name"], "seed": variant["seed"], "quality": variant["quality"], "figures": figures}
            print(variant["name"], variant["seed"], file=sys.stderr, flush=True)
        rows.append({**row, "quality": variant["quality"]})
        points = by_variant(rows)
        links = correlations(points) if len(points) >= LEAST_VARIANTS else {}
        tests = sum(len(by_figure) for by_figure in links.values())
        result = {
            "prompts": len(prompts),
            "calls": args.num_steps,
            "figures_tested": tests,
            "p_bonferroni": 0.05 / tests if tests else None,
            "correlations": links,
            "variants": rows,
        }
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
