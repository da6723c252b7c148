"""One trunk with two readings: what each loses to a model that has only one.

    manta train e2e:PATH --family ar --size small --num-steps 1800 batch_tokens=3000 --out runs/ar
    manta train e2e:PATH --family aligned --teacher runs/ar --size small --num-steps 2900 batch_tokens=3000 \
        aligned.causal=true aligned.styles=false aligned.draft_horizon=8 recombined=30000 retries=4 consensus_share=1 \
        --out runs/both
    python benchmarks/one_trunk.py "both, 90 minutes=runs/both" "left to right alone, 16 of them=runs/ar" \
        --data PATH --out benchmarks/results/one_trunk.json

"both, better teacher" is the second command with the teacher of `builtin:e2e-aligned` (`runs/own` of its card) and, as
`targets=FILE` in place of recombined and retries, the 64,740 answers that the card tells of. "both, human texts too"
is `runs/both` of that card, "both, told of styles" its `runs/styled`, the model that ships.
The models are named; PATH is e2e-dataset.zip or its folder. Of each, every reading that it has: slots at 1, 2, 4 and 8
calls as the network says and with counts of the training texts, and left to right, greedy. E2E test, a text a prompt.
An aligned model beside which a teacher is kept is measured by its slots alone. Rows that are in --out already stay.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from e2e import references, scores

from manta.families.events import GenerateOptions
from manta.hub import load
from manta.runtime import atomic_write

CALLS = (1, 2, 4, 8)
KEPT = ("bleu", "bleu_interval", "slot_error_rate", "slot_error_rate_interval", "mean_calls")


def ways(lm: Any) -> dict[str, GenerateOptions]:
    """What a model is asked for."""
    if lm.family == "ar":
        return {"left to right": GenerateOptions(decoder="sequential")}
    found = {}
    for calls in CALLS:
        found[f"slots, {calls} calls, no counts"] = GenerateOptions(num_steps=calls, fluency=0.0)
        found[f"slots, {calls} calls"] = GenerateOptions(num_steps=calls, fluency=0.5)
    if lm.model.config.causal:
        found["left to right"] = GenerateOptions(decoder="sequential")
        found["left to right, drafted and checked"] = GenerateOptions(decoder="verified")
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", required=True, help="e2e-dataset.zip or its folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = references(f"e2e:{args.data}", args.split)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(row["model"], row["way"]) for row in rows}
    for named in args.models:
        name, place = named.split("=", 1)
        lm: Any = load(place, device="cpu")
        parameters = sum(part.numel() for part in lm.model.parameters())
        for way, options in ways(lm).items():
            if (name, way) in done:
                continue
            found = scores(lm, data, options)
            row = {"model": name, "parameters": parameters, "way": way}
            row |= {key: found[key] for key in KEPT if key in found}
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            result = {"split": args.split, "prompts": len(data.prompts), "rows": rows}
            atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
