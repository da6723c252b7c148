"""A model that tells tasks apart, from a file of the command line to texts, figures and a model of one task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import manta
from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, DataError, ModelError, RequestError, UsageError
from manta.hub import load_writer
from manta.recipes import Recipe, TrainingRun
from manta.recipes.quantising import QuantisationPlan, quantise
from manta.text import Example
from manta.text.making import make

from .small import finish, same_weights, small, stop

NAMES = ("continue", "describe", "fill", "shorten")
SHAPE: dict[str, Any] = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Records and texts of a few places, as rows of four tasks."""
    places = [
        f"{first}{second}" for first in ("Ziz", "Mil", "Cot", "Fir", "Wat") for second in ("zi", "la", "to", "na")
    ]
    examples = []
    for place in places:
        record = f"name[{place}], food[fish]"
        examples += [Example(f"{place} serves fish and is a very nice place near the river.", record)]
        examples += [Example(f"{place} serves fish.", record)]
    file = tmp_path_factory.mktemp("data") / "tasks.jsonl"
    rows = [{"task": e.task, "prompt": e.prompt, "text": e.text} for e in make("tasks", examples, 0)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(data: Path, family: str = "ar", kind: str | None = "low_rank", **changes: Any) -> Recipe:
    shape = "teacher" if family == "ar" else family
    modulation = {} if kind is None else {"modulation": {"kind": kind}}
    given = small(1, family, **{shape: {**SHAPE, **modulation}, "data": str(data), "num_examples": None, **changes})
    return from_dict(Recipe, {**given, "train": {"precision": "float32"}})


def run(folder: Path, *given: Any, **changes: Any) -> TrainingRun:
    return TrainingRun(recipe(*given, **changes), folder, device="cpu")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    finish(run(folder, data))
    return folder


def test_a_run_takes_its_tasks_from_its_data_and_its_samples_name_them(trained):
    lm = load_writer(str(trained), device="cpu")
    assert lm.tasks == NAMES and lm.model.config.modulation.kind == "low_rank"  # pyright: ignore
    kept = json.loads((trained / "model" / "config.json").read_text())["model"]
    assert kept["tasks"] == list(NAMES)
    assert {line.split(":")[0] for file in (trained / "samples").glob("*.txt") for line in file.open()} <= set(NAMES)
    assert list((trained / "samples").glob("*.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ar", "masked"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(family, data, tmp_path, capsys):
    finish(run(tmp_path / "whole", data, family, "film"))
    stop(run(tmp_path / "parts", data, family, "film"), 3)
    finish(TrainingRun(None, tmp_path / "parts", resume=True, device="cpu"))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "whole"), "--task", "fill", "--out", str(tmp_path / "one")]) == 1
    assert "film" in capsys.readouterr().err and not (tmp_path / "one").exists()


def test_a_model_with_tasks_is_trained_on_with_data_of_the_same_tasks(trained, data, tmp_path):
    base = {"begin_from": str(trained), "num_steps": 4, "batch_tokens": 300, "train": {"precision": "float32"}}
    finish(TrainingRun(from_dict(Recipe, {**base, "data": str(data)}), tmp_path / "on", device="cpu"))
    assert load_writer(str(tmp_path / "on"), device="cpu").tasks == NAMES
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("shorten", "brief"))
    with pytest.raises(ConfigError, match="the same tasks"):
        finish(TrainingRun(from_dict(Recipe, {**base, "data": str(other)}), tmp_path / "off", device="cpu"))


def test_without_a_modulation_tasks_change_nothing_and_the_run_says_so(data, tmp_path):
    untold = tmp_path / data.name
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    untold.write_text("".join(json.dumps({**row, "task": None}) + "\n" for row in rows))
    told: list[str] = []
    named = TrainingRun(recipe(data, kind=None), tmp_path / "named", device="cpu", tell=told.append)
    finish(named)
    finish(run(tmp_path / "untold", untold, kind=None))
    assert same_weights(tmp_path / "named", tmp_path / "untold")
    assert any("--tasks low_rank" in line for line in [*told, *named.parts.advice()])


