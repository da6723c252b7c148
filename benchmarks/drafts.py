"""Drafts that are checked: is the text the sequential one, in how many calls and seconds, by which drafter?

    python benchmarks/drafts.py --models runs/ar/model runs/drafter/model --data e2e:PATH \
        --out benchmarks/results/drafts.json

Every text of every model, greedily and at temperature 1, is compared with its sequential one, alone and in a batch.
Seconds are of one thread at batch 1, decoders taking turns prompt by prompt; their ratio is of the sums. A model with a
drafter of its own is measured with it and with the table of the training texts, which needs no training. Rows are added
to those in --out.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from manta.families.autoregressive import AutoregressiveLM
from manta.families.events import Event, GenerateOptions, Request, finished
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "temperature 1": {"temperature": 1.0}}


def written(lm: AutoregressiveLM, requests: list[Request], batch_size: int, **options: Any) -> list[Event]:
    """The finished texts, in the order of their requests."""
    events = finished(lm.generate(requests, GenerateOptions(**options), batch_size=batch_size))
    return sorted(events, key=lambda event: event.index)


def means(events: list[Event]) -> dict[str, float]:
    """Calls and places a text, the prompt's call left out, and words that a call commits."""
    calls, words = sum(e.nfe - 1 for e in events), sum(len(e.tokens) + 1 for e in events)
    places = sum(e.processed for e in events)
    return {
        "calls": round(calls / len(events), 2),
        "places": round(places / len(events), 1),
        "words_a_call": round(words / calls, 3),
    }


def seconds(lm: AutoregressiveLM, requests: list[Request], num_drafts: int, **options: Any) -> dict[str, Any]:
    """Processor milliseconds a text of both decoders, one text at a time, in turn."""
    spent = {"sequential": 0.0, "verified": 0.0}
    for request in requests:
        for decoder in spent:
            more = {} if decoder == "sequential" else {"num_drafts": num_drafts}
            begun = time.process_time()
            written(lm, [request], 1, **{**options, **more, "decoder": decoder})
            spent[decoder] += time.process_time() - begun
    each = {name: round(1000 * total / len(requests), 2) for name, total in spent.items()}
    return {"milliseconds_a_text": each, "speedup": round(spent["sequential"] / spent["verified"], 3)}


def rows_of(name: str, lm: AutoregressiveLM, requests: list[Request], timed: int) -> list[dict[str, Any]]:
    """What is measured of one drafter."""
    rows = []
    for way, options in WAYS.items():
        plain = written(lm, requests, 64, decoder="sequential", **options)
        for num_drafts in (3, 7):
            chosen = {**options, "decoder": "verified", "num_drafts": num_drafts}
            together, alone = written(lm, requests, 64, **chosen), written(lm, requests, 1, **chosen)
            row: dict[str, Any] = {"model": name, "way": way, "num_drafts": num_drafts, "texts": len(requests)}
            row["sequential_calls"] = means(plain)["calls"]
            row |= means(alone)
            for how, found in (("equal_in_batches", together), ("equal_alone", alone)):
                row[how] = sum(a.tokens == b.tokens for a, b in zip(plain, found, strict=True))
            row |= seconds(lm, requests[:timed], num_drafts, **options)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        help="autoregressive models with a drafter, or aligned ones that have kept theirs",
    )
    parser.add_argument("--names", nargs="+", help="of the models, in tables")
    parser.add_argument("--data", required=True, help="whose prompts are written")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, help="prompts; all without it")
    parser.add_argument("--timed", type=int, default=50, help="prompts that are timed")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of weights and products")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = list(dict.fromkeys(example.prompt for example in read(args.data, args.split)))[: args.num]
    if prompts == [None]:
        prompts = [None] * (args.num or 100)
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for name, place in zip(args.names or args.models, args.models, strict=True):
        lm = load(place, device="cpu")
        lm = getattr(lm, "causal", None) or lm
        assert isinstance(lm, AutoregressiveLM), f"{place} is not of the family ar"
        lm.model.to(PRECISIONS[args.precision])
        rows += [{**row, "precision": args.precision} for row in rows_of(name, lm, requests, args.timed)]
    atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
