"""Corpora whose texts are as short as they may be, from the file to the text."""

import json

import pytest

from manta.config import from_dict
from manta.hub import load
from manta.recipes import Recipe, TrainingRun

from .small import finish, small

WORDS = ["no", "yes", "perhaps", "not today", "ask again"]


@pytest.mark.parametrize("family", ["manta", "aligned", "ar"])
def test_answers_of_a_word_or_two_train_a_model_and_its_teacher(tmp_path, family):
    rows = [{"prompt": f"{i} or {i + 1}", "text": WORDS[i % 5]} for i in range(80)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    consensus = "none" if family == "ar" else "teacher"
    settings = {"data": str(tmp_path / "data.jsonl"), "family": family, "consensus": consensus}
    run = finish(TrainingRun(from_dict(Recipe, small(1, **settings)), tmp_path / "run"))
    assert len(load(run.out, device="cpu").write(["3 or 4"])) == 1
