"""What drafts that are checked save in seconds, by size of the model: random weights, runs as a trained model has them.

    python benchmarks/verified_speed.py builtin:e2e-aligned --data e2e:PATH \
        --out benchmarks/results/verified_speed.json

The trained model writes the prompts of a split with its drafter; how many words each of its calls commits is kept.
Models of other sizes have random weights, so nothing could guess their words: theirs are drafted by a drafter of the
model's width, at its full cost, and then replaced so that each call commits as many words as a call of the trained
model, drawn at random. Every text is compared with the sequential one. Milliseconds of one thread a text of equal
length, decoders and precisions taking turns; the ratio is to the quicker of the two sequential ones, round by round.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from manta.autoregressive import Chooser, Drafter, Drafting, decode
from manta.bench import interleaved, machine, randomised
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel
from manta.families.batching import ROWS, padded_prompts
from manta.families.cached import CachedReader
from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read

SHAPES = {
    "3M": {"dim": 160, "depth": 5, "prompt_depth": 2, "heads": 4, "vocab_size": 1024},
    "20M": {"dim": 384, "depth": 6, "prompt_depth": 2, "heads": 6, "vocab_size": 8192},
    "60M": {"dim": 640, "depth": 7, "prompt_depth": 2, "heads": 10, "vocab_size": 8192},
    "120M": {"dim": 768, "depth": 11, "prompt_depth": 2, "heads": 12, "vocab_size": 8192},
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUM_DRAFTS = 7
PROMPT = 32
"""Tokens of a prompt."""


def runs_of(lm: Any, prompts: Sequence[str | None]) -> list[int]:
    """Words that each call commits of the texts of a trained model, greedy, one text at a time."""
    runs = []
    for prompt in prompts:
        options = GenerateOptions(decoder="verified", num_drafts=NUM_DRAFTS)
        events = list(lm.generate([Request(prompt=prompt)], options, batch_size=1))
        lengths = [0, *(len(event.tokens) for event in events)]
        runs += [after - before for before, after in pairwise(lengths) if after > before]
    return runs


class Replayed(Drafter):
    """Drafts at a drafter's cost, of which as many are right as those of a trained model were.

    Args:
        inner: drafts, whose guesses are replaced.
        texts: what the model writes.
        runs: words that calls commit.
    """

    def __init__(self, inner: Drafter, texts: Sequence[Sequence[int]], runs: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.texts, self.runs = inner, texts, runs
        self.draw = random.Random(0)

    def draft(self, told: Drafting) -> list[list[int]]:
        """See `Drafter`."""
        found = []
        for text, written, guess in zip(self.texts, told.written, self.inner.draft(told), strict=True):
            right = self.draw.choice(self.runs) - 1
            ahead = list(text[len(written) : len(written) + len(guess)])
            found.append([word if at < right else (word + 1) % 512 for at, word in enumerate(ahead)])
        return found


@torch.no_grad()
def write(
    model: AutoregressiveModel, prompts: Sequence[Sequence[int]], length: int, drafter: Replayed | None = None
) -> list[list[int]]:
    """Greedy texts of equal length."""
    prompt, lengths = padded_prompts(prompts, torch.device("cpu"))
    memory = model.memory(prompt, lengths, torch.zeros_like(lengths))
    if drafter is not None:
        drafter.inner.begin(memory)
    reader = CachedReader(model, memory, length + NUM_DRAFTS + ROWS)
    rows: list[list[int]] = [[] for _ in prompts]
    settings: dict[str, Any] = {"begin": model.begin, "end": -1, "max_tokens": length, "multiple": reader.multiple}
    for step in decode(
        reader, Chooser(), prompts, drafter=drafter, num_drafts=NUM_DRAFTS if drafter else 0, **settings
    ):
        for row, words in zip(rows, step.words, strict=True):
            row += words
    return rows


def measured(name: str, batch: int, runs: Sequence[int], length: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a text of both decoders in both precisions."""
    draw, shape = random.Random(1), SHAPES[name]
    prompts = [[draw.randrange(8, 512) for _ in range(PROMPT)] for _ in range(batch)]
    work, equal, parameters = {}, {}, 0
    for precision, dtype in PRECISIONS.items():
        config = AutoregressiveConfig(**shape, max_prompt=PROMPT, max_text=length, draft_horizon=NUM_DRAFTS + 1)
        torch.manual_seed(0)
        model = randomised(AutoregressiveModel(config)).to(dtype).eval()
        assert model.drafter is not None
        parameters = sum(part.numel() for part in model.parameters())
        texts = write(model, prompts, length)
        drafter = Replayed(model.drafter, texts, runs)
        equal[precision] = sum(a == b for a, b in zip(texts, write(model, prompts, length, drafter), strict=True))
        work[f"sequential, {precision}"] = partial(write, model, prompts, length)
        work[f"verified, {precision}"] = partial(write, model, prompts, length, drafter)
    times = interleaved(work, repeats)
    row: dict[str, Any] = {"size": name, "parameters": parameters, "batch": batch, "words": length, "equal": equal}
    row["milliseconds_a_text"] = {
        way: [round(1000 * x / batch, 2) for x in (median(spent), min(spent), max(spent))]
        for way, spent in times.items()
    }
    best = [min(pair) for pair in zip(*(times[f"sequential, {p}"] for p in PRECISIONS), strict=True)]
    for precision in PRECISIONS:
        ratios = [one / other for one, other in zip(best, times[f"verified, {precision}"], strict=True)]
        row[f"times_quicker_{precision}"] = [round(x, 2) for x in (median(ratios), min(ratios), max(ratios))]
    return row


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a trained model that drafts for itself")
    parser.add_argument("--data", required=True, help="whose prompts it writes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=200, help="prompts whose runs are counted")
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--length", type=int, default=30, help="words of a text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = list(dict.fromkeys(example.prompt for example in read(args.data, args.split)))[: args.num]
    runs = runs_of(load(args.model, device="cpu"), prompts)
    found: dict[str, Any] = {"machine": machine(), "mean_run": round(sum(runs) / len(runs), 3), "rows": []}
    for size in args.sizes:
        for batch in args.batches:
            found["rows"].append(measured(size, batch, runs, args.length, args.repeats))
            print(json.dumps(found["rows"][-1]), file=sys.stderr, flush=True)
            atomic_write(args.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
