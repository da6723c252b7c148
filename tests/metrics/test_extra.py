"""Without the extra `eval`, a figure that needs it says how to install it, and the others are there."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from manta.errors import DataError
from manta.metrics import (
    MauveConfig,
    bootstrap_mean,
    corpus_figures,
    find_collapse,
    jackknife,
    mauve,
    spearman,
    wilson,
)
from manta.runtime import make_generator

VALUES = torch.arange(5.0)
NEEDS_SCIPY: dict[str, Callable[[], Any]] = {
    "bootstrap": lambda: bootstrap_mean(VALUES, generator=make_generator(0)),
    "rank correlation": lambda: spearman(VALUES, VALUES, generator=make_generator(0)),
    "guard": lambda: find_collapse(["a b"], corpus_figures(["a b", "c d"], training=None), training=None),
}


@pytest.mark.parametrize("what", NEEDS_SCIPY)
def test_scipy_is_named_with_its_command(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(DataError, match=rf"a {what} needs scipy; install it with: pip install 'manta\[eval\]'"):
        NEEDS_SCIPY[what]()


def test_scikit_learn_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(DataError, match=r"k-means needs scikit-learn; install it with: pip install 'manta\[eval\]'"):
        mauve(VALUES[:, None], VALUES[:, None], generator=make_generator(0), config=MauveConfig(min_texts=2))


def test_closed_forms_need_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert wilson(2, 5).value == 0.4
    assert jackknife(1.0, VALUES).value == 1.0
