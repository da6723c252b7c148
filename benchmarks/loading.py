"""Whether data keep up: preparing a large file, and the loader alone beside training.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/loading.py --gigabytes 10 --work /tmp/loading \\
        --out benchmarks/results/loading.json

A file of distinct lines is drawn from the sentences of builtin:weather, and a run prepares it as any run does: digest,
tokenizer, corpus. A process of its own does so, and another reads batches, so that each one has its own peak of memory.
Training is timed on a small file of the same lines, in batches of the same size, at the smallest sizes, where a step
asks for data the fastest. `cold` leaves the corpus on the disk only: its pages are dropped from the cache before.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from manta.bench import machine
from manta.config import from_dict
from manta.recipes import Recipe, TrainingRun
from manta.recipes.stages import TextParts
from manta.runtime import atomic_write, keep_memory, peak_memory_bytes
from manta.text import Corpus, Loader, read
from manta.training import train_stage

FAMILIES = ("manta", "masked", "ar")
SENTENCES = 6
"""Of a line; from so many there are hardly two equal lines."""
SMALL = 20_000_000
"""Bytes of the file that training is timed on."""


def write_lines(file: Path, size: int, seed: int = 0) -> int:
    """A file of about `size` bytes; its lines."""
    texts = (example.text for example in read("builtin:weather", "train", 4000))
    sentences = [part.strip() + "." for text in texts for part in text.split(".") if len(part) > 10]
    pool, draws = np.array(sentences, dtype=object), np.random.default_rng(seed)
    written = lines = 0
    with file.open("w", encoding="utf-8") as stream:
        while written < size:
            block = "".join(" ".join(row) + "\n" for row in pool[draws.integers(0, len(pool), (4096, SENTENCES))])
            stream.write(block)
            written, lines = written + len(block), lines + 4096
    return lines


def recipe_of(file: Path, family: str, size: str) -> Recipe:
    given: dict[str, Any] = {"train": {"precision": "float32"}, "consensus": "none", "warm_start": False}
    return from_dict(Recipe, {"data": str(file), "family": family, "size": size, "num_steps": 64, **given})


def prepared(file: Path, folder: Path) -> dict[str, Any]:
    """Prepare a run of a file: seconds, of the clock and of processors, and the peak of memory."""
    began, busy = time.perf_counter(), time.process_time()
    run = TrainingRun(recipe_of(file, "masked", "nano"), folder)
    next(run.trials(2))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    report = run.parts.corpus.report
    return {
        "bytes": file.stat().st_size,
        "rows": len(run.parts.corpus),
        "tokens": report.text_tokens,
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 1),
        "megabytes_a_processor_second": round(file.stat().st_size / busy / 1e6, 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def loaded(folder: Path, batch_tokens: int, multiple: int, seconds: float, cold: bool) -> dict[str, Any]:
    """Read batches alone for some seconds: tokens a second, and the peak of memory with and without file pages."""
    corpus = Corpus.open(folder / "corpus")
    if cold:
        for name in ("text.bin", "text_ends.bin", "groups.bin", "tags.bin"):
            descriptor = os.open(folder / "corpus" / name, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    before = own_memory()
    loader, tokens, batches = Loader(corpus, batch_tokens=batch_tokens, multiple=multiple), 0, 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        tokens, batches = tokens + next(loader).num_elements, batches + 1
    skipping = time.perf_counter()
    loader.skip(1000)
    return {
        "tokens_a_second": round(tokens / spent),
        "batches": batches,
        "peak_memory_bytes": peak_memory_bytes(),
        "own_bytes_more": own_memory() - before,
        "milliseconds_of_1000_skipped": round(1000 * (time.perf_counter() - skipping), 1),
    }


def own_memory() -> int:
    """Bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def trained(file: Path, folder: Path, family: str, size: str, steps: int) -> dict[str, Any]:
    """Tokens a second of real steps of a family's longest stage, the median of some, and what its batches are."""
    keep_memory()
    run = TrainingRun(recipe_of(file, family, size), folder)
    stages = run.trials(steps + 4)
    stage = next(stages)
    parts = run.parts
    assert isinstance(parts, TextParts)
    progress = train_stage(stage)
    done = [next(progress) for _ in range(steps + 3)][3:]
    net = dict(parts.modules.items()).get("model")
    return {
        "family": family,
        "size": size,
        "stage": stage.name,
        "tokens_a_second": round(median(each.num_elements / each.seconds for each in done)),
        "batch_tokens": parts.recipe.batch_tokens,
        "multiple": 1 if net is None else parts.writer.rate_of(net),
    }


def alone(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Do something in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, required=True, help="a new folder, removed at the end")
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading alone")
    parser.add_argument("--steps", type=int, default=15, help="of training")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    try:
        small, large = given.work / "small.txt", given.work / "large.txt"
        write_lines(small, SMALL, seed=1)
        write_lines(large, int(given.gigabytes * 1e9))
        result: dict[str, Any] = {"machine": machine(), "prepared": []}
        for file in (small, large):
            result["prepared"].append(alone(prepared, file, given.work / f"run-{file.stem}"))
            print(result["prepared"][-1], flush=True)
        result["rows"] = []
        for family in FAMILIES:
            row = alone(trained, small, given.work / family, family, "nano", given.steps)
            for name, cold in (("cold", True), ("warm", False)):
                settings = (given.work / "run-large", row["batch_tokens"], row["multiple"], given.seconds, cold)
                found = alone(loaded, *settings)
                row[name] = {**found, "times_training": round(found["tokens_a_second"] / row["tokens_a_second"], 1)}
            result["rows"].append(row)
            print(row, flush=True)
            atomic_write(given.out, (json.dumps(result, indent=1) + "\n").encode())
    finally:
        shutil.rmtree(given.work, ignore_errors=True)


if __name__ == "__main__":
    main()
