"""Several processes train one model: what each holds beside what a plan says, how fast they are, and what kills cost.

    python benchmarks/together.py memory|speed|kills [--out FILE]

Each part replaces its own rows of the file. `memory`: bytes of weights, gradients, moments and averages that the
fullest process holds, beside `manta.bench.planning.predicted`. `speed`: tokens a second of two processes beside one, at
equal batches, in turns. `kills`: a run of two processes one of which is killed, at random, again and again; every
checkpoint that was complete has to load, and the losses have to be those of two processes that nobody has killed, to
the last bit: once with everything in both, and once in shares, whose kind (`grad`, `full`) changes at every start.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from manta.bench.planning import predicted
from manta.config import from_dict, to_dict
from manta.recipes import TrainingRun
from manta.recipes.recipe import Recipe
from manta.runtime import atomic_write
from manta.training import Progress, Stage, latest_checkpoint, load_checkpoint, read_log
from manta.training.shares import local

RESULT = Path(__file__).parent / "results" / "together.json"
SHARDS = ("none", "grad", "full")


def recipe(dim: int, depth: int, num_steps: int, **changes: Any) -> dict[str, Any]:
    """A left-to-right model of forecasts."""
    shape = {"dim": dim, "heads": max(2, dim // 32), "depth": depth, "prompt_depth": 1}
    fields = {"data": "builtin:weather", "num_examples": 2000, "vocab_size": 512, "max_prompt": 40, "max_text": 64}
    fields |= {"size": "nano", "batch_tokens": 1024, "num_steps": num_steps, "family": "ar", "teacher": shape}
    how = {"precision": "float32", "accumulate": 4}
    return {**fields, "consensus": "none", "warm_start": False, "train": how, **changes}


def launch(processes: int, told: dict[str, Any], log: Path) -> "subprocess.Popen[bytes]":
    """Begin a run of several processes, each of which is this file with what it is told."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [*torchrun, __file__, "process", "--told", json.dumps(told)]
    return subprocess.Popen(command, env=environment, stdout=log.open("ab"), stderr=subprocess.STDOUT)


def process(told: dict[str, Any]) -> None:
    """One process of a run; the first writes down what was measured."""
    torch.set_num_threads(1)
    out = Path(told["out"])
    begun = (out / "recipe.json").exists() if told.get("resume") else False
    asked = None if begun else from_dict(Recipe, told["recipe"])
    run = TrainingRun(asked, out, resume=begun, device="cpu", sharding=told["shard"])
    (out.parent / f"pid-{run.team.rank}").write_text(str(os.getpid()))
    held = Held()
    make = run._stage
    run._stage = lambda spec, steps, rows=None: held.watch(make(spec, steps, rows))
    seconds = [(e.seconds, e.num_elements) for e in run.events() if isinstance(e, Progress)]
    found = run.team.gather(held.bytes)
    if run.team.first and told.get("measured"):
        fullest = {part: max(each[part] for each in found) for part in found[0]}
        rate = statistics.median(number / taken for taken, number in seconds[3:])
        atomic_write(Path(told["measured"]), json.dumps({"bytes": fullest, "tokens_a_second": rate}).encode())
    run.team.close()


class Held:
    """What a process holds of a stage, measured as its optimisers step."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def watch(self, stage: Stage) -> Stage:
        """Look at a stage from its first step on."""

        def look(*_: Any) -> None:
            parameters = list(stage.model.parameters())
            gradients = [p.grad for p in parameters if p.grad is not None]
            moments = [value for o in stage.optimizers for state in o.state.values() for value in state.values()]
            found = {"parameters": parameters, "gradients": gradients, "moments": moments}
            found["average"] = list(stage.average.tensors().values())
            for part, tensors in found.items():
                size = sum(t.numel() * t.element_size() for t in map(local, tensors))
                self.bytes[part] = max(self.bytes.get(part, 0), size)

        for optimizer in stage.optimizers:
            optimizer.register_step_pre_hook(look)
        return stage


def measured(folder: Path, processes: int, shard: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Train a short run to its end; what its first process wrote down."""
    place = folder / f"{processes}-{shard}-{time.monotonic_ns()}"
    place.mkdir()
    told = {"recipe": asked, "out": str(place / "run"), "shard": shard, "measured": str(place / "measured.json")}
    run = launch(processes, told, place / "log")
    if run.wait() != 0:
        raise SystemExit((place / "log").read_text()[-2000:])
    return json.loads((place / "measured.json").read_text())


