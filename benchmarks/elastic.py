"""Elastic canvases beside canvases of a drawn length: quality, padding and blanks of an unknown size.

    python benchmarks/elastic.py --data e2e:PATH --num-steps 1500 --seeds 0 --keep RUNS \
        --out benchmarks/results/elastic.json

Masked models of equal shape and steps, with and without places that stand for several words or none. Texts are written
for the prompts of the development split in `--calls` network calls, on canvases that begin with a share of what the
length head asks for; `padding` is the share of a canvas that holds no word in the end, the closing end left out, and
`positions` what was computed for a text. Then a span of each text is written again in a blank that does not say how
long the span was, or that does (`told`): the share that comes back word for word. Finished rows in --out are kept.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from e2e import references, scores

import manta.families.masked as masked
from manta.config import from_dict
from manta.families.events import GenerateOptions, Request, finished
from manta.hub import load, save_model
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write
from manta.text import NULL, read

SPANS = (1, 12)
"""Least and most words of a span that is written again."""


def padding(tokens: tuple[int, ...]) -> float:
    """Share of a canvas behind the last word, the closing end left out."""
    words = max((i + 1 for i, token in enumerate(tokens) if token != NULL), default=0)
    return max(0, len(tokens) - words - 1) / len(tokens)


def written(lm: Any, elastic: bool, start: float, dev: Any, calls: int) -> dict[str, Any]:
    """Figures of free texts."""
    masked.ELASTIC_START = start
    options = GenerateOptions(style="consensus", num_steps=calls)
    requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(dev.prompts)]
    done = list(finished(lm.generate(requests, options)))
    row = scores(lm, dev, options)
    return {
        "elastic": elastic,
        "start": start,
        "calls": calls,
        **{name: row[name] for name in ("bleu", "slot_error_rate", "mean_calls")},
        "padding": sum(padding(e.tokens) for e in done) / len(done),
        "positions": sum(e.processed for e in done) / len(done),
    }


def spans(data: str, num: int) -> Iterator[tuple[str, str, str, str]]:
    """Prompt, what stands before and after a span, and the span."""
    draw = random.Random(0)
    for example in read(data, "dev", num):
        words = example.text.split(" ")
        length = min(draw.randint(*SPANS), len(words) - 2)
        if length < 1:
            continue
        start = draw.randint(1, len(words) - length - 1)
        before, span = " ".join(words[:start]), " ".join(words[start : start + length])
        yield example.prompt or "", before, span, " ".join(words[start + length :])


def filled(lm: Any, elastic: bool, told: bool, data: str, num: int, calls: int) -> dict[str, Any]:
    """Share of the spans that come back, by whether they fit a blank of the usual size."""
    asked = list(spans(data, num))
    sizes = [len(lm.tokenizer.encode(" " + span)) for _, _, span, _ in asked]
    blanks = [f"___{{{size}}}" if told else "___" for size in sizes]
    requests = [
        Request(prompt=prompt, infill=f"{before} {blank} {after}", seed=i)
        for i, ((prompt, before, _, after), blank) in enumerate(zip(asked, blanks, strict=True))
    ]
    done = sorted(finished(lm.generate(requests, GenerateOptions(num_steps=calls))), key=lambda e: e.index)
    right = [e.text == f"{before} {span} {after}" for e, (_, before, span, after) in zip(done, asked, strict=True)]
    long = [size > 8 for size in sizes]
    return {
        "elastic": elastic,
        "told": told,
        "back": sum(right) / len(right),
        "back_short": sum(r for r, over in zip(right, long, strict=True) if not over) / max(1, long.count(False)),
        "back_long": sum(r for r, over in zip(right, long, strict=True) if over) / max(1, sum(long)),
        "num": len(right),
        "calls": sum(e.nfe for e in done) / len(done),
    }


def trained(elastic: bool, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A model's figures."""
    recipe: dict[str, Any] = {"data": args.data, "seed": seed, "num_steps": args.num_steps, "size": args.size}
    recipe |= {"family": "masked", "masked": {"elastic": elastic}, "batch_tokens": args.batch_tokens}
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    for _ in TrainingRun(from_dict(Recipe, recipe), folder / "run").events():
        pass
    lm = cast(Any, load(folder / "run"))
    if args.keep is not None:
        save_model(args.keep / f"{'elastic' if elastic else 'fixed'}-{seed}", lm, recipe={}, card="")
    shutil.rmtree(folder)
    dev = references(args.data, "dev")
    dev = replace(dev, prompts=dev.prompts[:: args.every], references=dev.references[:: args.every])
    found: dict[str, Any] = {"elastic": elastic, "seed": seed, "minutes": round((time.perf_counter() - start) / 60, 2)}
    starts = (0.25, 0.5, 1.0) if elastic else (1.0,)
    found["texts"] = [written(lm, elastic, share, dev, calls) for share in starts for calls in args.calls]
    found["blanks"] = [filled(lm, elastic, told, args.data, args.num_blanks, 9) for told in (False, True)]
    return found


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=2_000)
    parser.add_argument("--batch-tokens", type=int, default=3_000)
    parser.add_argument("--calls", type=int, nargs="+", default=[9, 17, 33])
    parser.add_argument("--every", type=int, default=4, help="use every n-th prompt of dev")
    parser.add_argument("--num-blanks", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--keep", type=Path, help="a folder for the models; they are thrown away without it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for elastic in (False, True):
            if any((row["elastic"], row["seed"]) == (elastic, seed) for row in rows):
                continue
            rows.append(trained(elastic, seed, args))
            print(json.dumps(rows[-1]), flush=True)
            atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