def test_what_cannot_be_is_refused_before_anything_is_trained(data, tmp_path, capsys):
    some = tmp_path / "some.jsonl"
    some.write_text(data.read_text() + json.dumps({"text": "no task here at all"}) + "\n" * 2)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    some.write_text(
        "".join(json.dumps({**row, "task": row["task"] if i % 2 else None}) + "\n" for i, row in enumerate(rows))
    )
    with pytest.raises(DataError, match="names no task"):
        finish(run(tmp_path / "one", some))
    with pytest.raises(ConfigError, match="leave consensus"):
        finish(run(tmp_path / "two", data, "masked", consensus="teacher"))
    for flags in (
        ["--family", "aligned", "--tasks", "low_rank"],
        ["--tasks", "low_rank"],
        ["--family", "manta", "teacher.modulation.kind=low_rank"],
        ["--family", "block", "block.modulation.kind=film"],
        ["--from", "builtin:e2e", "--tasks", "film"],
    ):
        assert main(["train", str(data), "--out", str(tmp_path / "three"), "--num-steps", "4", *flags]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert any(word in line for word in ("ar and masked", "family = 'ar'", "unknown key", "new model")), line
    assert not (tmp_path / "three").exists()


def test_what_knows_one_task_alone_is_told_to_take_one_out(trained, data, tmp_path):
    for wrong in ({"converted_from": str(trained)}, {"inherit": str(trained)}, {"drafter_of": str(trained)}):
        with pytest.raises(ModelError, match=r"manta export .* --task"):
            TrainingRun(from_dict(Recipe, {"data": str(data), "num_steps": 4, **wrong}), tmp_path / "run", device="cpu")
    with pytest.raises(ModelError, match="manta export"):
        quantise(str(trained), str(data), QuantisationPlan())


def test_from_a_file_to_texts_and_a_model_of_one_task(data, tmp_path, capsys):
    shape = [f"teacher.{name}={value}" for name, value in SHAPE.items()]
    limits = [
        "vocab_size=512",
        "max_prompt=40",
        "max_text=40",
        "batch_tokens=300",
        "--num-steps",
        "4",
        "--size",
        "nano",
    ]
    out, one = str(tmp_path / "run"), str(tmp_path / "one")
    assert main(["train", str(data), "--family", "ar", "--tasks", "low_rank", "--out", out, *limits, *shape]) == 0
    asked = ["generate", out, "--prompt", "Zizzi serves fish and is nice.", "--max-tokens", "8"]
    capsys.readouterr()
    assert main([*asked, "--task", "shorten"]) == 0
    text = capsys.readouterr().out
    assert main([*asked, "--instruction", "make it shorter"]) == 0
    again = capsys.readouterr()
    assert again.out == text and "understood: shorten" in again.err
    for flags, words in (
        ([], "its tasks are continue, describe, fill, shorten"),
        (["--task", "translate"], "no task 'translate'"),
        (["--instruction", "what day is it"], "not understood"),
        (["--task", "fill", "--instruction", "fill it"], "not both"),
    ):
        assert main([*asked, *flags]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert words in line, line
    lines = tmp_path / "lines.jsonl"
    rows = [{"prompt": "Zizzi serves fish and is nice.", "task": "shorten", "seed": 0}, {"prompt": "name[Zizzi]"}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["generate", out, "--input", str(lines), "--json", "--task", "describe", "--max-tokens", "8"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in found] == ["shorten", "describe"] and found[0]["text"] == text.strip("\n")
    assert main(["export", out, "--task", "shorten", "--out", one]) == 0
    assert main(["export", out, "--task", "shorten", "--out", one]) == 2
    assert main(["export", out, "--out", str(tmp_path / "no")]) in (1, 2)
    capsys.readouterr()
    assert main(["generate", one, *asked[2:]]) == 0
    assert capsys.readouterr().out == text
    assert main(["generate", one, "--input", str(lines), "--json", "--max-tokens", "8"]) == 0  # a key as any
    assert json.loads(capsys.readouterr().out.splitlines()[0])["task"] == "shorten"
    figures = ["evaluate", "--data", str(data), "--split", "all", "--metrics", "likelihood,diversity", "--json"]
    whole = [*figures[:1], out, *figures[1:], "--num-seeds", "1", "--num", "8", "--task", "shorten"]
    assert main(whole) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["references"] == report["prompts"] == 8
    assert main(whole[:-2]) in (1, 2) and "its tasks are" in capsys.readouterr().err


def test_in_python(trained):
    lm = manta.load(str(trained))
    assert lm.understand("shorten it").task == "shorten"  # pyright: ignore
    with pytest.raises(RequestError, match="its tasks are"):
        lm.write("name[Zizzi]")  # pyright: ignore
    plain = lm.of_task("fill")  # pyright: ignore
    with torch.no_grad():
        assert plain.write("a ___", max_tokens=4) == lm.write("a ___", task="fill", max_tokens=4)  # pyright: ignore
    with pytest.raises(UsageError, match="no tasks"):
        plain.understand("shorten it")
