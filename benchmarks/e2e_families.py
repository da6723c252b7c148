"""E2E test: Manta-LM beside masked and left-to-right models of equal data, steps and parameters, at 1 to 64 calls.

    python benchmarks/e2e_families.py --data PATH --models latents=DIR masked=DIR "left to right=DIR" \
        --out benchmarks/results/e2e_families.json

PATH is e2e-dataset.zip or its folder; the models are those of `variants.py e2e --keep`. A masked model's decoder is
chosen on dev for each budget and style, and every decoder's merit there is kept. Scores as in `e2e.py`.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2e import references, scores

from manta.bench import machine
from manta.evaluation import EvaluationSet
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.runtime import atomic_write, resolve_device

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
STYLES: tuple[Any, ...] = ("consensus", "diverse")
DECODERS: dict[str, dict[str, Any]] = {
    "confidence": {"decoder": "confidence"},
    "confidence, blocks of 16": {"decoder": "confidence", "block_length": 16},
    "threshold": {"decoder": "threshold"},
    "deferred": {"decoder": "deferred"},
    "first hitting": {"decoder": "first_hitting"},
    "remask": {"decoder": "remask"},
}


def left_to_right(lm: Any, test: EvaluationSet) -> list[dict[str, Any]]:
    """The same words greedily and sampled; a call a token."""
    how = {"consensus": GenerateOptions(), "diverse": GenerateOptions(temperature=1.0)}
    return [{"style": style, "budget": None, **scores(lm, test, options)} for style, options in how.items()]


def masked(lm: Any, dev: EvaluationSet, test: EvaluationSet) -> list[dict[str, Any]]:
    """Of each budget and style the decoder that dev prefers, by BLEU less half the slot error rate in percent."""
    rows = []
    for style in STYLES:
        for budget in BUDGETS:
            same: dict[str, Any] = {"num_steps": budget, "style": style}
            tried = {name: scores(lm, dev, GenerateOptions(**same, **given)) for name, given in DECODERS.items()}
            merits = {name: round(row["bleu"] - 50 * row["slot_error_rate"], 2) for name, row in tried.items()}
            best = max(merits, key=lambda name: merits[name])
            row = {"style": style, "budget": budget, "decoder": best, "dev": merits}
            rows.append({**row, **scores(lm, test, GenerateOptions(**same, **DECODERS[best]))})
            print(rows[-1], flush=True)
    return rows


def manta(lm: Any, test: EvaluationSet) -> list[dict[str, Any]]:
    """Both styles at every budget, with the splits of the model."""
    return [
        {
            "style": style,
            "budget": budget,
            **scores(lm, test, GenerateOptions(num_steps=budget, style=style, fluency=0.0)),
        }
        for style in STYLES
        for budget in BUDGETS
    ]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--every", type=int, default=8, help="use every n-th prompt of dev to choose decoders")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dev, test = (references(f"e2e:{args.data}", split) for split in ("dev", "test"))
    dev = replace(dev, prompts=dev.prompts[:: args.every], references=dev.references[:: args.every])
    result: dict[str, Any] = {"machine": machine(resolve_device()), "prompts": len(test.prompts), "models": []}
    for given in args.models:
        name, folder = given.split("=", 1)
        lm = load(folder)
        parameters = sum(p.numel() for p in lm.model.parameters())
        if lm.family == "masked":
            rows = masked(lm, dev, test)
        else:
            rows = left_to_right(lm, test) if lm.family == "ar" else manta(lm, test)
        result["models"].append({"name": name, "family": lm.family, "parameters": parameters, "rows": rows})
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
