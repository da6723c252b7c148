"""E2E test under `manta evaluate`: the models that ship (five seeds where anything is drawn) and published systems.

    python benchmarks/e2e_evaluations.py --data PATH --published DIR --out benchmarks/results/e2e_evaluations.json

PATH is e2e-dataset.zip or its folder. DIR holds a .tsv file a system with its 630 texts, as the E2E challenge publishes
them (system_outputs/primary of github.com/tuetschek/e2e-eval). Only figures are kept; rows that stand in --out stay, so
that the command can be repeated.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from manta.bench import machine
from manta.cli import main as manta
from manta.runtime import atomic_write

FIGURES = (
    "bleu",
    "bleu_one_fewer",
    "chrf",
    "rougeL",
    "rougeL_one_fewer",
    "slot_error_rate",
    "mauve",
    "entropy",
    "distinct_4",
    "training_13_words",
    "nfe",
)
SEEDS = 5
ALIGNED = {
    "aligned, 1 call": ("--num-steps", "1", "--num-seeds", "1"),
    "aligned, 4 calls": ("--num-steps", "4", "--num-seeds", "1"),
    "left to right, greedy": ("--decoder", "verified", "--num-seeds", "1"),
    "left to right, sampled": ("--decoder", "verified", "--temperature", "1", "--num-seeds", str(SEEDS)),
    "left to right, at 0.8": ("--decoder", "verified", "--temperature", "0.8", "--num-seeds", str(SEEDS)),
}
"""The second model, by both of its readings."""


def shown(arguments: tuple[str, ...]) -> str:
    """A command without the places of this machine."""
    places = {"path": "PATH", "file": "FILE"}
    return shlex.join(["manta", "evaluate", *(argument.format(**places) for argument in arguments)])


KEPT = ("mean", "low", "high", "seed_least", "seed_most")
"""Of a figure: its mean over seeds, its 95% interval over prompts, its range over sampling seeds."""


def short(value: float | None) -> float | None:
    """Five digits."""
    return None if value is None else float(f"{value:.5g}")


def evaluated(name: str, *arguments: str, **places: str) -> dict[str, Any]:
    """One row: what `manta evaluate` says, and its command without the places of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        if status := manta(["evaluate", *(a.format(**places) for a in arguments), "--out", str(out)]):
            sys.exit(status)
        found = json.loads(out.read_text())
    row: dict[str, Any] = {"name": name, "command": shown(arguments)}
    row["seeds"] = found["seeds"]
    for figure in FIGURES:
        if figure in found["figures"]:
            row[figure] = {key: short(found["figures"][figure][key]) for key in KEPT}
    limits = found["corpus_intervals"]
    row["human"] = {
        figure: {
            "mean": short(found["corpus"][figure]),
            **dict(zip(("low", "high"), map(short, limits[figure]), strict=True)),
        }
        if figure in limits
        else {"mean": short(found["corpus"][figure]), "low": None, "high": None}
        for figure in FIGURES
        if figure in found["corpus"]
    }
    print(name, {figure: row[figure]["mean"] for figure in FIGURES if figure in row}, file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": [], "published": []}
    result["machine"] = machine()
    data = ("--data", "e2e:{path}")
    wanted: list[tuple[str, str, tuple[str, ...], dict[str, str]]] = []
    for file in sorted(args.published.glob("*.tsv")) if args.published else ():
        wanted.append(("published", file.stem, ("--texts", "{file}", *data), {"file": str(file)}))
    for style, budgets in (("consensus", ("2", "4", "8")), ("diverse", ("4", "8", "16"))):
        for steps in budgets:
            how = ("--num-steps", steps, "--style", style, "--num-seeds", str(SEEDS))
            wanted.append(("rows", f"Manta-LM, {style}, {steps} calls", (*data, *how), {}))
    for name, how in ALIGNED.items():
        wanted.append(("rows", name, ("builtin:e2e-aligned", *data, *how), {}))
    for group, name, arguments, places in wanted:
        result[group] = [row for row in result[group] if row["name"] != name or row["command"] == shown(arguments)]
        if all(row["name"] != name for row in result[group]):
            row = evaluated(name, *arguments, path=args.data, **places)
            result["human"] = row.pop("human")
            result[group].append(row)
            atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    order = [name for group, name, *_ in wanted if group == "rows"]
    result["rows"].sort(key=lambda row: order.index(row["name"]))
    result["published"].sort(key=lambda row: -row["bleu"]["mean"])
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
