"""Whole jobs by Ray: what they write is the plain run, whoever is killed, and each text is there once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from manta.cli import main
from manta.evaluation import evaluation_set
from tests.cluster.conftest import FLAGS, some_lines, texts_of, without_seconds, write_lines

pytestmark = pytest.mark.slow


def plain(model: str, file: Path, capsys: Any, *flags: str) -> list[dict[str, Any]]:
    main(["generate", model, "--input", str(file), "--json", *FLAGS, *flags])
    return [without_seconds(json.loads(line)) for line in capsys.readouterr().out.splitlines()]


def test_files_of_a_folder_are_the_plain_run_over_all_their_lines(cluster, model, tmp_path, capsys):
    rows = some_lines(22)
    rows[4]["seed"], rows[9]["options"], rows[13] = 7, {"max_tokens": 2}, {"prompt": "rain fell over quiet hills " * 9}
    (tmp_path / "in" / "b").mkdir(parents=True)
    write_lines(tmp_path / "in" / "a.jsonl", rows[:9])
    write_lines(tmp_path / "in" / "b" / "c.jsonl", rows[9:])
    expected = plain(model, write_lines(tmp_path / "all.jsonl", rows), capsys, "--num-samples", "2", "--seed", "3")
    command = ["generate", model, "--engine", "ray", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command += [*FLAGS, "--num-samples", "2", "--seed", "3", "--part-rows", "5", "--workers", "2", "--batch-size", "3"]
    assert main(command) == 1, "a line failed"
    out, error = capsys.readouterr()
    assert texts_of(tmp_path / "out") == expected and len(expected) == 44
    assert out.strip() == str(tmp_path / "out")
    assert "1 of 22 lines failed" in error and "number 14" in error and "reads at most" in error
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [".lock", "_failures", "_job.json", *(f"part-{part:08d}.jsonl" for part in range(5))]
    )
    again, before = ["--workers", "1", "--json"], (tmp_path / "out" / "part-00000000.jsonl").stat()
    assert main([*command, *again]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["written"], told["failed"], told["parts"]) == (22, 0, 1, 5)
    assert (tmp_path / "out" / "part-00000000.jsonl").stat() == before
    for change in (["--temperature", "0.5"], ["--seed", "4"], ["--part-rows", "6"]):
        assert main([*command, *change]) == 2
        assert "holds texts of another job" in capsys.readouterr().err
    write_lines(tmp_path / "in" / "a.jsonl", rows[:8])
    assert main(command) == 2
    assert "its input_digest was" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_lines").exists()


def test_figures_of_many_processes_are_those_of_one(cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("manta.metrics.spread.SHARD", 11)
    data = evaluation_set("builtin:weather", "test", 40)
    rows = [{"prompt": p, "text": t} for p, t in zip(data.prompts, reversed(data.humans), strict=True)]
    (tmp_path / "texts").mkdir()
    write_lines(tmp_path / "texts" / "a.jsonl", rows[:13])
    write_lines(tmp_path / "texts" / "b.jsonl", rows[13:])
    command = ["evaluate", "--texts", str(tmp_path / "texts"), "--data", "builtin:weather", "--json"]
    command += ["--num", str(len(rows)), "--metrics", "overlap,oracle"]
    found = []
    for engine in ([], ["--engine", "ray", "--workers", "2"]):
        assert main([*command, *engine]) == 0
        found.append(json.loads(capsys.readouterr().out))
        found[-1].pop("command")
    assert found[0] == found[1] and "chrf" in found[0]["figures"]


def workers() -> list[psutil.Process]:
    """Processes of Ray that write parts."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::") and "PartWriter" in line:
            found.append(process)
    return found


def test_a_job_whose_driver_and_worker_are_killed_goes_on_and_ends_the_same(cluster, model, tmp_path, capsys):
    file = write_lines(tmp_path / "in.jsonl", some_lines(240))
    expected = plain(model, file, capsys)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "manta", "generate", model, "--input", str(file), "--out", str(out), *FLAGS]
    command += ["--engine", "ray", "--address", cluster, "--workers", "1", "--part-rows", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}

    def until(process: subprocess.Popen[str], more: int) -> int:
        """Wait for so many more parts, and say how many there are."""
        wanted, deadline = len(list(out.glob("part-*"))) + more, time.monotonic() + 180
        while len(list(out.glob("part-*"))) < wanted:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        return wanted

    def start(more: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True)
        until(process, more)
        return process

    first = start(2)
    for worker in workers():
        worker.kill()
    reached = until(first, 2)
    first.kill()
    assert first.communicate()[0] == "", "Ray says nothing of its own on stdout"
    kept = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert len(kept) >= reached
    second = start(1)
    second.send_signal(signal.SIGTERM)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 143, said
    assert "of 240 lines; the same command goes on with the rest" in said and "Traceback" not in said
    assert len(list(out.glob("part-*"))) < 60, "it was stopped on its way"
    assert main(command[3:]) == 0
    assert texts_of(out) == expected
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "what was there was not written again"
