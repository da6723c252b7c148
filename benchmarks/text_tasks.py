"""One model for several tasks of text: what weights of each task's own are worth against features, and against nothing.

    python benchmarks/text_tasks.py --data e2e:E2E.zip --num-steps 1200 --seeds 0 \\
        --out benchmarks/results/text_tasks.json

The tasks are those of `manta data make tasks`: to describe a record, to continue a text, to fill a blank and to shorten
a text; learned from every third record of the training split of E2E and measured on its dev split, whose records are
none of the training split's. Every arm is the same left-to-right net (size nano) with equal steps on batches of all
tasks: the heading of the prompt alone tells the task (`heading`), or beside it a scale and a shift of features
(`film`), products of rank 1 and 4, or whole weights (`full`). `separate` are four models, of a quarter of the steps
each, on one task's rows each; `untold` is told nothing. Measured of each task: nats a word of the human texts given
their prompts (vocabularies of the separate models differ); of `describe`, BLEU of the greedy texts, sacreBLEU's,
lower-cased, with all references, and slot errors of the record; of `fill`, the share of blanks filled word for word,
and F of the words; of `shorten`, words as a share of the long text's, slot errors against the record, and the same of
the human short texts; of `continue`, F of the words. Finished rows in --out are kept.
"""

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from zlib import crc32

import torch

from manta.bench import machine
from manta.config import from_dict
from manta.families.batching import to_batch
from manta.families.events import Request, finished
from manta.families.trained import TrainedWriter
from manta.hub import load_writer
from manta.metrics.overlap import bleu
from manta.metrics.slots import slot_error_rate
from manta.nets.modulated import task_maps
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write
from manta.text import Example, read
from manta.text.making import make

ARMS: dict[str, dict[str, Any] | None] = {
    "heading": {"kind": "none"},
    "film": {"kind": "film"},
    "rank 1": {"kind": "low_rank", "rank": 1},
    "rank 4": {"kind": "low_rank", "rank": 4},
    "full": {"kind": "full"},
    "separate": None,
    "untold": None,
}
TASKS = ("describe", "continue", "fill", "shorten")
NANO = {"max_prompt": 80, "max_text": 64, "vocab_size": 1024}


def written(rows: Sequence[Example], file: Path) -> Path:
    """Rows as a file, of which a run learns the training part, nine tenths."""
    lines = ({"task": row.task, "prompt": row.prompt, "text": row.text} for row in rows)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def trained(file: Path, seed: int, steps: int, modulation: dict[str, Any] | None) -> TrainedWriter[Any]:
    """A model in a folder of its own."""
    shape = {} if modulation is None else {"teacher": {"modulation": modulation}}
    given = {"data": str(file), "family": "ar", "size": "nano", "num_steps": steps, "seed": seed, **NANO, **shape}
    folder = Path(tempfile.mkdtemp()) / "run"
    for _ in TrainingRun(from_dict(Recipe, given), folder, device="cpu").events():
        pass
    lm = load_writer(str(folder), device="cpu")
    assert isinstance(lm, TrainedWriter), "a family of ours"
    return lm


@torch.no_grad()
def nats(lm: TrainedWriter[Any], rows: Sequence[Example]) -> dict[str, float]:
    """Mean nats a word of human texts, their ends included, and its standard error over texts."""
    encoded = [(lm.tokenizer.encode(row.prompt or ""), lm.tokenizer.encode(row.text), row.text) for row in rows]
    fit = [each for each in encoded if len(each[0]) <= NANO["max_prompt"] and len(each[1]) <= NANO["max_text"]]
    total: list[float] = []
    for begin in range(0, len(fit), 32):
        prompts, texts, _ = zip(*fit[begin : begin + 32], strict=True)
        total += [-value for value in lm.log_likelihood(to_batch(prompts, texts)).value.tolist()]
    words = [len(text.split()) for _, _, text in fit]
    whole = sum(total) / sum(words)
    apart = [(nat - whole * count) / mean(words) for nat, count in zip(total, words, strict=True)]
    error = (sum(each**2 for each in apart) / len(apart) / max(1, len(apart) - 1)) ** 0.5
    return {"nats": whole, "error": error, "texts": len(fit)}


def texts_of(lm: TrainedWriter[Any], prompts: Sequence[str]) -> list[str]:
    """Greedy texts; empty, and so all wrong, where a prompt is too long."""
    room = NANO["max_prompt"]
    fit = [i for i, prompt in enumerate(prompts) if len(lm.tokenizer.encode(prompt)) <= room]
    found = [""] * len(prompts)
    for event in finished(lm.generate([Request(prompt=prompts[i], seed=i) for i in fit])):
        found[fit[event.index]] = event.text
    return found


