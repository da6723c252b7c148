"""E2E in few calls: an aligned model at every budget, left to right beside it, choice among texts, and seconds.

    python benchmarks/few_calls.py measure MODEL --data PATH --out benchmarks/results/few_calls.json
    python benchmarks/few_calls.py infill MODEL --data PATH --out benchmarks/results/few_calls.json

MODEL is an aligned model that also writes left to right; PATH is e2e-dataset.zip or its folder. `measure` writes every
prompt of the split once by each setting, with 95% intervals over prompts (settings that draw: five sampling seeds), and
times them: milliseconds of one thread at batches of 1, 8 and 32, settings taking turns. `infill` hides a span of one
human text a prompt and asks for it back in several ways, by the model, by the models of --beside, and, as the control,
by its left-to-right reading, which does not see what follows. What is measured replaces its part of --out, and the
other part stays.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from e2e import references, scores
from editing import split_rows

from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import to_batch
from manta.families.events import GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.hub import load
from manta.metrics import bleu
from manta.runtime import atomic_write
from manta.text import read

SETTINGS: dict[str, dict[str, Any]] = {
    "aligned, 1 call": {"num_steps": 1},
    "aligned, 2 calls": {"num_steps": 2},
    "aligned, 4 calls": {"num_steps": 4},
    "aligned, 8 calls": {"num_steps": 8},
    "aligned, 2 calls, of 8 the likeliest": {"num_steps": 2, "choose": 8, "choose_by": "likelihood"},
    "aligned, 4 calls, of 8 the likeliest": {"num_steps": 4, "choose": 8, "choose_by": "likelihood"},
    "left to right, a word a call": {"decoder": "sequential"},
    "left to right, drafted and checked": {"decoder": "verified"},
    "left to right, of 16 at temperature 0.5 the one of least risk": {
        "decoder": "sequential",  # the same texts, sooner for so many side by side
        "temperature": 0.5,
        "choose": 16,
    },
}
FILLING: dict[str, dict[str, dict[str, Any]]] = {
    "aligned": {
        "aligned, no counts": {"num_steps": 1, "fluency": 0.0},
        "aligned": {"num_steps": 1},
        "aligned, of 8 the one of least risk": {"num_steps": 1, "choose": 8},
        "aligned, of 8 the likeliest": {"num_steps": 2, "choose": 8, "choose_by": "likelihood"},
        "left to right, a beam of 16": {"decoder": "sequential"},
        "left to right, 16 drawn, one of them by its weight": {"decoder": "sequential", "temperature": 1.0},
    },
    "masked": {f"masked, {calls} calls": {"num_steps": calls} for calls in (2, 4, 8)},
    "manta": {
        f"Manta-LM, {calls} calls{how}": {"num_steps": calls, "style": "consensus", "fluency": fluency}
        for calls in (2, 4, 8)
        for how, fluency in ((", no counts", 0.0), ("", 0.5))
    },
}
Gap = tuple[str | None, str, str]
"""A prompt, its text with a blank in it, and the words that were taken out."""
BATCHES = (1, 8, 32)
WORDS_HIDDEN = (2, 5)
"""Words of the shortest and of the longest span that is asked for back."""


def milliseconds(lm: Any, prompts: list[str | None], timed: int) -> dict[str, dict[str, Any]]:
    """Processor milliseconds a text of every setting, by batch: medians over prompts or batches, taking turns."""
    spent: dict[tuple[str, int], list[float]] = {}
    for size in BATCHES:
        for first in range(0, timed, size):
            some = [Request(prompt=prompt, seed=first + i) for i, prompt in enumerate(prompts[first : first + size])]
            for name, options in SETTINGS.items():
                begun = time.process_time()
                list(lm.generate(some, GenerateOptions(**options), batch_size=size * options.get("choose", 1)))
                spent.setdefault((name, size), []).append(1000 * (time.process_time() - begun) / len(some))
    return {name: {str(size): round(statistics.median(spent[name, size]), 2) for size in BATCHES} for name in SETTINGS}


def measure(args: argparse.Namespace, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Quality, calls and seconds of every setting, as far as they are measured; rows of settings left out stay."""
    lm, data = load(args.model, device="cpu"), references(f"e2e:{args.data}", args.split)
    rows = {row["name"]: row for row in kept.get("rows", ())}
    for name, options in SETTINGS.items():
        if args.only and not any(part in name for part in args.only):
            continue
        how = GenerateOptions(**options)
        seeds = args.seeds if how.temperature > 0 else 1
        row = {"name": name, **options, "seeds": seeds, **scores(lm, data, how, seeds)}
        rows[name] = row
        print(json.dumps({k: row[k] for k in ("name", "bleu", "slot_error_rate", "mean_calls")}), file=sys.stderr)
        kept = {**kept, "split": args.split, "prompts": len(data.prompts)}
        kept["rows"] = [rows[name] for name in SETTINGS if name in rows]
        yield kept
    if args.timed:
        yield {**kept, "milliseconds": milliseconds(lm, list(data.prompts), args.timed)}


