"""Rounds: what is hard is drawn, none twice; a run keeps its rounds and can be taken up in any of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manta.config import from_dict
from manta.errors import CheckpointError, ConfigError
from manta.recipes import Recipe, TrainingRun
from manta.recipes.budget import Clock, Watch
from manta.recipes.rounds import alike, hard_rows, kept_rows, seen_rows
from manta.recipes.stages import TextParts
from manta.runtime import make_generator
from manta.text import CONSENSUS, Corpus, Example, Loader, Tokenizer, build, read
from manta.training import TrainConfig, read_log

from .small import finish, same_weights, small, stop

SMALL = small(1, num_examples=200, num_steps=12, family="ar", consensus="auto", warm_start=None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    texts = [f"row {i} of some" + " more" * (i % 5) for i in range(100)]
    tokenizer = Tokenizer.train(texts, 512)
    build((Example(text=text) for text in texts), tokenizer, folder, max_prompt=4, max_text=32, source="test")
    return Corpus.open(folder)


def test_a_loader_of_some_rows_gives_these_and_no_others(corpus):
    rows = np.array([3, 5, 8, 40, 41, 99])
    loader, found = Loader(corpus, batch_tokens=20, rows=rows), []
    while loader.epoch == 0:
        found += next(loader).index.tolist()
    assert sorted(found) == rows.tolist()
    other = Loader(corpus, batch_tokens=20, rows=rows[:-1])
    with pytest.raises(CheckpointError, match="the data order changed"):
        other.load_state_dict(loader.state_dict())
    again = Loader(corpus, batch_tokens=20, rows=rows)
    again.load_state_dict(loader.state_dict())
    assert torch.equal(next(again).index, next(loader).index)


def test_what_was_seen_is_at_most_one_pass(corpus):
    few = seen_rows(Loader(corpus, batch_tokens=40), 2)
    first = Loader(corpus, batch_tokens=40)
    assert few.tolist() == sorted(next(first).index.tolist() + next(first).index.tolist())
    assert seen_rows(Loader(corpus, batch_tokens=40), 10_000).tolist() == list(range(100))


def groups(corpus: Corpus) -> Loader:
    return Loader(corpus, batch_tokens=1)


def test_hard_groups_are_drawn_and_none_twice(corpus):
    """The mean loss of what is drawn lies more than 3 standard errors above that of all; uniform draws do not."""
    found = {}
    for choice in ("loss", "uniform"):
        config = TrainConfig(round_choice=choice)
        rows, means = hard_rows(groups(corpus), lambda batch: float(batch.index[0]) / 50, config, make_generator(0))
        assert len(rows) == len(set(rows.tolist())) == 50
        assert means["all"] == pytest.approx(np.arange(100).mean() / 50)
        assert means["drawn"] == pytest.approx(rows.mean() / 50)
        found[choice] = (means["drawn"] - means["all"]) / (means["spread"] / math.sqrt(50))
    assert found["loss"] > 3 > abs(found["uniform"])


def test_the_first_draw_follows_the_softmax(corpus):
    """Chances of a single draw, against p = softmax(l / T)."""
    three = np.array([0, 1, 2])
    config = TrainConfig(round_share=0.01, round_temperature=2.0)
    counts, generator = np.zeros(3), make_generator(1)
    for _ in range(3000):
        loader = Loader(corpus, batch_tokens=1, rows=three)
        rows, _ = hard_rows(loader, lambda batch: 2.0 * float(batch.index[0]), config, generator)
        counts[rows] += 1
    expected = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    assert counts.sum() == 3000
    np.testing.assert_allclose(counts / 3000, expected, atol=0.03)


def rounds(out: Path, **changes: Any) -> TrainingRun:
    recipe = {**SMALL, "train": {"rounds": 3, "round_elements": 1, **changes}}
    return TrainingRun(from_dict(Recipe, recipe), out, device="cpu")


@pytest.mark.parametrize("learn", ["answers", "all"])
def test_human_texts_and_answers_that_learn_apart_are_drawn_apart(learn, tmp_path):
    """Each keeps its half, though an answer teaches slots besides, so that its loss is several times as large."""
    targets = tmp_path / "targets.jsonl"
    pairs = [{"prompt": e.prompt, "text": e.text} for e in read("builtin:weather", "train", 30)]
    targets.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = small(1, "aligned", consensus="given", targets=str(targets), alignment={"slots_learn": learn})
    recipe["aligned"] |= {"causal": True}
    recipe["train"] = {"rounds": 2, "round_elements": 1, "round_temperature": 0.01}
    asked = TextParts.resolved(from_dict(Recipe, recipe), print)
    parts = TextParts.prepared(asked, tmp_path, torch.device("cpu"), Watch(Clock()))
    second = parts.specs()[1]
    corpus, loader = second.corpus(), lambda: parts.loader(second.corpus(), 0)
    seen = seen_rows(loader(), 1000)
    drawn = parts.rows_of_round(second, loader(), 1000, 0, begun=False)
    assert sorted(set(drawn) & set(seen)) == drawn.tolist()
    counts = [int((corpus.tags[rows] == CONSENSUS).sum()) for rows in (drawn, seen)]
    assert counts[1] >= 20 and len(seen) - counts[1] >= 10
    halves = (round(0.5 * counts[1]), round(0.5 * (len(seen) - counts[1])))
    assert ((counts[0], len(drawn) - counts[0]) == halves) == (learn == "answers")
    assert set(alike(seen, corpus, apart=True)) == {"human texts", "answers"}
    assert list(alike(seen[corpus.tags[seen] == CONSENSUS], corpus, apart=True)) == ["answers"]


def test_rounds_share_the_steps_of_their_stage(tmp_path):
    run = finish(rounds(tmp_path / "run"))
    assert run.plan == {"teacher": 7, "teacher-2": 3, "teacher-3": 2}
    second, third = (np.load(tmp_path / "run" / "rounds" / f"teacher-{k}.npy") for k in (2, 3))
    assert 0 < len(third) < len(second) < 200 and set(third) <= set(second)
    assert [row["stage"] for row in read_log(tmp_path / "run")[0]] == ["teacher"] * 7 + ["teacher-2"] * 3 + [
        "teacher-3"
    ] * 2


def test_a_drafter_has_no_rounds(tmp_path):
    recipe = {**SMALL, "teacher": {**SMALL["teacher"], "draft_horizon": 2}, "train": {"rounds": 2}}
    run = TrainingRun(from_dict(Recipe, recipe), tmp_path / "run", device="cpu")
    finish(run)
    assert list(run.plan) == ["teacher", "teacher-2", "drafter"]


@pytest.mark.parametrize("at", [3, 8, 11])
def test_an_interrupted_run_ends_as_one_that_was_not(at, tmp_path):
    finish(rounds(tmp_path / "whole"))
    stop(rounds(tmp_path / "parted"), at)
    finish(TrainingRun(None, tmp_path / "parted", resume=True, device="cpu"))
    assert same_weights(tmp_path / "whole", tmp_path / "parted")


def test_a_run_keeps_its_rounds(tmp_path):
    stop(rounds(tmp_path / "run"))
    file = tmp_path / "run" / "recipe.json"
    file.write_text(file.read_text().replace('"rounds": 3', '"rounds": 2'))
    with pytest.raises(CheckpointError, match=r"has another train\.rounds"):
        finish(TrainingRun(None, tmp_path / "run", resume=True, device="cpu"))


@pytest.mark.parametrize("content", [b"", b"rows", np.arange(3.0).tobytes()])
def test_damaged_rows_are_told(content, tmp_path):
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "teacher-2.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"teacher-2\.npy is damaged"):
        kept_rows(tmp_path, "teacher-2", lambda: np.arange(3), 10)


def test_rows_that_are_gone_are_told_once_their_round_has_begun(tmp_path):
    with pytest.raises(CheckpointError, match=r"teacher-2\.npy is missing"):
        kept_rows(tmp_path, "teacher-2", lambda: np.arange(3), 10, begun=True)
    assert not (tmp_path / "rounds").exists()
    assert kept_rows(tmp_path, "teacher-2", lambda: np.arange(3), 10).tolist() == [0, 1, 2]


def test_no_more_groups_are_judged_than_there_is_time_for(corpus):
    config, seen = TrainConfig(), []

    def loss(batch):
        seen.append(int(batch.index[0]))
        return 1.0

    rows, _ = hard_rows(groups(corpus), loss, config, make_generator(0), lambda num: num >= 10)
    assert len(seen) == 10 and len(rows) == 5 and set(rows.tolist()) <= set(seen)


@pytest.mark.parametrize("rows", [[3, 2], [0, 10], [-1, 2], [1, 1]])
def test_rows_of_another_corpus_are_told(rows, tmp_path):
    (tmp_path / "rounds").mkdir()
    np.save(tmp_path / "rounds" / "policy-2.npy", np.array(rows))
    with pytest.raises(CheckpointError, match="holds no rows of the run's corpus"):
        kept_rows(tmp_path, "policy-2", lambda: np.arange(3), 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"rounds": 17},
        {"round_share": 0.0},
        {"round_choice": "hard"},
        {"round_temperature": 0.0},
        {"round_temperature": math.inf},
        {"round_elements": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="round"):
        TrainConfig(**wrong)
