"""Structured tasks: masked models under every decoder, and left-to-right models, at equal parameters and steps.

    python benchmarks/tasks.py --data DIR --out benchmarks/results/tasks.json [--only sudoku4] [--folder RUNS]
    python benchmarks/tasks.py --data DIR --out benchmarks/results/tasks_caches.json --caches --folder RUNS

DIR holds `d1_sudoku_countdown.tar.xz` and `sudoku17.txt.xz`, for second test sets; without it only the built-in ones
are used. Texts are judged by the rules of the task. Finished rows in --out are kept, so the command can be repeated.
Models are kept in RUNS/TASK-FAMILY-SEED, and measured without training where they stand there already. `--caches`
measures the caches of masked models instead, seed 0 of each task, a text at a time.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.config import from_dict
from manta.families.asked import applicable
from manta.families.events import BATCH, GenerateOptions, Request, finished
from manta.hub import load
from manta.metrics.bootstrap import wilson
from manta.recipes import Recipe, TrainingRun
from manta.runtime import atomic_write
from manta.text import read, task_of
from manta.text.tasks import overlap


@dataclass(frozen=True)
class Suite:
    """A task and how it is trained and tested."""

    size: str
    num_steps: int
    batch_tokens: int
    seeds: int
    blocks: tuple[int, ...]
    """Block lengths of the block decoder."""
    window: tuple[int, int]
    """Masked words and positions of the deferred window."""
    published: str | None = None
    """A second test set, below DIR."""
    num_tests: int = 500
    num_timed: int = 100
    """Tests of the caches, which serve one text at a time."""
    teacher: float = 0.0
    """Share of the steps in which a masked model learns left to right, to start from there; 0: from nothing."""


SUITES = {
    "sudoku4": Suite("nano", 1_500, 4_000, 3, (2, 4, 8), (4, 16), "d1-sudoku:{}/d1_sudoku_countdown.tar.xz"),
    "countdown": Suite("nano", 2_500, 4_000, 3, (8, 16), (8, 16), "d1-countdown:{}/d1_sudoku_countdown.tar.xz"),
    "sudoku9": Suite(
        "nano", 5_000, 16_000, 3, (9, 27), (9, 40), "sudoku17:{}/sudoku17.txt.xz", 100, num_timed=10, teacher=0.3
    ),
}
CACHES = ("none", "prefix", "dual")
EVERYTHING = 200
"""A budget of calls that no decoder reaches."""


def decoders(suite: Suite, length: int) -> dict[str, dict[str, Any]]:
    """Settings of every decoder that is compared."""
    masked, width = suite.window
    found: dict[str, dict[str, Any]] = {f"block {n}": {"decoder": "block", "block_length": n} for n in suite.blocks}
    found["confidence, half the calls"] = {"decoder": "confidence", "num_steps": 1 + length // 2}
    found["confidence, a call a word"] = {"decoder": "confidence", "num_steps": 1 + length}
    found["threshold"] = {"decoder": "threshold"}
    deferred = {"decoder": "deferred", "window_masked": masked, "window_width": width}
    found["deferred"] = deferred
    found["deferred, one round of taking back"] = {**deferred, "rounds": 1}
    return found


def tested(lm: Any, source: str, num: int, settings: dict[str, Any], batch_size: int = BATCH) -> dict[str, Any]:
    """Figures of one model, test set and decoder."""
    task = task_of(source)
    assert task is not None
    examples = list(read(source, "test", num))
    requests = [Request(prompt=example.prompt, seed=i) for i, example in enumerate(examples)]
    start = time.perf_counter()
    options, _ = applicable(GenerateOptions(**{"num_steps": EVERYTHING, "style": "consensus", **settings}), lm.family)
    done = sorted(finished(lm.generate(requests, options, batch_size=batch_size)), key=lambda e: e.index)
    seconds = time.perf_counter() - start
    verdict = task.judge([(example.prompt or "", event.text) for example, event in zip(examples, done, strict=True)])
    interval = wilson(round(verdict["solved"] * len(done)), len(done))
    return {
        "solved": round(verdict["solved"], 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "well_formed": round(verdict["well_formed"], 4),
        "cell_accuracy": verdict["cell_accuracy"],
        "calls": round(sum(e.nfe for e in done) / len(done), 2),
        "positions": round(sum(e.processed for e in done) / len(done), 1),
        "seconds_a_text": round(seconds / len(done), 5),
        "num": len(done),
        **({} if "sudoku4" not in task.name else {"training_grids": overlap([e.prompt or "" for e in examples]).known}),
    }


def measure(lm: Any, name: str, family: str, data: Path | None, caches: bool) -> list[dict[str, Any]]:
    """Every test set under every decoder in batches; or the built-in one at every cache, a text at a time."""
    suite = SUITES[name]
    sources = {"builtin": f"builtin:{name}"}
    if suite.published and data is not None:
        sources[suite.published.split(":")[0]] = suite.published.format(data)
    rows = []
    for test_set, source in sources.items():
        task = task_of(source)
        assert task is not None
        if family == "ar":
            rows.append({"test": test_set, "decoder": "left to right", **tested(lm, source, suite.num_tests, {})})
            continue
        for decoder, settings in decoders(suite, task.text_length).items():
            if not caches:
                rows.append({"test": test_set, "decoder": decoder, "batch": 64})
                rows[-1] |= tested(lm, source, suite.num_tests, settings)
                print(rows[-1], flush=True)
            parts = settings["decoder"] in ("deferred", "block")  # others look at everything in every call
            for cache in CACHES if caches and test_set == "builtin" else ():
                if cache != "none" and not parts:
                    continue
                rows.append({"test": test_set, "decoder": decoder, "batch": 1, "cache": cache})
                rows[-1] |= tested(lm, source, suite.num_timed, {**settings, "cache": cache}, 1)
                print(rows[-1], flush=True)
    return rows


def recipe_of(name: str, family: str, seed: int, data: Path | None) -> Recipe:
    """How a model of a task is trained."""
    suite = SUITES[name]
    # d1's own countdown puzzles stay out of training; what sudoku4 knows of them is in each row.
    held_out = name == "countdown" and data is not None and suite.published is not None
    source = suite.published.format(data) if held_out and suite.published else f"builtin:{name}"
    given: dict[str, Any] = {"data": source, "family": family, "size": suite.size, "seed": seed}
    if suite.teacher and family == "masked":
        shares = {"teacher": suite.teacher, "policy": 1 - suite.teacher, "own": 0.0}
        given |= {"warm_start": True, "shares": shares}
    return from_dict(Recipe, {**given, "num_steps": suite.num_steps, "batch_tokens": suite.batch_tokens})


def trained(folder: Path, recipe: Recipe) -> Any:
    """The model of a run folder, trained first if none stands there."""
    if not (folder / "model" / "config.json").exists():
        for _ in TrainingRun(recipe, folder).events():
            pass
    return load(folder / "model")


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", choices=SUITES)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--caches", action="store_true")
    parser.add_argument("--folder", type=Path, help="where models are kept; they are thrown away without it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    with tempfile.TemporaryDirectory() as passing:
        for name, suite in SUITES.items():
            for family in ("masked",) if args.caches else ("masked", "ar"):
                seeds = 1 if args.caches or family == "ar" else args.seeds or suite.seeds
                for seed in range(seeds):
                    key = {"task": name, "family": family, "seed": seed}
                    if (args.only and name != args.only) or any(key.items() <= row.items() for row in done):
                        continue
                    folder = (args.folder or Path(passing)) / f"{name}-{family}-{seed}"
                    lm = trained(folder, recipe_of(name, family, seed, args.data))
                    key["parameters"] = sum(p.numel() for p in lm.model.parameters())
                    rows = measure(lm, name, family, args.data, caches=args.caches)
                    done += [{**key, "steps": suite.num_steps, **row} for row in rows]
                    atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
