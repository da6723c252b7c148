"""Choosing among answers: the probabilities are those of the likelihoods, whatever the family and the batch."""

import json
import math

import pytest
import torch

from manta.cli import main
from manta.cli.choose import answers
from manta.errors import RequestError, UsageError
from manta.evaluation import choose
from manta.families.batching import to_batch
from manta.hub import save_model
from manta.runtime import make_generator

from ..families.conftest import make_ar, make_lm, make_masked

AMONG = ["the cat", "a mat near some old river", "rain"]
PROMPTS = ["quiet hills", None, "the cat sat on a mat"]


@pytest.mark.parametrize("make", [make_ar, make_masked])
def test_chances_are_those_of_the_likelihoods(make):
    lm = make()
    found = choose(lm, PROMPTS, AMONG, samples=4, seed=5)
    for at, (prompt, choice) in enumerate(zip(PROMPTS, found, strict=True)):
        asked = [lm.tokenizer.encode(prompt) if prompt else []]
        values = []
        for text in AMONG:
            batch = to_batch(asked, [lm.tokenizer.encode(text)])
            values.append(float(lm.log_likelihood(batch, [make_generator(5 + at)], 4).value))
        expected = torch.tensor(values, dtype=torch.float64).softmax(0).tolist()
        assert list(choice.chances) == AMONG
        assert list(choice.chances.values()) == pytest.approx(expected, rel=1e-3)
        assert choice.text == AMONG[expected.index(max(expected))] and choice.expected is None
        assert choice.kind == ("bound" if make is make_masked else "exact")
        (alone,) = choose(lm, [prompt], AMONG, samples=4, seed=5 + at)
        assert alone.chances == pytest.approx(choice.chances, rel=1e-3)
    assert choose(lm, [], AMONG) == []


def test_scores_have_a_mean():
    (found,) = choose(make_ar(), ["the cat"], ["1", "2", "5"])
    assert found.expected == pytest.approx(sum(float(k) * p for k, p in found.chances.items()))
    assert math.isclose(sum(found.chances.values()), 1)


@pytest.mark.parametrize(
    ("among", "expected"),
    [
        ("yes,no", ["yes", "no"]),
        (" a , b c ", ["a", "b c"]),
        ("1..4", ["1", "2", "3", "4"]),
        ("-1..1", ["-1", "0", "1"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        ("a..b,c", ["a..b", "c"]),
    ],
)
def test_answers_as_they_are_told(among, expected):
    assert answers(among) == expected


@pytest.mark.parametrize("among", ["5..1", "1..1000", '["a"', "[1, 2]", '[["a"]]'])
def test_answers_that_cannot_be_read(among):
    with pytest.raises(UsageError, match="--among"):
        answers(among)


def test_what_cannot_be_chosen_is_refused():
    lm = make_ar()
    for among in ([], ["a"], ["a", "a"]):
        with pytest.raises(UsageError, match="all different"):
            choose(lm, ["x"], among)
    with pytest.raises(RequestError, match="takes 0 tokens"):
        choose(lm, ["x"], ["", "a"])
    with pytest.raises(RequestError, match="the model writes from 1 to 24"):
        choose(lm, ["x"], ["the cat " * 30, "a"])
    with pytest.raises(RequestError, match="the model reads at most 12"):
        choose(lm, ["quiet hills " * 9], ["b", "a"])
    with pytest.raises(UsageError, match="so it cannot choose"):
        choose(make_lm(), ["x"], ["a", "b"])


def test_the_verb(tmp_path, capsys):
    save_model(tmp_path / "model", make_ar(), recipe={}, card="")
    command = ["choose", str(tmp_path / "model"), "--among"]
    assert main([*command, "1..3", "--prompt", "the cat", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row["chances"]) == {"1", "2", "3"} and row["choice"] in row["chances"] and 1 < row["expected"] < 3
    (tmp_path / "in.jsonl").write_text('{"prompt": "a mat"}\n{"prompt": "rain"}\n')
    assert main([*command, "yes,no", "--input", str(tmp_path / "in.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.split()[0] in ("yes", "no") and "%" in line for line in lines)
    for wrong in (["yes,no"], ["yes", "--prompt", "x"], ["yes,no", "--prompt", "x", "--input", "y"]):
        assert main([*command, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
