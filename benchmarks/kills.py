"""`kill -9` at random moments of a training run: every resume must work and end on the same weights.

python benchmarks/kills.py --kills 20 --out benchmarks/results/kills.json

Moments are uniform over the length of an uninterrupted run, from its first import to the writing of the model: data,
teacher, its answers and the policy are all in it. A run that reaches its end is compared with the uninterrupted one,
and the next one is killed in its turn; every other run has a checkpoint after each step, the rest a few a second.
"""

import argparse
import hashlib
import json
import os
import random
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


def digest(run: Path) -> str:
    """Fingerprint of the final weights."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def moment(run: Path, pid: int) -> str:
    """What a run that was just killed had been doing."""
    if any((run / "checkpoints").glob(f".writing-*-{pid}")):
        return "writing a checkpoint"
    if not (run / "checkpoints").exists():
        return "before the first checkpoint"
    return "after the last step" if (run / "model").exists() else "between checkpoints"


def kill_at_random(folder: Path, kills: int, num_steps: int, seed: int) -> dict[str, Any]:
    """Kill runs until there were so many kills, and let the last one end.

    Args:
        folder: of the runs.
        kills: how many.
        num_steps: of each run.
        seed: of the moments.

    Returns:
        Kills by moment, runs that ended, how many of them had the weights of the uninterrupted one, and seconds.
    """
    rng, begun = random.Random(seed), time.perf_counter()
    finish(start(folder / "whole", num_steps, CHECKPOINT_MINUTES[0]))
    length, wanted = time.perf_counter() - begun, digest(folder / "whole")
    moments: Counter[str] = Counter()
    ended = same = 0
    while moments.total() < kills or (folder / f"run-{ended}").exists():
        run = folder / f"run-{ended}"
        process = start(run, num_steps, CHECKPOINT_MINUTES[ended % 2])
        if finish(process, rng.uniform(0, length) if moments.total() < kills else None):
            ended, same = ended + 1, same + (digest(run) == wanted)
        else:
            process.kill()
            process.communicate()
            moments[moment(run, process.pid)] += 1
            print(f"kill {moments.total()} of {kills}, {ended} runs ended", file=sys.stderr, flush=True)
    seconds = {"uninterrupted": round(length, 1), "all": round(time.perf_counter() - begun, 1)}
    return {
        "kills": moments.total(),
        "moments": dict(moments),
        "ended": ended,
        "same_weights": same,
        "seconds": seconds,
    }


def main() -> int:
    """Read the command line; the exit code is 0 if every run ended on the same weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_at_random(Path(folder), args.kills, args.num_steps, args.seed)
    command = f"python benchmarks/kills.py --kills {args.kills} --num-steps {args.num_steps} --seed {args.seed}"
    result |= {"command": command, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["same_weights"] != result["ended"])


if __name__ == "__main__":
    sys.exit(main())
