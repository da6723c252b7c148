"""The built-in corpus as a new user meets it: train for three minutes, write 500 forecasts, ask the oracle.

    python benchmarks/weather.py --seeds 3 --out benchmarks/results/weather.json

Runs the commands of the README (`manta train`, `data export`, `generate`, `data check`), one after the other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from manta.metrics import distinct_share
from manta.runtime import atomic_write
from manta.text import read

NUM_RECORDS = 500
CALLS = "16"
WAYS = {
    "consensus": ("--style", "consensus"),
    "consensus, without counts": ("--style", "consensus", "--fluency", "0"),
    "diverse": ("--style", "diverse"),
}
"""How each row is written."""


def manta(*arguments: str) -> str:
    """Run the command line and return what it prints."""
    command = [sys.executable, "-m", "manta", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def judged(minutes: float, seed: int, overrides: list[str]) -> list[dict[str, Any]]:
    """Train once and judge each way of writing."""
    corpus = [example.text for example in read("builtin:weather", "test", NUM_RECORDS)]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        run, records = f"{place}/run", f"{place}/records.jsonl"
        budget = ["--time-budget", f"{minutes}m", f"seed={seed}"]
        manta("train", "builtin:weather", "--out", run, *budget, *overrides)
        split = ["--split", "test", "--num", str(NUM_RECORDS)]
        manta("data", "export", "builtin:weather", *split, "--out", records)
        for name, how in WAYS.items():
            written = Path(place) / "written.jsonl"
            written.write_text(manta("generate", run, "--input", records, "--num-steps", CALLS, *how, "--json"))
            verdict = json.loads(manta("data", "check", "builtin:weather", str(written)))
            lines = [json.loads(line) for line in written.read_text().splitlines()]
            rows.append({"name": name, "seed": seed, "minutes": minutes, "num": len(lines)})
            rows[-1] |= {"calls": max(line["nfe"] for line in lines)}
            rows[-1] |= {key: verdict[key] for key in ("grammatical", "faithful")}
            rows[-1] |= {"distinct": distinct_share([line["text"] for line in lines])}
            rows[-1] |= {"corpus_distinct": distinct_share(corpus)}
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, such as size=nano")
    args = parser.parse_args()
    rows = [row for seed in range(args.seeds) for row in judged(args.minutes, seed, args.overrides)]
    if args.out:
        atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
