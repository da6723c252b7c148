"""Thousands of texts by `manta generate --engine ray`: whether they are the plain run whoever is killed, and how fast.

    python benchmarks/many_texts.py --num 5000 --rated 1000 --rounds 3 --out benchmarks/results/many_texts.json

The model that ships as `builtin:e2e-aligned` writes, with one network call a text. One line of the input has a prompt
that is too long for it. The plain run writes all lines in one process; then two workers write the same lines. Their
driver is killed with SIGKILL once a quarter is there, then started again, and a worker is killed at the half. The
rates are those of the first `--rated` lines, uninterrupted, by turns in `--rounds` rounds: from the command to its end,
and of the writing alone, after the first part (of the plain run, without loading).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from manta.runtime import atomic_write

MODEL = ("builtin:e2e-aligned", "--num-steps", "1")
PART_ROWS = 125
NAMES = ("Blue Spice", "The Mill", "Cotto", "Fitzbillies", "The Golden Palace", "Aromi", "Strada", "Zizzi")
KINDS = ("pub", "coffee shop", "restaurant")
MORE = ("", ", area[riverside]", ", food[Italian], priceRange[cheap], familyFriendly[yes]", ", near[Café Sicilia]")


def write_input(file: Path, num: int) -> None:
    """Lines with prompts, one of them poisoned: far longer than the model reads."""
    rows = [
        {"id": i, "prompt": f"name[{NAMES[i % 8]}], eatType[{KINDS[i // 8 % 3]}]{MORE[i // 24 % 4]}"}
        for i in range(num)
    ]
    rows[num // 3]["prompt"] = "name[The Mill], eatType[pub] " * 400
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def manta(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "manta", "generate", *MODEL, *arguments]


def environment() -> dict[str, str]:
    """This one, with a thread a process, so that rates of few and of many processes compare on a shared machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def plain(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the plain run, and how long it took."""
    begun = time.perf_counter()
    done = subprocess.run(manta("--input", str(file), "--json"), env=environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    writing = max(row["seconds"] for row in rows)
    told = {"who": "plain", "texts": len(rows), "seconds": round(seconds, 1)}
    return [without_seconds(row) for row in rows], {**told, "texts_a_second": round(len(rows) / writing, 1)}


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.jsonl"))


def rows_of(out: Path) -> list[dict[str, Any]]:
    lines = (line for part in parts(out) for line in part.read_text("utf-8").splitlines())
    return [without_seconds(json.loads(line)) for line in lines]


def command(file: Path, out: Path, workers: int) -> list[str]:
    job = ("--engine", "ray", "--input", str(file), "--out", str(out))
    return manta(*job, "--workers", str(workers), "--part-rows", str(PART_ROWS))


def rated(file: Path, out: Path, workers: int) -> dict[str, Any]:
    """How long workers take."""
    begun = time.perf_counter()
    subprocess.run(command(file, out, workers), env=environment(), capture_output=True)
    seconds = time.perf_counter() - begun
    moments = sorted(part.stat().st_mtime for part in parts(out))
    texts = len(rows_of(out))
    rate = (texts - PART_ROWS) / (moments[-1] - moments[0])
    return {"who": "ray", "workers": workers, "texts": texts, "seconds": round(seconds, 1)} | {
        "texts_a_second": round(rate, 1)
    }


def writers() -> list[psutil.Process]:
    """The workers of a job on this machine."""
    told = [(process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
    return [process for process, line in told if line.startswith("ray::") and "PartWriter" in line]


def cluster_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.name() in ("raylet", "gcs_server")]


def killed(file: Path, out: Path, wanted: int) -> dict[str, Any]:
    """A job whose driver, and then whose worker, is killed: what was there each time, and how it ended."""
    told: dict[str, Any] = {"parts": wanted}

    def start(share: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(command(file, out, 2), env=environment(), stderr=subprocess.PIPE, text=True)
        while len(parts(out)) < share * wanted and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            raise SystemExit(f"the job ended too early: {process.communicate()[1][-500:]}")
        return process

    begun = time.perf_counter()
    first = start(0.25)
    left = cluster_of(psutil.Process(first.pid))
    first.kill()
    first.communicate()
    told["at_driver"] = len(parts(out))
    _, alive = psutil.wait_procs(left, timeout=30)
    told["cluster_left_after_30_s"] = len(alive)
    second = start(0.5)
    victim = writers()[0]
    victim.kill()
    told["at_worker"] = len(parts(out))
    second.communicate()
    told |= {"exit_code": second.returncode, "seconds": round(time.perf_counter() - begun, 1)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=5000, help="lines")
    parser.add_argument("--rated", type=int, default=1000, help="lines whose rate is measured")
    parser.add_argument("--rounds", type=int, default=3, help="how often it is measured")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    shown = f"python benchmarks/many_texts.py --num {given.num} --rated {given.rated} --rounds {given.rounds}"
    result: dict[str, Any] = {"command": shown, "cores": os.cpu_count(), "rows": []}

    def keep(**more: Any) -> None:
        result.update(more)
        print(more, flush=True)
        atomic_write(given.out, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())

    with tempfile.TemporaryDirectory() as folder:
        whole, few = Path(folder) / "whole.jsonl", Path(folder) / "few.jsonl"
        write_input(whole, given.num)
        expected, _ = plain(whole)
        end = killed(whole, Path(folder) / "killed", -(-given.num // PART_ROWS))
        found = rows_of(Path(folder) / "killed")
        failed = [json.loads(line) for file in Path(folder).glob("killed/_failures/*") for line in file.open()]
        differ = sum(one != other for one, other in zip(found, expected, strict=False))
        once = len({row["id"] for row in found})
        end |= {"texts": len(found), "different_ids": once, "differ": differ, "failed": [row["row"] for row in failed]}
        keep(killed=end)
        few.write_text("".join(line + "\n" for line in whole.read_text("utf-8").splitlines()[: given.rated]), "utf-8")
        for number in range(given.rounds):
            round_ = [plain(few)[1], *(rated(few, Path(folder) / f"rated-{number}-{n}", n) for n in (1, 2))]
            keep(rows=[*result["rows"], *({"round": number, **row} for row in round_)])


if __name__ == "__main__":
    main()
