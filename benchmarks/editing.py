"""Texts changed to another record: how much of the new record they say, and how much of the old words they keep.

    python benchmarks/editing.py --data PATH --out benchmarks/results/editing.json

PATH is e2e-dataset.zip or its folder. For every meaning representation of the split that has a value which its first
human text says word for word, that value is exchanged for another of the same slot, and the text is changed to answer
the new representation: all of it at several strengths, or only the words of the value, marked. The controls leave the
text as it is, or write it anew without having seen it. Measured: slots wrong by the new representation, texts that say
the new value, words kept of the old text (F of words as multisets), and nats a token by a left-to-right judge. With 95%
intervals over prompts.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch

from manta.evaluation.results import Figure
from manta.families.batching import to_batch
from manta.families.events import GenerateOptions, Request, finished
from manta.hub import load
from manta.metrics import resampled, slot_errors_measured
from manta.metrics.measured import Sums
from manta.runtime import atomic_write, make_generator
from manta.text import Batch, read

STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0)
YES_OR_NO = "familyFriendly"
"""A slot whose values no text says."""
SLOT = re.compile(r"([\w ]+)\[([^\]]*)\]")


def tasks(data: str, split: str) -> list[dict[str, str]]:
    """New representations, old texts, the same with the value marked, and the new value."""
    values: dict[str, list[str]] = {}
    for example in read(f"e2e:{data}", "train"):
        for name, value in SLOT.findall(example.prompt or ""):
            values.setdefault(name.strip(), []).append(value)
    known = {name: sorted(set(found)) for name, found in values.items()}
    draw, seen, found = random.Random(0), set(), []
    for example in read(f"e2e:{data}", split):
        prompt, text = example.prompt or "", example.text
        if prompt in seen:
            continue
        seen.add(prompt)
        told = [
            (name.strip(), value)
            for name, value in SLOT.findall(prompt)
            if name.strip() != YES_OR_NO and len(known[name.strip()]) > 1 and len(whole(value).findall(text)) == 1
        ]
        if not told:
            continue
        name, value = draw.choice(told)
        new = draw.choice([other for other in known[name] if other != value])
        asked = prompt.replace(f"{name}[{value}]", f"{name}[{new}]")
        marked = whole(value).sub(lambda match: f"[[{match[0]}]]", text)
        found.append({"prompt": asked, "old": text, "marked": marked, "new": new})
    return found


def whole(value: str) -> re.Pattern[str]:
    """A value where it stands as words of its own."""
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def kept(old: str, new: str) -> float:
    """F of the words of two texts."""
    one, other = old.lower().split(), new.lower().split()
    both = sum(min(one.count(word), other.count(word)) for word in set(one))
    return 2 * both / (len(one) + len(other))


def figures(asked: list[dict[str, str]], texts: list[str], judge: Any) -> dict[str, Any]:
    """Every figure of one way to change the texts, with its interval."""
    pairs = [(task["prompt"], text) for task, text in zip(asked, texts, strict=True)]
    encode = judge.tokenizer.encode
    told = [encode(text) for text in texts]
    batch = to_batch([encode(prompt) for prompt, _ in pairs], told)
    nats = -torch.cat([judge.log_likelihood(rows).value for rows in split_rows(batch)])
    shares = {
        "new_value": [
            float(bool(whole(task["new"].lower()).search(text.lower())))
            for task, text in zip(asked, texts, strict=True)
        ],
        "kept": [kept(task["old"], text) for task, text in zip(asked, texts, strict=True)],
    }
    found: dict[str, Any] = {name: Sums.mean(torch.tensor(share)) for name, share in shares.items()}
    found["slot_error_rate"] = slot_errors_measured(pairs)["slot_error_rate"]
    found["nats"] = Sums.ratio(nats, torch.tensor([len(tokens) + 1.0 for tokens in told]))
    times = resampled(len(asked), generator=make_generator(0))
    row: dict[str, Any] = {}
    for name, measured in found.items():
        figure = Figure.of([measured], times)
        row[name] = round(figure.mean, 4)
        row[f"{name}_interval"] = (
            None
            if figure.interval is None
            else [
                round(figure.interval.low, 4),
                round(figure.interval.high, 4),
            ]
        )
    return row


def split_rows(batch: Batch, size: int = 64) -> list[Batch]:
    """A batch in parts that fit into memory."""
    num = len(batch.text)
    return [batch.rows(torch.arange(first, min(first + size, num))) for first in range(0, num, size)]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["builtin:e2e"], help="models that can change texts")
    parser.add_argument("--data", required=True, help="e2e-dataset.zip or its folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--judge", default="builtin:e2e-aligned", help="a model with an exact likelihood")
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked, judge = tasks(args.data, args.split), load(args.judge, device="cpu")
    result: dict[str, Any] = {"split": args.split, "texts": len(asked), "num_steps": args.num_steps, "rows": []}

    def add(name: str, texts: list[str], **more: Any) -> None:
        result["rows"].append({"name": name, **more, **figures(asked, texts, judge)})
        print(json.dumps(result["rows"][-1]), file=sys.stderr)
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())

    add("as it was", [task["old"] for task in asked])
    for place in args.models:
        lm: Any = load(place, device="cpu")

        def written(infills: list[str | None], lm: Any = lm, **options: Any) -> list[str]:
            how = GenerateOptions(num_steps=args.num_steps, style="consensus", fluency=0.0, **options)
            requests = [Request(prompt=t["prompt"], infill=i) for t, i in zip(asked, infills, strict=True)]
            return [event.text for event in sorted(finished(lm.generate(requests, how)), key=lambda e: e.index)]

        add("written anew", written([None] * len(asked)), model=lm.family)
        for strength in STRENGTHS:
            whole = written([f"[[{task['old']}]]" for task in asked], strength=strength)
            add("all of it", whole, model=lm.family, strength=strength)
        for strength in (0.5, 1.0):
            marked = written([task["marked"] for task in asked], strength=strength)
            add("the value, marked", marked, model=lm.family, strength=strength)


if __name__ == "__main__":
    main()
