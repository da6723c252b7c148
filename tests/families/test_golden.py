"""The models that ship write what they wrote: exact tokens where the machine adds alike, most of them elsewhere."""

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from manta.hub import load, shipped

ROOT = Path(__file__).parents[2]
GOLDEN = runpy.run_path(str(ROOT / "benchmarks" / "golden.py"))
WAYS = [(model, way) for model, ways in GOLDEN["WAYS"].items() for way in ways]
ELSEWHERE = 0.8
"""Least share of equal tokens on a machine that adds in another order: a near tie there turns one text or two."""
pytestmark = pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")


@cache
def model_of(name: str) -> Any:
    return load(f"builtin:{name}", device="cpu")


def golden_of(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("model", "way"), WAYS)
def test_a_model_writes_what_it_wrote(model, way):
    golden = golden_of(model)
    texts, wanted = GOLDEN["written"](model_of(model), model, way), golden["texts"][way]
    if GOLDEN["fingerprint"]() == golden["fingerprint"]:
        assert texts == wanted, "the texts have changed; if they should have: python benchmarks/golden.py"
    pairs = list(zip(texts, wanted, strict=True))
    equal = sum(one == two for ours, theirs in pairs for one, two in zip(ours, theirs, strict=False))
    assert equal >= ELSEWHERE * sum(max(len(ours), len(theirs)) for ours, theirs in pairs)


@pytest.mark.parametrize("model", GOLDEN["WAYS"])
def test_every_way_is_told_apart(model):
    golden = golden_of(model)["texts"]
    assert list(golden) == list(GOLDEN["WAYS"][model])
    assert len({json.dumps(texts) for texts in golden.values()}) == len(golden)