def memory(folder: Path) -> list[dict[str, Any]]:
    asked = recipe(256, 6, 4)
    rows = []
    for processes, shard in [(1, "none"), (2, "none"), (2, "grad"), (2, "full"), (4, "full")]:
        found = measured(folder, processes, shard, asked)["bytes"]
        said = predicted(from_dict(Recipe, asked), processes, shard, precision="float32")
        rows.append({"processes": processes, "shard": shard, "measured": found, "predicted": said})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def speed(folder: Path, rounds: int = 3) -> list[dict[str, Any]]:
    asked = recipe(256, 6, 16)
    kinds = [(1, "none"), *((2, shard) for shard in SHARDS)]
    rates: dict[tuple[int, str], list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for processes, shard in kinds:
            rates[processes, shard].append(measured(folder, processes, shard, asked)["tokens_a_second"])
            print(processes, shard, rates[processes, shard], flush=True)
    one = rates[kinds[0]]
    return [
        {"processes": kind[0], "shard": kind[1], "tokens_a_second": found, "times_one": _ratios(found, one)}
        for kind, found in rates.items()
    ]


def _ratios(found: list[float], one: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(found, one, strict=True)]


def kills(folder: Path, shards: tuple[str, ...], number: int, seed: int = 0) -> dict[str, Any]:
    folder = folder / shards[0]
    asked = recipe(16, 2, 400, num_examples=60, batch_tokens=300, checkpoint_minutes=0.02, max_text=40)
    asked["train"] = {"precision": "float32", "accumulate": 2}
    draw, out = random.Random(seed), folder / "killed" / "run"
    out.parent.mkdir(parents=True)
    whole = {"recipe": asked, "out": str(folder / "whole"), "shard": shards[0]}
    if launch(2, whole, folder / "log").wait() != 0:
        raise SystemExit((folder / "log").read_text()[-2000:])
    losses = [row["loss"] for row in read_log(folder / "whole")[0]]
    for rank in (0, 1):
        (folder / f"pid-{rank}").unlink()
    lost, at, step, done = 0, [], 0, False
    while len(at) < number and not done:
        (out.parent / "pid-0").unlink(missing_ok=True)
        shard = draw.choice(shards)
        told = {"recipe": asked, "out": str(out), "shard": shard, "resume": True}
        run = launch(2, told, folder / "log")
        while run.poll() is None and not all((out.parent / f"pid-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.2)
        time.sleep(draw.uniform(0.0, 8.0))
        done = run.poll() is not None and run.returncode == 0
        if not done:
            victim = draw.randrange(2)
            pid = int((out.parent / f"pid-{victim}").read_text())
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            run.wait()
            kept = latest_checkpoint(out)
            now = 0 if kept is None else load_checkpoint(kept)[1]["step"]  # which reads every byte
            lost += now < step
            step = now
            at.append({"process": victim, "shard": shard, "step": now})
            print(json.dumps(at[-1]), flush=True)
        for rank in (0, 1):
            (out.parent / f"pid-{rank}").unlink(missing_ok=True)
    last = {"recipe": asked, "out": str(out), "shard": shards[-1], "resume": True}
    if launch(2, last, folder / "log").wait() != 0:
        raise SystemExit((folder / "log").read_text()[-2000:])
    again = [row["loss"] for row in read_log(out)[0]]
    apart = max(abs(a - b) for a, b in zip(losses, again, strict=True))
    return {"shards": shards, "kills": len(at), "lost": lost, "steps": len(again), "apart": apart, "at": at}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["memory", "speed", "kills", "process"])
    parser.add_argument("--told", type=json.loads, help="of a process: what it is told")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--number", type=int, default=20, help="of kills")
    options = parser.parse_args()
    if options.part == "process":
        process(options.told)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        half = options.number // 2
        killed = lambda where: [kills(where, kinds, half) for kinds in (SHARDS[:1], SHARDS[1:])]  # noqa: E731
        parts = {"memory": memory, "speed": speed, "kills": killed}
        found = parts[options.part](folder)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept[options.part] = found
    kept["recipe"] = to_dict(from_dict(Recipe, recipe(256, 6, 16)))["teacher"]
    atomic_write(options.out, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
