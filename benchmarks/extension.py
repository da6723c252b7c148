"""Blocks that may reach on into the next one, beside blocks that end where they end, of a trained block-causal model.

    manta train e2e:PATH --family block --size nano --num-steps 600 batch_tokens=2000 block.block_length=16 \
        consensus=none --out MODEL
    python benchmarks/extension.py MODEL/model --data e2e:PATH --every 1 --out benchmarks/results/extension.json
    manta train builtin:weather --family block --size nano --num-steps 400 batch_tokens=900 block.block_length=8 \
        block.dim=64 block.depth=2 num_examples=4000 --out WEATHER
    python benchmarks/extension.py WEATHER/model --data builtin:weather --num-texts 64 \
        --out benchmarks/results/extension.json

Texts are written for prompts of the development split, greedily, one for each: by the threshold decoder, by deferred
commitment within blocks, by the same at higher thresholds, which spends more calls, too, and with blocks that may reach
so many places further (`most`) where the least confidence of a call is below so much (`below`). E2E: BLEU and slot
errors as `manta evaluate` has them;
weather: the texts that its oracle calls right. `calls` and `positions` are means of a text. `gain` is the difference of
BLEU to blocks that end where they end, with its 95% interval over prompts, paired. Finished rows in --out are kept.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from e2e import measured, references

from manta.bench import machine
from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.metrics import difference_of, resampled
from manta.runtime import atomic_write, make_generator
from manta.text import read, weather

SURER = (0.95, 0.99)
"""Thresholds of the control, which spends more calls without reaching on; 0.9 elsewhere."""
MOST = (4, 8, 16)
BELOW = (0.3, 0.5)


def settings() -> Iterator[tuple[dict[str, Any], GenerateOptions]]:
    """What is said of each setting, and the options that make it."""
    yield {"decoder": "threshold", "most": 0, "below": None}, GenerateOptions(decoder="threshold")
    deferred = GenerateOptions(decoder="deferred")
    yield {"decoder": "deferred", "most": 0, "below": None}, deferred
    for threshold in SURER:
        told = {"decoder": "deferred", "most": 0, "below": None, "threshold": threshold}
        yield told, replace(deferred, threshold=threshold)
    for most in MOST:
        for below in BELOW:
            told = {"decoder": "deferred", "most": most, "below": below}
            yield told, replace(deferred, block_extension=most, extension_below=below)


def scored(lm: Any, args: argparse.Namespace, options: GenerateOptions, plain: dict[str, Any]) -> dict[str, Any]:
    """Figures of the texts of one setting; `plain` keeps those of blocks that end where they end."""
    start = time.perf_counter()
    if args.data.startswith("e2e:"):
        found = references(args.data, "dev")
        data = replace(found, prompts=found.prompts[:: args.every], references=found.references[:: args.every])
        prompts = [prompt or "" for prompt in data.prompts]
    else:
        data, prompts = None, [example.prompt or "" for example in read(args.data, "dev", args.num_texts)]
    done = {e.index: e for e in lm.generate([Request(prompt=p) for p in prompts], options) if e.kind == "done"}
    events = [done[index] for index in range(len(prompts))]
    row: dict[str, Any] = {"texts": len(prompts), "seconds": round(time.perf_counter() - start, 1)}
    row["calls"] = round(sum(event.nfe for event in events) / len(events), 2)
    row["positions"] = round(sum(event.processed for event in events) / len(events), 1)
    texts = [event.text for event in events]
    if data is None:
        verdict = weather.judge(list(zip(prompts, texts, strict=True)))
        return {**row, "grammatical": verdict["grammatical"], "faithful": verdict["faithful"]}
    figures = measured(texts, data)
    row |= {name: round(cast(Any, figures[name]).value, 4) for name in ("bleu", "slot_error_rate")}
    if options.block_extension == 0 and options.threshold is None:
        plain |= figures
        return row
    gain = difference_of([figures["bleu"]], [plain["bleu"]], resampled(len(prompts), generator=make_generator(0)))
    return row if gain is None else row | {"gain": gain.value, "gain_interval": [gain.low, gain.high]}


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="e2e:PATH, or builtin:weather")
    parser.add_argument("--every", type=int, default=8, help="E2E: use every n-th prompt of dev")
    parser.add_argument("--num-texts", type=int, default=64, help="weather: texts")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lm = cast(Any, load(args.model))
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    result["machine"] = machine()
    plain: dict[str, Any] = {}
    for told, options in settings():
        row = {"data": args.data.partition(":")[0] if args.data.startswith("e2e") else "weather"}
        row |= {"length": lm.model.config.block_length, **told}
        known = any(
            row == {name: old[name] for name in ("data", "length", *told, "threshold") if name in old}
            for old in result["rows"]
        )
        if known and (
            options.block_extension or options.threshold
        ):  # differences are paired with the texts of the others
            continue
        found = {**row, **scored(lm, args, options, plain)}
        if known:
            continue
        result["rows"].append(found)
        print(json.dumps(result["rows"][-1]), flush=True)
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
