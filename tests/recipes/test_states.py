"""Which kind of state data are, and what is refused of one that has no such thing."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manta.bench.planning.unread import unread
from manta.cli import main
from manta.errors import UsageError
from manta.recipes import states
from manta.recipes.states import STATES, State, state_of


@pytest.mark.parametrize(
    ("data", "family", "state"),
    [
        ("mine.txt", None, "text"),
        ("builtin:weather", "ar", "text"),
        ("builtin:shapes", None, "image"),
        ("builtin:shapes", "joint", "joint"),
        ("images:folder", None, "image"),
        ("mine.npz", None, "image"),
        ("restore:folder", None, "photo"),
        ("restore:mine.npz", None, "photo"),
    ],
)
def test_a_name_of_data_tells_their_state(data, family, state):
    assert state_of(data, family) == state


def test_a_row_of_the_table_is_enough_to_know_data_of_its_own(monkeypatch):
    row = State(words="tunes", use="", recipe="types:SimpleNamespace", parts="", data=f"{__name__}:is_tune")
    monkeypatch.setattr(states, "STATES", {**STATES, "tune": row})
    assert state_of("tune:mine") == "tune" and state_of("mine.txt") == "text"


def is_tune(name: str) -> bool:
    return name.startswith("tune:")


def test_a_state_that_no_plan_knows_is_named(monkeypatch):
    class Resolving:
        resolved = staticmethod(lambda recipe, tell: recipe)

    @dataclass(frozen=True)
    class Tune:
        state: str = "tune"

    row = SimpleNamespace(words="tunes", load=lambda: Resolving)
    for module in ("bench.planning.unread", "recipes.states"):
        monkeypatch.setattr(f"manta.{module}.STATES", {"tune": row})
    recipe: Any = Tune()
    with pytest.raises(UsageError, match="what models of tunes need is not planned"):
        unread(recipe, torch.device("meta"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["convert", "m", "--operator", "linear", "--data", "restore:photos"], "no model of restored photographs is"),
        (["train", "builtin:shapes", "--from", "m"], "builtin:shapes is for a model of images; leave it out"),
        (["train", "builtin:weather", "--net", "dit"], "--net is for models of images without captions"),
        (["train", "restore:photos", "--family", "ar"], "--family is for models of texts, and restore:photos is not"),
    ],
)
def test_what_a_state_does_not_have_is_refused_by_name(argv, said, tmp_path, capsys):
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
