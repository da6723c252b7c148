from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.text import medoids, read
from manta.text.consensus import similarity

WORDS = st.lists(st.sampled_from(["a", "B", "b", "cat", "the", "."]), max_size=8).map(" ".join)


def slow_f1(a: list, b: list) -> float:
    if not a and not b:
        return float("nan")
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def slow_similarity(a: str, b: str) -> float:
    a_words, b_words = a.lower().split(), b.lower().split()
    one = 1.0 if not a_words and not b_words else slow_f1(a_words, b_words)
    two = slow_f1(list(pairwise(a_words)), list(pairwise(b_words)))
    return (one + (one if np.isnan(two) else two)) / 2


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_similarity_equals_its_slow_reference(candidates, references):
    expected = [[slow_similarity(a, b) for b in references] for a in candidates]
    np.testing.assert_allclose(similarity(candidates, references), expected, atol=1e-6)


def test_similarity_counts_repeats_and_order_but_not_case():
    assert similarity(["the cat sat"], ["The cat sat"])[0, 0] == 1
    assert similarity(["the the the"], ["the"])[0, 0] == pytest.approx((2 / 4 + 0) / 2)
    assert similarity(["a b c"], ["c b a"])[0, 0] == pytest.approx((1 + 0) / 2)


def test_the_medoid_is_most_like_the_others():
    group = ["x y z", "the cat sat here", "the cat sat there", "the cat sat"]
    assert medoids({"p": group, "q": ["only"], "none": []}) == {"p": "the cat sat", "q": "only"}
    scores = [np.mean([slow_similarity(a, b) for b in group if b is not a]) for a in group]
    assert group[int(np.argmax(scores))] == "the cat sat"


def test_extra_candidates_are_judged_by_the_references_alone():
    group = {"p": ["the cat sat here", "the cat sat there"]}
    assert medoids(group, {"p": ["the dog", "the cat sat"]})["p"] == "the cat sat"
    assert medoids(group, {"p": ["the cat"]})["p"] == "the cat sat here"
    crowd = ["a dog barked"] * 20
    assert medoids(group, {"p": crowd})["p"] == "the cat sat here"
    assert medoids({}, {"new": ["a b", "a b c", "z"]}) == {"new": "a b"}


def test_real_medoids_beat_other_humans(data_dir):
    path = data_dir / "e2e-dataset.zip"
    if not path.exists():
        pytest.skip(f"no {path}")
    groups: dict[str, list[str]] = {}
    for example in read(f"e2e:{path}", "dev"):
        groups.setdefault(str(example.prompt), []).append(example.text)
    chosen = medoids(groups)
    assert all(chosen[prompt] in group for prompt, group in groups.items())
    own = np.mean([similarity([chosen[p]], [r for r in g if r != chosen[p]] or g).mean() for p, g in groups.items()])
    first = np.mean([similarity([g[0]], [r for r in g[1:] if r != g[0]] or g).mean() for g in groups.values()])
    assert own > first + 0.05
