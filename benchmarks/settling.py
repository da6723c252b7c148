"""In what order the slots of an aligned model settle: which rule is the best in as many calls.

    python benchmarks/settling.py --models builtin:e2e-aligned --names e2e --data e2e:PATH \
        --out benchmarks/results/settling.json

`neighbours`, as manta does: of every K neighbouring slots one a call, the surest. `anywhere`: the surest of the whole
text. `blocks`: left to right, a K-th of the text a call. `repair`: all slots in the first call; each further one tells
the least sure of them anew, in sight of the others, fewer from call to call (Mask-Predict, Ghazvininejad et al., arXiv
1904.09324). Each without and with counts of the training texts. E2E dev by BLEU and slot errors with 95% intervals over
prompts, weather by its oracle. Rows replace those of the same model in --out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from e2e import references, scores
from torch import Tensor

import manta.families.aligned as aligned
from manta.aligned import Slots, settle
from manta.families.events import GenerateOptions
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read, weather

CALLS = (2, 4, 8)
RECORDS = 300
"""Of the weather corpus."""


def ordered(order: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]) -> Callable[..., Iterator[Slots]]:
    """A rule in the place of `settle`: `order(sure, open_, begun, call, num_steps)` is True where a slot stays open."""

    def rule(
        denoiser: Any, labels: Tensor, open_: Tensor, num_steps: int, *, open_id: int, reader: Any
    ) -> Iterator[Slots]:
        begun, confidence = open_, torch.ones(labels.shape, dtype=torch.float64)
        calls_of = torch.full((len(labels),), num_steps)
        for call in range(1, num_steps + 1):
            logits = denoiser(labels.masked_fill(open_, open_id))
            chosen = reader(logits, labels, open_)
            chance = logits.double().softmax(-1).gather(2, chosen[..., None])[..., 0]
            labels, confidence = torch.where(open_, chosen, labels), torch.where(open_, chance, confidence)
            open_ = order(confidence, open_, begun, call, num_steps) & begun if call < num_steps else open_ & False
            yield Slots(labels, open_, confidence, call, calls_of.clamp_max(call))

    return rule


def least(sure: Tensor, among: Tensor, share: float) -> Tensor:
    """True at a share of the slots, the least sure among some."""
    rank = sure.masked_fill(~among, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank < (share * among.sum(1, keepdim=True)).ceil()


def anywhere(sure: Tensor, open_: Tensor, begun: Tensor, call: int, num_steps: int) -> Tensor:
    """All but the surest open slots."""
    return open_ & least(sure, open_, 1 - 1 / (num_steps - call + 1))


def blocks(sure: Tensor, open_: Tensor, begun: Tensor, call: int, num_steps: int) -> Tensor:
    """All but the first slots."""
    return begun & (begun.cumsum(1) > begun.sum(1, keepdim=True) * call / num_steps)


def repair(sure: Tensor, open_: Tensor, begun: Tensor, call: int, num_steps: int) -> Tensor:
    """The least sure of all."""
    return begun & least(sure, begun, 1 - call / num_steps)


RULES = {"neighbours": settle, "anywhere": ordered(anywhere), "blocks": ordered(blocks), "repair": ordered(repair)}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="aligned models")
    parser.add_argument("--names", nargs="+", required=True, help="of them, in tables")
    parser.add_argument("--data", required=True, help="e2e:PATH or builtin:weather")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = references(args.data, "dev") if args.data.startswith("e2e:") else None
    records = [] if data else [example.prompt or "" for example in read("builtin:weather", "test", RECORDS)]
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    rows = [row for row in rows if row["model"] not in args.names]
    for place, model in zip(args.models, args.names, strict=True):
        lm: Any = load(place, device="cpu")
        for fluency, calls, (name, rule) in product((0.0, 0.5), CALLS, RULES.items()):
            aligned.settle = rule  # pyright: ignore[reportPrivateImportUsage]
            options = GenerateOptions(num_steps=calls, fluency=fluency)
            row: dict[str, Any] = {"model": model, "rule": name, "num_steps": calls, "fluency": fluency}
            if data:
                row |= scores(lm, data, options)
            else:
                texts = lm.write(records, num_steps=calls, fluency=fluency)
                verdicts = [weather.check(record, text) for record, text in zip(records, texts, strict=True)]
                row["faithful"] = round(sum(verdict.faithful for verdict in verdicts) / len(verdicts), 4)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
        aligned.settle = settle
    atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