def likeness(text: str, wanted: str) -> float:
    """F of the words that two texts share, each counted as often as in both."""
    ours, theirs = (Counter(said.lower().split()) for said in (text, wanted))
    shared = (ours & theirs).total()
    return 2 * shared / max(1, ours.total() + theirs.total())


def scored(lm: TrainedWriter[Any], task: str, rows: Sequence[Example], records: dict[str, str]) -> dict[str, Any]:
    """What a task's texts are worth.

    Args:
        lm: the model of the task.
        task: its name.
        rows: of the dev split.
        records: of a long text, whose it is.
    """
    if task == "describe":
        groups: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            groups[str(row.prompt)].append(row.text)
        said = texts_of(lm, list(groups))
        errors = slot_error_rate(list(zip(groups, said, strict=True)))
        return {"bleu": bleu(said, list(groups.values())), "slots": errors, "texts": len(said)}
    said = texts_of(lm, [str(row.prompt) for row in rows])
    kept = list(zip(said, rows, strict=True))
    found: dict[str, Any] = {"texts": len(kept), "likeness": mean(likeness(text, row.text) for text, row in kept)}
    if task == "fill":
        found["exact"] = mean(text.lower() == row.text.lower() for text, row in kept)
    if task == "shorten":
        long = sum(len(str(row.prompt).split()) for _, row in kept)
        found["length"] = sum(len(text.split()) for text, _ in kept) / long
        found["human_length"] = sum(len(row.text.split()) for _, row in kept) / long
        found["slots"] = slot_error_rate([(records[str(row.prompt)], text) for text, row in kept])
        found["human_slots"] = slot_error_rate([(records[str(row.prompt)], row.text) for _, row in kept])
    return found


def arm(name: str, seed: int, train: Sequence[Example], dev: dict[str, list[Example]], args: Any) -> dict[str, Any]:
    """Train and measure one arm."""
    start, folder = time.perf_counter(), Path(tempfile.mkdtemp())
    records = {row.text: str(row.prompt) for row in dev["describe"]}
    if name == "separate":
        models = {}
        for task in TASKS:
            file = written([row for row in train if row.task == task], folder / f"{task}.jsonl")
            models[task] = trained(file, seed, args.num_steps // len(TASKS), None)
        nets = [lm.model for lm in models.values()]
    else:
        lm = trained(written(train, folder / "tasks.jsonl"), seed, args.num_steps, ARMS[name])
        models = {task: lm.of_task(task if lm.tasks else None) for task in TASKS}
        nets = [lm.model]
    minutes = (time.perf_counter() - start) / 60
    scores = {}
    for task, lm in models.items():
        scores[task] = {**nats(lm, evenly(dev[task], args.num_dev)), **scored(lm, task, some(task, dev, args), records)}
    return {
        "name": name,
        "seed": seed,
        "steps": args.num_steps,
        "parameters": sum(p.numel() for net in nets for p in net.parameters()),
        "of_tasks": sum(p.numel() for net in nets for _, part in task_maps(net) for p in part.own),
        "minutes_of_training": round(minutes, 2),
        "scores": scores,
    }


def some(task: str, dev: dict[str, list[Example]], args: Any) -> list[Example]:
    """The dev rows that texts are written for; of records all references."""
    if task != "describe":
        return evenly(dev[task], args.num_dev)
    records = set(evenly(list(dict.fromkeys(str(row.prompt) for row in dev[task])), args.num_dev))
    return [row for row in dev[task] if str(row.prompt) in records]


def evenly(rows: list[Any], most: int) -> list[Any]:
    """At most so many of some rows, from all of them."""
    return rows[:: -(-len(rows) // most)]


def main() -> None:
    """Measure the arms that --out does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--num-dev", type=int, default=300, help="records or texts that are written for, of each task")
    parser.add_argument("--every", type=int, default=3, help="one of so many training records is learned from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    texts = [e for e in read(args.data, "train") if crc32(str(e.prompt).encode()) % args.every == 0]
    train = list(make("tasks", texts, 0))
    dev = {task: [row for row in make("tasks", read(args.data, "dev"), 0) if row.task == task] for task in TASKS}
    told: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    told |= {"data": Path(args.data).name, "machine": machine(), "num_dev": args.num_dev, "every": args.every}
    told["rows_of"] = {task: sum(row.task == task for row in train) for task in TASKS}
    known = {(row["name"], row["seed"], row["steps"]) for row in told["rows"]}
    for seed in args.seeds:
        for name in args.arms:
            if (name, seed, args.num_steps) not in known:
                told["rows"].append(arm(name, seed, train, dev, args))
                atomic_write(args.out, (json.dumps(told, indent=1) + "\n").encode())
                print(json.dumps(told["rows"][-1])[:400], flush=True)


if __name__ == "__main__":
    main()
