"""Advice before a run begins: prose needs more than minutes, unless it is written left to right."""

from typing import Any

import pytest

from manta.recipes import Recipe, TrainingRun
from manta.recipes.advice import advice
from manta.recipes.recipe import resolve
from manta.text import CorpusReport

PROSE, PAIRS = CorpusReport(rows=10), CorpusReport(rows=10, prompts=3)


def told(report: CorpusReport = PROSE, **recipe: Any) -> tuple[str, ...]:
    return advice(resolve(Recipe(**{"data": "mine.txt", "num_steps": 100} | recipe)), report)


@pytest.mark.parametrize(("family", "name"), [("manta", "a Manta-LM"), ("masked", "a masked model")])
def test_parallel_families_on_prose_for_a_little_while(family, name):
    (line,) = told(family=family)
    assert name in line and line.endswith("--family ar is the one that first does")
    assert told(family=family, num_steps=None, time_budget="4m") == (line,)
    assert told(family=family, num_steps=None, time_budget="5h") == ()
    assert told(family=family, num_steps=10**6) == ()


def test_nothing_is_said_where_nothing_is_known_against_it():
    for family in ("ar", "block", "decoder"):
        assert told(family=family) == ()
    assert told(PAIRS) == ()
    assert told(data="builtin:sudoku4", family="masked") == ()


def test_it_is_said_before_the_first_step(tmp_path):
    (tmp_path / "prose.txt").write_text("It rained all day, and the cat sat by the window.\n" * 40)
    recipe = Recipe(data=str(tmp_path / "prose.txt"), family="masked", size="nano", num_steps=4, batch_tokens=64)
    events = TrainingRun(recipe, tmp_path / "run", device="cpu").events()
    said = [str(getattr(event, "text", "step")) for event in events]
    at = next(i for i, line in enumerate(said) if line.startswith("advice: these texts have no prompts"))
    assert at < said.index("step")
