"""A log that is continued holds every step once, whatever an interruption left behind."""

import json
import sys
from typing import Any

import pytest

from manta.errors import ConfigError
from manta.training import RunLog
from manta.training.log import read_log


def row(step: int, loss: float) -> dict:
    return {"global_step": step, "stage": "policy", "step": step, "loss": loss}


def losses(run) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(found["global_step"], found["loss"]) for found in map(json.loads, lines)]


def write(run, start: int, steps: range, sign: float, *, tensorboard: bool = False, stop: bool = True) -> RunLog:
    log = RunLog(run, start, tensorboard=tensorboard)
    for step in steps:
        log.row(step, row(step, sign * step))
    log.samples(steps[-1], [f"a text of step {steps[-1]}"])
    log.flush()
    if stop:
        log.close()
    return log


def events(run) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard would show of a run: steps and values by name."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    found = reader.EventAccumulator(str(run / "tensorboard"), {"tensors": 0})
    found.Reload()
    return {tag: [(e.step, e.tensor_proto) for e in found.Tensors(tag)] for tag in found.Tags()["tensors"]}


def test_a_continued_log_holds_every_step_once(tmp_path):
    write(tmp_path, 0, range(1, 8), 1.0)
    write(tmp_path, 5, range(6, 10), -1.0)
    assert losses(tmp_path) == [*((s, 1.0 * s) for s in range(1, 6)), *((s, -1.0 * s) for s in range(6, 10))]
    write(tmp_path, 0, range(1, 3), 1.0)
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("half", ['{"global_step": 4, "sta', "", '{"glo'])
def test_half_a_row_left_by_a_kill_is_cut_off(tmp_path, half):
    write(tmp_path, 0, range(1, 4), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    write(tmp_path, 3, range(4, 6), 1.0)
    assert losses(tmp_path) == [(s, 1.0 * s) for s in range(1, 6)]


def test_tensorboard_shows_every_step_once(tmp_path):
    """The first log is left as a kill leaves it: neither closed nor told of what comes."""
    pytest.importorskip("tensorboard")
    left = write(tmp_path, 0, range(1, 8), 1.0, tensorboard=True, stop=False)
    write(tmp_path, 5, range(6, 10), -1.0, tensorboard=True)
    shown = events(tmp_path)
    assert sorted(shown) == ["policy/loss", "samples/text_summary"]
    assert [(step, value.float_val[0]) for step, value in shown["policy/loss"]] == losses(tmp_path)
    ((step, text),) = shown["samples/text_summary"]
    assert step == 9 and b"a text of step 9" in text.string_val[0]
    left.close()


def test_a_missing_package_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'manta\[log\]'"):
        RunLog(tmp_path, 0, tensorboard=True)
    assert list(tmp_path.iterdir()) == []
    RunLog(tmp_path, 0).close()


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"\xff\xfe", b"[" * 3000, b'{"global_step": "x", "stage": "policy"}'])
def test_a_damaged_row_is_left_out_and_those_after_it_stay(tmp_path, line):
    write(tmp_path, 0, range(1, 5), 1.0)
    rows = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([rows[0], line, *rows[2:]]) + b"\n")
    write(tmp_path, 4, range(5, 6), 1.0)
    assert [step for step, _ in losses(tmp_path)] == [1, 3, 4, 5]


def test_a_closed_log_has_written_all_and_takes_no_more(tmp_path):
    log = RunLog(tmp_path, 0)
    log.row(1, row(1, 1.0))
    log.close()
    assert losses(tmp_path) == [(1, 1.0)]
    with pytest.raises(ValueError, match="closed"):
        log.row(2, row(2, 2.0))


def test_events_have_every_figure_but_the_steps_and_the_names(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, 0, tensorboard=True)
    log.row(3, {"global_step": 3, "stage": "own", "step": 2, "loss": 0.5, "note": "x", "rate": 1})
    log.close()
    shown = events(tmp_path)
    assert {tag: [step for step, _ in found] for tag, found in shown.items()} == {"own/loss": [3], "own/rate": [3]}


def test_a_log_tells_its_rows_and_how_many_lines_are_none(tmp_path):
    assert read_log(tmp_path) == ([], 0)
    write(tmp_path, 0, range(1, 4), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": true, "stage": "own"}\n{"global_step": 4, "stage": "own", "loss": "x"}\n{"glo')
    rows, damaged = read_log(tmp_path)
    assert [row["global_step"] for row in rows] == [1, 2, 3] and damaged == 3
