"""Damaged run folders: a resumed run ends on the right weights or with one clear error, and never hangs.

python benchmarks/fuzz_runs.py --num 1500 --out benchmarks/results/fuzz_runs.json

Three runs are made: stopped within a stage, stopped between two stages, and finished. In a case one file of a copy is
truncated, emptied, deleted, has a bit flipped or random bytes put in, or is replaced by JSON of another type; then the
run is resumed in this process. Right is an error of manta's own or the weights of the run that nothing happened to;
where the damage left a whole recipe, other weights are right if the run has said that its recipe changed.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from manta.config import from_dict
from manta.errors import MantaError
from manta.recipes import Recipe, TrainingRun
from manta.recipes.run import Note
from manta.training import Progress

NET = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1}
RECIPE: dict[str, Any] = {
    "data": "builtin:weather",
    "num_examples": 40,
    "vocab_size": 512,
    "size": "nano",
    "batch_tokens": 256,
    "num_steps": 12,
    "checkpoint_minutes": 0.0,
    "consensus": "teacher",
    "warm_start": True,
    "model": {**NET, "space": {"channels": 4}},
    "teacher": NET,
}
HUNG = 20
"""Seconds after which a case counts as hung."""
WRONG_JSON = ("{}", "[]", "null", "3", '"text"', '{"step": "x"}', "[" * 3000, '{"a": 1e400}', "\udcff\udcfe")
WAYS = ("truncate", "empty", "delete", "flip", "overwrite", "json")


class Hung(BaseException):
    """A case took too long."""


def damage(file: Path, way: str, rng: random.Random) -> None:
    """Damage a file in one of the `WAYS`."""
    content = bytearray(file.read_bytes())
    if way == "delete":
        file.unlink()
        return
    if way == "truncate":
        content = content[: rng.randrange(len(content) or 1)]
    elif way == "empty":
        content.clear()
    elif way == "json":
        content = bytearray(rng.choice(WRONG_JSON).encode(errors="surrogateescape"))
    elif content:
        for _ in range(1 if way == "flip" else 8):
            place = rng.randrange(len(content))
            content[place] = content[place] ^ (1 << rng.randrange(8)) if way == "flip" else rng.randrange(256)
    file.write_bytes(content)


def outcome(run: Path, wanted: bytes) -> str:
    """What comes of resuming a run: `typed`, `same`, `told`, or what went wrong."""
    notes: list[str] = []
    signal.alarm(HUNG)
    try:
        for event in TrainingRun(None, run, resume=True).events():
            if isinstance(event, Note):
                notes.append(event.text)
        if (run / "model" / "model.safetensors").read_bytes() == wanted:
            return "same"
        return "told" if any("recipe.json has another" in note for note in notes) else "WRONG weights"
    except MantaError:
        return "typed"
    except Hung:
        return "HUNG"
    except Exception as error:
        return f"UNTYPED {type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)


def make_runs(folder: Path) -> dict[str, Path]:
    """The runs to be damaged, and `whole`, which is not."""
    stops = {"within": ("policy", 5), "between": ("policy", 1), "finished": ("", 0)}
    for name, (stage, step) in stops.items():
        for event in TrainingRun(from_dict(Recipe, RECIPE), folder / name).events():
            if isinstance(event, Progress) and (event.stage, event.step) == (stage, step):
                break
    # A run that was killed before its stage's first checkpoint has that of the stage before.
    newest = max((folder / "between" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    shutil.rmtree(newest)
    return {name: folder / name for name in stops}


def main() -> int:
    """Read the command line; the exit code is 0 if every case ended right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    def alarm(number: int, frame: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, alarm)
    rng, counts, wrong = random.Random(args.seed), Counter(), []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = make_runs(folder)
        wanted = (runs["finished"] / "model" / "model.safetensors").read_bytes()
        for number in range(args.num):
            kind = rng.choice(list(runs))
            copy = folder / "case"
            shutil.copytree(runs[kind], copy)
            file = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
            way = rng.choice(WAYS)
            damage(file, way, rng)
            ended = outcome(copy, wanted)
            counts[ended.split()[0]] += 1
            if ended not in ("typed", "same", "told"):
                wrong.append({"run": kind, "file": str(file.relative_to(copy)), "way": way, "ended": ended})
                print(json.dumps(wrong[-1]), file=sys.stderr, flush=True)
            shutil.rmtree(copy)
            if number % 50 == 49:
                print(f"{number + 1} of {args.num}: {dict(counts)}", file=sys.stderr, flush=True)
    command = f"python benchmarks/fuzz_runs.py --num {args.num} --seed {args.seed}"
    result = {"cases": args.num, "ended": dict(counts), "wrong": wrong, "command": command}
    result |= {"seconds": round(time.perf_counter() - begun), "torch": torch.__version__}
    print(json.dumps(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
