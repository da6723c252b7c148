"""`manta evaluate` and `manta compare` as a person uses them: what they print and write, and with which exit code."""

import json

import pytest
import torch

from manta.cli import main
from manta.cli.evaluate import _table
from manta.hub import save_model
from manta.text.hashing import split_of

from ..families.conftest import make_lm
from ..families.test_autoregressive import make_ar

WORDS = "the cat sat on a mat near some old river while rain fell"


def keys(split: str, count: int) -> list[str]:
    return [key for key in (f"rain {i}" for i in range(10_000)) if split_of(key) == split][:count]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models, a judge and data."""
    folder, words = tmp_path_factory.mktemp("place"), WORDS.split()
    save_model(folder / "manta", make_lm(), recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    save_model(folder / "ar", make_ar(), recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    save_model(folder / "judge", make_ar(max_text=96), recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    rows = [
        {"prompt": key, "text": " ".join(words[i % 5 : i % 5 + 4 + j])}
        for split, count in (("train", 30), ("test", 10))
        for i, key in enumerate(keys(split, count))
        for j in range(2)
    ]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bare.jsonl").write_text("".join(json.dumps({"text": key}) + "\n" for key in keys("test", 8)))
    # Of another name than the models' data, so that it is used whole.
    (folder / "apart.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return folder


def test_json_is_one_object_with_every_figure_and_warnings_go_to_stderr(place, capsys):
    pytest.importorskip("sacrebleu")
    out = place / "report.json"
    given = [str(place / "ar"), "--data", str(place / "x.jsonl"), "--num-seeds", "2", "--judge", str(place / "judge")]
    assert main(["evaluate", *given, "--temperature", "1", "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report == json.loads(out.read_text())
    assert (report["prompts"], report["references"], report["seeds"]) == (10, 20, 2)
    assert report["likelihood"]["kind"] == "exact"
    assert report["likelihood"]["self_conditioning"] == "off"
    figure = report["figures"]["entropy"]
    assert figure["low"] < figure["mean"] < figure["high"]
    assert figure["seed_least"] == min(figure["values"]) < max(figure["values"]) == figure["seed_most"]
    assert report["corpus_intervals"]["perplexity"][0] < report["corpus"]["perplexity"]
    assert "entropy" not in report["corpus_intervals"], "all human texts have the same, which tells no width"
    assert "bleu" not in report["corpus"] and report["corpus"]["bleu_one_fewer"] > 0
    assert report["read_by"]["bleu_tokens"] == "13a" and report["split"] == "test"
    wanted = {"nfe", "seconds", "entropy", "repeated_4", "distinct_2", "mean_words", "empty", "training_texts", "bleu"}
    assert wanted | {"perplexity", "bleu_one_fewer", "chrf"} <= set(report["figures"])
    assert "fewer than 100 texts" in printed.err and "perplexity is that of 10 texts" in printed.err
    assert report["corpus"]["perplexity"] > 1
    assert len(report["judged"]) == 2
    assert {"entropy", "repeated_4", "perplexity_low"} <= set(report["judged"][0])
    people = report["corpus_judged"]
    assert people["perplexity"] == pytest.approx(report["corpus"]["perplexity"])
    for told in (report["judged"][0], people):
        assert f"{told['perplexity_per_word']:.4g} a word, {told['bits_per_byte']:.4g} bits a byte" in _table(report)
    assert "hidden states" in report["mauve_features"]
    assert "share training text: both were trained on x.jsonl" in printed.err


def test_the_table_has_the_corpus_beside_the_model_and_says_what_is_not_known(place, capsys):
    given = ["--data", str(place / "x.jsonl"), "--num-seeds", "1", "--metrics", "diversity,likelihood"]
    assert main(["evaluate", str(place / "manta"), "--num-steps", "3", *given]) == 0
    table = capsys.readouterr().out
    (line,) = [line.split() for line in table.splitlines() if line.startswith("entropy ")]
    assert len(line) == 6 and line[3] == "to", "a figure and its limits, and the corpus' own, whose texts are alike"
    assert "likelihood: none" in table
    assert "intervals are over prompts" in table
    assert "bleu" not in table


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evaluate", "{}/ar"], 2, "--data"),
        (["evaluate", "{}/ar", "--data", "{}/missing.jsonl"], 1, "missing.jsonl"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--split", "dev"], 1, "no examples in its dev split"),
        (["evaluate", "{}/ar", "--data", "{}/bare.jsonl", "--metrics", "overlap"], 1, "has no prompts"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--metrics", "slots"], 1, "meaning representations"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--metrics", "beauty"], 2, "beauty"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--metrics", "diversity,judge"], 2, "--judge MODEL"),
        (
            ["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--metrics", "judge", "--judge", "{}/judge"],
            2,
            "not shown without the entropy and the repetition",
        ),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--judge", "{}/manta"], 2, "no exact likelihood"),
        (["evaluate", "{}/none", "--data", "{}/x.jsonl"], 1, "no model at"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--num-seeds", "0"], 2, "at least 1 seed"),
        (["evaluate", "{}/ar", "--data", "{}/x.jsonl", "--num-stepz", "3"], 2, "--num-steps"),
        (["compare", "{}/ar", "--data", "{}/x.jsonl"], 2, "--out DIR"),
        (["compare", "{}/ar", "--data", "{}/x.jsonl", "--out", "{}/c", "--num-steps", "2,2"], 2, "different values"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(place, capsys, arguments, code, words):
    if arguments[0] == "compare":
        pytest.importorskip("matplotlib")
    assert main([argument.format(place) for argument in arguments]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("manta: error: ")]
    assert len(error) == 1
    assert words in error[0]


def test_texts_without_prompts_are_written_freely(place, capsys):
    data = place / "free.jsonl"
    texts = keys("test", 6) + keys("train", 6)
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["evaluate", str(place / "ar"), "--data", str(data), "--num-seeds", "1", "--temperature", "1"]) == 0
    table = capsys.readouterr().out
    assert "12 texts a seed" in table and "the whole file" in table
    assert "bleu" not in table


def test_a_file_that_no_model_learned_is_used_whole_and_a_learned_one_is_not(place, capsys):
    given = ["evaluate", str(place / "ar"), "--num-seeds", "1", "--metrics", "diversity", "--json", "--data"]
    for name, more, split, prompts in (
        ("apart.jsonl", [], "all", 40),
        ("x.jsonl", [], "test", 10),
        ("x.jsonl", ["--split", "all"], "all", 40),
        ("apart.jsonl", ["--split", "test"], "test", 10),
    ):
        assert main([*given, str(place / name), *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["split"], report["prompts"]) == (split, prompts), (name, more)


def test_a_budget_of_calls_is_left_out_for_a_model_that_has_none_and_said(place, capsys):
    given = ["--data", str(place / "x.jsonl"), "--num-seeds", "1", "--metrics", "diversity"]
    assert main(["evaluate", str(place / "ar"), "--num-steps", "30", *given]) == 0
    assert "takes a call a token, so --num-steps is left out" in capsys.readouterr().err
    assert main(["evaluate", str(place / "ar"), "--guidance-scale", "2", *given]) == 2


def test_prompts_that_do_not_fit_are_left_out_and_counted(place, capsys):
    rows = [{"prompt": key, "text": "the cat"} for key in keys("test", 12)]
    rows[3]["prompt"] += " and more" * 300
    (place / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--num-seeds", "1", "--metrics", "diversity,likelihood", "--json"]
    assert main(["evaluate", str(place / "ar"), "--data", str(place / "long.jsonl"), *given]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["prompts"], report["left_out_prompts"]) == (11, 1)
    assert "1 of 12 prompts do not fit the model" in printed.err


def test_compare_writes_a_report_and_a_page(place, capsys):
    pytest.importorskip("matplotlib")
    from ..report.test_page import check_self_contained

    out = place / "compared"
    given = ["--data", str(place / "x.jsonl"), "--out", str(out), "--num-steps", "2,3", "--num-seeds", "1"]
    given += ["--metrics", "diversity,likelihood,overlap"]
    assert main(["compare", str(place / "manta"), str(place / "ar"), *given]) == 0
    assert capsys.readouterr().out.split() == [str(out / "compare.html"), str(out / "compare.json")]
    report = json.loads((out / "compare.json").read_text())
    assert [(row["family"], row["setting"].get("num_steps")) for row in report["rows"]] == [
        ("manta", 2),
        ("manta", 3),
        ("ar", None),
    ]
    assert report["command"].startswith("manta compare ")
    assert report["quality"] == "bleu"
    assert {"low", "high", "value"} <= set(report["differences"][0])
    page = check_self_contained((out / "compare.html").read_text(encoding="utf-8"))
    assert report["command"] in page.words


def test_compare_without_matplotlib_says_so_before_it_works(place, capsys, monkeypatch):
    import sys

    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["compare", str(place / "ar"), "--data", str(place / "x.jsonl"), "--out", str(place / "no")]) == 2
    assert 'pip install "manta[eval]"' in capsys.readouterr().err
    assert not (place / "no").exists()
