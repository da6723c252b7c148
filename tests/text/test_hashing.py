from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.text.hashing import HashIndex, digest, split_of


def test_digest_is_stable_and_keeps_parts_apart():
    assert digest("prompt", "text") == 0xBCAA09C0D2B728E9
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("", "abc"), digest(None, "abc")}) == 5


def test_splits_have_their_shares():
    found = [split_of(f"prompt {i}") for i in range(20_000)]
    assert abs(found.count("train") / 20_000 - 0.90) < 0.01
    assert abs(found.count("dev") / 20_000 - 0.05) < 0.006
    assert abs(found.count("test") / 20_000 - 0.05) < 0.006


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30), max_size=12))
def test_index_equals_a_dictionary(chunks):
    index, reference = HashIndex(), {}
    for chunk in chunks:
        fresh = []
        for key in chunk:
            fresh.append(key not in reference)
            reference.setdefault(key, len(reference))
        ranks, is_new = index.add(chunk)
        assert ranks.tolist() == [reference[key] for key in chunk]
        assert is_new.tolist() == fresh
        assert len(index) == len(reference)


def test_index_keeps_few_runs():
    index, random = HashIndex(), np.random.default_rng(0)
    for size in (100, 1, 1, 50, 3, *[20] * 100):
        index.add([int(key) for key in random.integers(0, 2**63, size)])
    sizes = [len(keys) for keys, _ in index._runs]
    assert sum(sizes) == len(index) == 2155
    assert all(bigger > 2 * smaller for bigger, smaller in pairwise(sizes))
