"""Texts longer than a model's window: does memory grow with them, and do they get worse?

    python benchmarks/long_texts.py MODEL --data tinystories:PATH --out benchmarks/results/long_texts.json

MODEL writes left to right and has learned texts without prompts. `memory`: one text of each length, none of which may
end before, in a process of its own: what the process holds at most beyond the loaded model, and seconds a word piece.
`quarters`: texts that go on with another where one ends, and people's joined likewise: of each quarter of 500 words the
repeated 4-grams within it, and the share of its 4-grams that stood before.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from manta.families.events import GenerateOptions, Request, finished
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read

LENGTHS = (200, 1_000, 5_000)
"""Tokens."""
WORDS = 500


def held() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_length(model: str, length: int) -> dict[str, Any]:
    """One text that does not end before."""
    torch.set_num_threads(1)
    lm: Any = load(model, device="cpu").left_to_right
    list(finished(lm.generate([Request()], GenerateOptions(max_tokens=8, temperature=1.0))))
    before, begun = held(), time.process_time()
    with lm.endless():
        (event,) = finished(lm.generate([Request(seed=1)], GenerateOptions(max_tokens=length, temperature=1.0)))
    spent = time.process_time() - begun
    assert len(event.tokens) == length
    return {"tokens": length, "mib": round(held() - before, 1), "ms_a_token": round(1000 * spent / length, 2)}


def quarters(text: str) -> list[dict[str, float]]:
    """Repetition in each quarter of the first words of a text."""
    words = text.split()[:WORDS]
    seen: set[tuple[str, ...]] = set()
    rows = []
    for k in range(4):
        part = words[k * WORDS // 4 : (k + 1) * WORDS // 4]
        grams = [tuple(part[i : i + 4]) for i in range(len(part) - 3)]
        again, before = 1 - len(set(grams)) / len(grams), sum(gram in seen for gram in grams) / len(grams)
        rows.append({"repeated": again, "before": before})
        seen |= set(grams)
    return rows


def long_texts(model: str, num: int) -> list[str]:
    """Texts that go on with another where one has ended, as the stories of a book do."""
    lm: Any = load(model, device="cpu").left_to_right
    with lm.endless():
        options = GenerateOptions(max_tokens=2 * WORDS, temperature=1.0)
        events = finished(lm.generate([Request(seed=seed) for seed in range(num)], options))
        return [event.text for event in events]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="people's texts")
    parser.add_argument("--num", type=int, default=30, help="texts")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.length:
        print(json.dumps(of_length(args.model, args.length)))
        return
    memory = []
    for length in LENGTHS:
        command = [sys.executable, __file__, args.model, "--data", args.data, "--out", str(args.out)]
        found = subprocess.run([*command, "--length", str(length)], check=True, capture_output=True, text=True).stdout
        memory.append(json.loads(found))
        print(memory[-1], file=sys.stderr)
    own = long_texts(args.model, args.num)
    stories = (example.text.lower() for example in read(args.data, "train"))
    people = [" ".join(islice(stories, 4)) for _ in range(args.num)]
    rows = []
    for name, texts in (("the model", own), ("people", people)):
        whole = [quarters(text) for text in texts if len(text.split()) >= WORDS]
        for k in range(4):
            told = {what: round(sum(row[k][what] for row in whole) / len(whole), 4) for what in ("repeated", "before")}
            rows.append({"of": name, "texts": len(whole), "quarter": k + 1, **told})
            print(rows[-1], file=sys.stderr)
    atomic_write(args.out, (json.dumps({"memory": memory, "quarters": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
