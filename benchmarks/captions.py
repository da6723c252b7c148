"""A task of a stranger's: German captions into English ones, each family in as many minutes.

    python benchmarks/captions.py --data FOLDER --minutes 20 --folder runs/captions \
        --out benchmarks/results/captions.json

FOLDER holds the raw files of task 1 of Multi30k, unpacked: train.de, train.en, test_2016_flickr.de and .en (29,000 and
1,000 pairs; the project does not contain them). Nothing is told but the family and the minutes; `taught` is an aligned
model that begins as the left-to-right one and learns its answers, as many minutes more. Models that stand in --folder
are kept. BLEU is sacreBLEU's, 13a, lower-cased, against the one reference there is, with 95% intervals over captions.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from manta.cli import main as manta
from manta.runtime import atomic_write

RUNS: dict[str, tuple[str, ...]] = {
    "ar": ("--family", "ar"),
    "aligned": ("--family", "aligned"),
    "taught": ("--family", "aligned", "--teacher", "FOLDER/ar"),
    "manta": ("--family", "manta"),
    "masked": ("--family", "masked"),
}
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "ar": {
        "left to right": ("--decoder", "sequential"),
        "left to right, drafted from a table": ("--decoder", "verified"),
    },
    **{
        name: {
            **{f"{calls} calls": ("--num-steps", str(calls)) for calls in (1, 4, 8)},
            "left to right": ("--decoder", "sequential"),
        }
        for name in ("aligned", "taught")
    },
    "manta": {f"{calls} calls": ("--num-steps", str(calls), "--style", "consensus") for calls in (2, 4, 8, 16)},
    "masked": {f"{calls} calls": ("--num-steps", str(calls)) for calls in (4, 8, 16)},
}


def pairs(data: Path, name: str, out: Path) -> Path:
    """German and English lines side by side, as a file of pairs."""
    if not out.exists():
        lines = [(data / f"{name}.{language}").read_text(encoding="utf-8").splitlines() for language in ("de", "en")]
        rows = [json.dumps({"prompt": de.strip(), "text": en.strip()}) for de, en in zip(*lines, strict=True)]
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, ("\n".join(rows) + "\n").encode())
    return out


def main() -> None:
    """Read the command line, train what is missing, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=20, help="of each run")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1000, help="captions")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    learned = pairs(args.data, "train", args.folder / "train.jsonl")
    asked = pairs(args.data, "test_2016_flickr", args.folder / "test.jsonl")
    rows: list[dict[str, Any]] = []
    for name, how in RUNS.items():
        run = args.folder / name
        told = [word.replace("FOLDER", str(args.folder)) for word in how]
        if not (run / "model").exists() and (
            status := manta(["train", str(learned), *told, "--time-budget", f"{args.minutes}m", "--out", str(run)])
        ):
            sys.exit(status)
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for setting, options in SETTINGS[name].items():
            file = args.folder / f"{name}, {setting}.json"
            command = ["evaluate", str(run), "--data", str(asked), "--split", "all", "--num", str(args.num)]
            command += ["--num-seeds", "1", "--metrics", "overlap", *options, "--out", str(file)]
            if not file.exists() and (status := manta(command)):
                sys.exit(status)
            figures = json.loads(file.read_text())["figures"]
            row = {"model": name, "setting": setting, "steps": len(log), "calls": round(figures["nfe"]["mean"], 2)}
            row |= {"bleu": round(figures["bleu"]["mean"], 2), "chrf": round(figures["chrf"]["mean"], 2)}
            rows.append(row | {"bleu_interval": [round(figures["bleu"][end], 2) for end in ("low", "high")]})
            print(json.dumps(row), file=sys.stderr, flush=True)
            atomic_write(args.out, (json.dumps({"minutes": args.minutes, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
