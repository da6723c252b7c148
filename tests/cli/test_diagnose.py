"""`manta diagnose` as a person uses it."""

import json

import pytest
import torch

from manta.cli import main
from manta.hub import save_model

from ..families.conftest import make_ar, make_lm, make_masked


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models = {"flow": make_lm(), "left": make_ar(), "masked": make_masked(), "embedded": make_lm("embedding")}
    for name, lm in models.items():
        save_model(root / name, lm, recipe={"data": "mine.jsonl"}, card="", dtype=torch.float32)
    (root / "in.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("the cat", "the cat", "rain")))
    return root


def test_a_report_of_two_models_is_written_with_progress_on_stderr(folders, capsys):
    pytest.importorskip("matplotlib")
    out = folders / "report"
    command = ["diagnose", str(folders / "flow"), str(folders / "left"), "--prompts", str(folders / "in.jsonl")]
    assert main([*command, "--out", str(out), "--num-steps", "2", "--json"]) == 0
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    assert row == json.loads((out / "diagnose.json").read_text())
    assert [model["name"] for model in row["models"]] == ["flow", "left"]
    assert row["prompts"] == 2  # each once
    assert {verdict["claim"] for verdict in row["verdicts"]} == {"singularity", "adjoint", "irreversibility"}
    assert "left: the adjoint" in printed.err
    assert (out / "diagnose.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out"),
        (["--json", "--num-prompts", "1"], "at least 2"),
        (["--json", "--num-steps", "1"], "at least 2"),
        (["--json", "--words", "some"], "one of 'writing', 'masked'"),
        (["--json"], "--data"),
        (["--json", "--data", "builtin:weather", "--prompts", "in.jsonl"], "not both"),
    ],
)
def test_wrong_usage_is_said_in_a_line(folders, capsys, arguments, words):
    assert main(["diagnose", str(folders / "flow"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "option", "whose"),
    [
        ("left", ["--style", "consensus"], "--style means nothing to these models; it is for Manta-LM and masked"),
        ("left", ["--words", "masked"], "--words means nothing to these models; it is for Manta-LM"),
        ("left", ["--tune", "3"], "--tune means nothing to these models; it is for a Manta-LM over latents"),
        ("masked", ["--words", "masked"], "--words means nothing"),
        ("embedded", ["--tune", "3"], "--tune means nothing"),
    ],
)
def test_a_setting_that_no_model_follows_is_refused(folders, capsys, model, option, whose):
    command = ["diagnose", str(folders / model), "--prompts", str(folders / "in.jsonl"), "--json", "--num-steps", "2"]
    assert main([*command, *option]) == 2
    error = capsys.readouterr().err
    assert whose in error and error.count("\n") == 1


def test_a_judge_must_give_likelihoods(folders, capsys):
    command = ["diagnose", str(folders / "left"), "--prompts", str(folders / "in.jsonl"), "--json"]
    assert main([*command, "--judge", str(folders / "flow")]) == 1
    assert "not autoregressive" in capsys.readouterr().err
