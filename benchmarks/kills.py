"""Kills and signals at random moments of a training run: every resume must work and end on the same weights.

python benchmarks/kills.py --kills 100 --signals 40 --out benchmarks/results/kills.json

A kill is `kill -9`; the signals INT, TERM and HUP come by turns, and the run has to end by itself within 20 seconds,
with the exit code of that signal.

Moments are uniform over the length of an uninterrupted run, from its first import to the writing of the model: data,
teacher, its answers and the policy are all in it. A run that reaches its end is compared with the uninterrupted one,
and the next one is killed in its turn; every other run has a checkpoint after each step, the rest a few a second.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

RECIPE = [
    "builtin:weather",
    "num_examples=120",
    "vocab_size=512",
    "batch_tokens=512",
    "size=nano",
    "consensus=teacher",
    "warm_start=true",
    "recombined=8",
    *(f"{net}.{shape}" for net in ("model", "teacher") for shape in ("dim=32", "heads=2", "prompt_depth=1", "depth=1")),
    "model.space.channels=4",
]
"""The smallest run with every stage: its steps are as long as the writing of its checkpoints."""
CHECKPOINT_MINUTES = (0.0, 0.005)
"""Time between checkpoints, by turns: always one under way, and steps that are lost and done again."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HUNG = 20.0
"""Seconds after a signal within which a run has to end."""


def start(run: Path, num_steps: int, checkpoint_minutes: float) -> subprocess.Popen[str]:
    """Start a run, or resume it."""
    first = [*RECIPE, f"checkpoint_minutes={checkpoint_minutes}", "--num-steps", str(num_steps)]
    what = ["--resume"] if (run / "recipe.json").exists() else first
    command = [sys.executable, "-m", "manta", "train", *what, "--out", str(run)]
    # Sums of another order would be other weights: the threads are those of the uninterrupted run.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str], within: float | None = None) -> bool:
    """Wait for a run to end; whether it did within so many seconds.

    Raises:
        SystemExit: it failed, with what it said.
    """
    try:
        _, said = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        return False
    if process.returncode:
        raise SystemExit(f"a run failed with exit code {process.returncode}: {said.strip()[-500:]}")
    return True


def stop(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Send a signal and wait for the end; whether it came in time.

    Raises:
        SystemExit: a run told by a signal to end did so in another way.
    """
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=HUNG)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    # Before its handlers are there, or after the last line, a process ends by the signal, or is done.
    allowed = {-number, 128 + number, 0}
    if process.returncode not in allowed or "Traceback" in said:
        raise SystemExit(f"{number.name} ended a run with exit code {process.returncode}: {said.strip()[-500:]}")
    return True


def digest(run: Path) -> str:
    """Fingerprint of the final weights."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def moment(run: Path, pid: int) -> str:
    """What a run that was just killed had been doing."""
    if any((run / "checkpoints").glob(f".manta-*-{pid}-*.tmp")):
        return "writing a checkpoint"
    if not (run / "checkpoints").exists():
        return "before the first checkpoint"
    return "after the last step" if (run / "model").exists() else "between checkpoints"


def stop_at_random(folder: Path, kills: int, signals: int, num_steps: int, seed: int) -> dict[str, Any]:
    """Stop runs until there were so many kills and signals, and let the last one end.

    Args:
        folder: of the runs.
        kills: how many.
        signals: how many.
        num_steps: of each run.
        seed: of the moments and of the order.

    Returns:
        Kills by moment, signals by name, those that hung, runs that ended, how many of them had the weights of the
        uninterrupted one, and seconds.
    """
    rng, begun = random.Random(seed), time.perf_counter()
    finish(start(folder / "whole", num_steps, CHECKPOINT_MINUTES[0]))
    length, wanted = time.perf_counter() - begun, digest(folder / "whole")
    stops = [signal.SIGKILL] * kills + [SIGNALS[number % len(SIGNALS)] for number in range(signals)]
    rng.shuffle(stops)
    moments: Counter[str] = Counter()
    received: Counter[str] = Counter()
    ended = same = hung = 0
    while stops or (folder / f"run-{ended}").exists():
        run = folder / f"run-{ended}"
        process = start(run, num_steps, CHECKPOINT_MINUTES[ended % 2])
        if finish(process, rng.uniform(0, length) if stops else None):
            ended, same = ended + 1, same + (digest(run) == wanted)
            continue
        number = stops.pop()
        if number == signal.SIGKILL:
            process.kill()
            process.communicate()
            moments[moment(run, process.pid)] += 1
        else:
            received[number.name] += 1
            hung += not stop(process, number)
        print(f"{kills + signals - len(stops)} of {kills + signals}, {ended} runs ended", file=sys.stderr, flush=True)
    seconds = {"uninterrupted": round(length, 1), "all": round(time.perf_counter() - begun, 1)}
    return {
        "kills": moments.total(),
        "moments": dict(moments),
        "signals": dict(received),
        "hung": hung,
        "ended": ended,
        "same_weights": same,
        "seconds": seconds,
    }


def main() -> int:
    """Read the command line; the exit code is 0 if every run ended on the same weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=6)
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = stop_at_random(Path(folder), args.kills, args.signals, args.num_steps, args.seed)
    command = f"python benchmarks/kills.py --kills {args.kills} --signals {args.signals}"
    command += f" --num-steps {args.num_steps} --seed {args.seed}"
    result |= {"command": command, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["same_weights"] != result["ended"] or result["hung"] > 0)


if __name__ == "__main__":
    sys.exit(main())
