"""What it takes to come to life: the help, the load, the first text, and the memory of it, each in a fresh process."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from manta.bench.timing import Row
from manta.errors import ModelError

_CHILD = """
import json, sys, time
times = [time.perf_counter()]
from manta.hub import load_writer
times.append(time.perf_counter())
lm = load_writer(sys.argv[1] or None, device=sys.argv[2] or None)
times.append(time.perf_counter())
for _ in range(2):
    lm.write([sys.argv[3] or None])
    times.append(time.perf_counter())
from manta.runtime import peak_memory_bytes
print(json.dumps([b - a for a, b in zip(times, times[1:])] + [peak_memory_bytes()]))
"""


def cold_start(models: Sequence[str], *, repeats: int = 3, prompt: str = "", device: str | None = None) -> list[Row]:
    """Seconds from a command to its answer, and the most memory that the process held.

    Args:
        models: folders or hub names; empty for the model that ships.
        repeats: processes of each kind; medians count.
        prompt: of the texts; empty for none.
        device: see `manta.load`.

    Returns:
        A row for `manta --help` with `seconds`; and a row for each model: seconds to import, to load, to write the
        first text and to write the second, and `peak_memory_mib` of the process on the CPU.

    Raises:
        ModelError: a model does not load or write; the message is the process's own.
    """
    helps = [_seconds(["-m", "manta", "--help"]) for _ in range(repeats)]
    rows: list[Row] = [{"what": "manta --help", "seconds": median(helps)}]
    for model in models:
        runs = [json.loads(_run(["-c", _CHILD, model, device or "", prompt])) for _ in range(repeats)]
        names = ("import_seconds", "load_seconds", "first_text_seconds", "second_text_seconds", "peak_memory_mib")
        figures = dict(zip(names, (median(column) for column in zip(*runs, strict=True)), strict=True))
        figures["peak_memory_mib"] = round(figures["peak_memory_mib"] / 2**20)
        seconds = sum(figures[name] for name in names[:3])
        rows.append({"what": model or "the model that ships", "seconds": seconds, **figures})
    return rows


def _seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    _run(arguments)
    return time.perf_counter() - start


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"a fresh process could not do it: {reason}")
    return done.stdout
