"""A training in one call: what it refuses."""

from typing import Any

import pytest

import manta
from manta.errors import UsageError

TINY: dict[str, Any] = {
    "num_examples": 120,
    "vocab_size": 512,
    "size": "nano",
    "family": "ar",
    "batch_tokens": 512,
    "teacher": {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1},
}


def test_a_continued_run_takes_its_own_recipe_and_no_other(tmp_path):
    out = tmp_path / "run"
    manta.train("builtin:weather", out, num_steps=5, progress=False, **TINY)
    with pytest.raises(UsageError, match=r"another batch_tokens; leave that out"):
        manta.train("builtin:weather", out, resume=True, progress=False, batch_tokens=1024)
    with pytest.raises(UsageError, match=r"another data"):
        manta.train("builtin:sudoku4", out, resume=True, progress=False)
    again: dict[str, Any]
    for again in ({}, {"num_steps": 5}, {**TINY, "num_steps": 5}):
        assert manta.train("builtin:weather", out, resume=True, progress=False, **again).family == "ar"


def test_a_file_of_the_lock_s_name_that_holds_something_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty: it holds \.lock"):
        manta.train("builtin:nosuch", tmp_path, num_steps=5, progress=False)
    assert (tmp_path / ".lock").read_text() == "mine"
