"""`manta generate`: the help of a model, options of a line of input, and a line that fails alone."""

import json

import pytest
import torch

from manta.cli import main
from manta.hub import save_model

from ..families.conftest import make_ar, make_lm


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    for name, lm in (("manta", make_lm()), ("ar", make_ar())):
        save_model(root / name, lm, recipe={}, card="", dtype=torch.float32)
    return {name: str(root / name) for name in ("manta", "ar")}


def rows_of(file, rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_help_of_a_model_has_its_options_and_no_others(folders, capsys, monkeypatch):
    monkeypatch.setattr("manta.hub.load_writer", None)
    shown = {}
    for name, arguments in {"all": [], "ar": [folders["ar"]], "manta": [folders["manta"]]}.items():
        assert main(["generate", *arguments, "--help"]) == 0
        shown[name] = capsys.readouterr().out
    for heading in (
        "options of every model:",
        "options of Manta-LM:",
        "options of aligned models, autoregressive models and published causal models:",
    ):
        assert heading in shown["all"]
    assert "--top-p" in shown["ar"] and "--solver" not in shown["ar"] and "--num-steps" not in shown["ar"]
    assert "--solver" in shown["manta"] and "--top-p" not in shown["manta"] and "--decoder" not in shown["manta"]
    assert "options of Manta-LM:" in shown["manta"]


def test_an_option_of_another_family_is_named_with_its_own(folders, capsys):
    assert main(["generate", folders["ar"], "--solver", "heun"]) == 2
    assert (
        "--solver means nothing to autoregressive models; it is for Manta-LM; leave it out" in capsys.readouterr().err
    )


def test_a_line_has_options_of_its_own(folders, capsys, tmp_path):
    file = rows_of(tmp_path / "in.jsonl", [{"prompt": "rain", "options": {"temperature": 1.0}}, {"prompt": "rain"}])
    assert main(["generate", folders["ar"], "--input", file, "--seed", "4", "--max-tokens", "5", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "options" not in found[0]
    for row, more in zip(found, (["--temperature", "1"], []), strict=True):
        command = ["generate", folders["ar"], "--prompt", "rain", "--max-tokens", "5", "--seed", str(row["seed"])]
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out.rstrip("\n") == row["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_stepz": 3}, "line 1: no option 'num_stepz'; did you mean 'num_steps'?"),
        ({"num_steps": "3"}, "line 1: num_steps should be an integer"),
        ({"temperature": -1}, "line 1: --temperature should be 0 or more"),
        (3, "line 1: `options` should be an object"),
    ],
)
def test_options_of_a_line_that_no_family_has_are_refused_with_the_line(folders, capsys, tmp_path, options, words):
    file = rows_of(tmp_path / "in.jsonl", [{"prompt": "rain", "options": options}])
    assert main(["generate", folders["ar"], "--input", file]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_that_cannot_be_served_fails_alone(folders, capsys, tmp_path, as_json):
    rows: list[dict] = [
        {"prompt": "the cat"},
        {"prompt": "rain fell over quiet hills " * 9},
        {"prompt": "some old river"},
    ]
    rows += [{"prompt": "x", "options": {"solver": "heun"}}]
    file = rows_of(tmp_path / "in.jsonl", rows)
    assert main(["generate", folders["ar"], "--input", file, *(["--json"] if as_json else [])]) == 1
    out, error = capsys.readouterr()
    [long, foreign] = error.splitlines()
    assert long.startswith("manta: error: request 2 of 4: the prompt has")
    assert foreign.startswith("manta: error: request 4 of 4: --solver means nothing to autoregressive models")
    if not as_json:
        assert len(out.splitlines()) == 2
        return
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [("text" in row, "error" in row) for row in found] == [(True, False), (False, True)] * 2
    assert "reads at most" in found[1]["error"]


@pytest.mark.parametrize("slip", ["option", "Options", "optoins"])
def test_a_slip_of_the_options_key_is_refused(folders, tmp_path, capsys, slip):
    file = rows_of(tmp_path / "in.jsonl", [{"prompt": "x", slip: {"temperature": 1.0}}])
    assert main(["generate", folders["ar"], "--input", file]) == 1
    assert f"has no field `options` but `{slip}`" in capsys.readouterr().err