def gaps(data: str, num: int) -> list[Gap]:
    """Prompts, human texts with a span of words taken out, and the span; a text a prompt."""
    draw, seen, found = random.Random(0), set(), []
    for example in read(f"e2e:{data}", "test"):
        words = example.text.split(" ")
        if example.prompt in seen or len(words) < 2 * WORDS_HIDDEN[1]:
            continue
        seen.add(example.prompt)
        length = draw.randint(*WORDS_HIDDEN)
        start = draw.randint(1, len(words) - length - 1)
        span = " ".join(words[start : start + length])
        text = " ".join([*words[:start], f"___{{{blank_of(length)}}}", *words[start + length :]])
        found.append((example.prompt, text, span))
    return found[:num]


def blank_of(words: int) -> int:
    """Tokens of a blank for so many words: room to spare, as the length is not to be told."""
    return 3 * words + 4


def infill(args: argparse.Namespace, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How often a span comes back word for word, and how near it comes; nothing of before is kept."""
    asked, rows = gaps(args.data, args.num), []
    judge: Any = load(args.model, device="cpu").left_to_right

    def add(way: str, texts: list[str], spans: list[str]) -> dict[str, Any]:
        row = {"way": way, "texts": len(texts), **nearness(asked, texts, spans, judge)}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
        return {"rows": rows}

    whole = [given.split("___", 1)[0] + span + given.split("}", 1)[1] for _, given, span in asked]
    yield add("the text itself", whole, [span for _, _, span in asked])
    for place in [args.model, *args.beside]:
        lm: Any = load(place, device="cpu")
        for name, options in FILLING[lm.family].items():
            requests = [Request(prompt=prompt, infill=text, seed=k) for k, (prompt, text, _) in enumerate(asked)]
            events = finished(lm.generate(requests, GenerateOptions(**options)))
            texts = [event.text for event in sorted(events, key=lambda event: event.index)]
            spans = []
            for said, (_, given, _) in zip(texts, asked, strict=True):
                before, after = given.split("___", 1)[0], given.split("}", 1)[1]
                spans.append(said.removeprefix(before).removesuffix(after).strip())
            yield add(name, texts, spans)
    yield add("left to right, what follows not seen, the span's words counted for it", *blind(judge, asked))


def blind(lm: AutoregressiveLM, asked: list[Gap]) -> tuple[list[str], list[str]]:
    """Texts with as many words put in as are missing: those that go on most likely, whatever follows; and the words."""
    texts, spans = [], []
    for first in range(0, len(asked), 50):
        some = asked[first : first + 50]
        begun = lm.begin([Request(prompt=prompt) for prompt, _, _ in some], GenerateOptions())
        for row, (_, given, _) in enumerate(some):
            before = lm.tokenizer.encode(given.split("___", 1)[0].rstrip())
            begun.tokens[row, : len(before)] = torch.tensor(before)
        for tokens, (_, given, span) in zip(lm.follow(begun, Observer()), some, strict=True):
            words = tokens.tolist()
            text = lm.tokenizer.decode(words[: words.index(lm.model.end)] if lm.model.end in words else words)
            before, after = given.split("___", 1)[0], given.split("}", 1)[1]
            found = text.removeprefix(before).split()[: len(span.split())]
            spans.append(" ".join(found))
            texts.append(before + spans[-1] + after)
    return texts, spans


def nearness(asked: list[Gap], texts: list[str], spans: list[str], judge: AutoregressiveLM) -> dict[str, float]:
    """Of spans put in beside those that were taken out: equal ones, words in common (F), BLEU, and nats a token of the
    whole text, as one of people's, by a left-to-right reading."""
    exact, share = [], []
    for span, (_, _, taken) in zip(spans, asked, strict=True):
        filled, wanted = span.lower().split(), taken.lower().split()
        exact.append(filled == wanted)
        both = sum(min(filled.count(word), wanted.count(word)) for word in set(wanted))
        share.append(2 * both / (len(filled) + len(wanted)))
    encode = judge.tokenizer.encode
    told = [encode(text) for text in texts]
    batch = to_batch([encode(prompt or "") for prompt, _, _ in asked], told)
    nats = -torch.cat([judge.log_likelihood(rows).value for rows in split_rows(batch)]).sum()
    score = bleu(spans, [[taken] for _, _, taken in asked], lowercase=True)
    return {
        "exact": round(sum(exact) / len(exact), 4),
        "words": round(sum(share) / len(share), 4),
        "bleu": round(score, 2),
        "nats": round(float(nats) / sum(len(tokens) + 1 for tokens in told), 4),
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("measure", "infill"))
    parser.add_argument("model", help="an aligned model that has kept its teacher")
    parser.add_argument("--data", required=True, help="e2e-dataset.zip or its folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=5, help="sampling seeds, where anything is drawn")
    parser.add_argument("--timed", type=int, default=64, help="prompts that are timed; 0: none, the times stay")
    parser.add_argument("--only", nargs="*", help="measure settings with one of these words in their name")
    parser.add_argument("--num", type=int, default=400, help="texts with a span taken out")
    parser.add_argument("--beside", nargs="*", default=[], help="other models that fill in")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in {"measure": measure, "infill": infill}[args.part](args, found.get(args.part, {})):
        found[args.part] = part
        atomic_write(args.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
