import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.errors import DataError, UsageError
from manta.metrics.guards import (
    CorpusFigures,
    GuardConfig,
    _duplicates,
    _group_sizes,
    _tail,
    corpus_figures,
    find_collapse,
)
from manta.text.sources import read

VOCABULARY = [f"w{number}" for number in range(600)]
CHANCES = [1 / (number + 5) for number in range(600)]


def prose(count: int, seed: int) -> list[str]:
    """Texts of 40 to 60 words by Zipf's law."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, CHANCES, k=rng.randint(40, 60))) for _ in range(count)]


TRAINING, HELD_OUT, CLEAN = prose(800, 1), prose(400, 2), prose(200, 3)


@pytest.fixture(scope="module")
def corpus() -> CorpusFigures:
    return corpus_figures(HELD_OUT, training=TRAINING)


def faults(texts: list[str], corpus: CorpusFigures) -> list[str]:
    return [finding.fault for finding in find_collapse(texts, corpus, training=TRAINING)]


def repeating(text: str) -> str:
    """The same words, so the same entropy, in an order that says four of them twice over."""
    words = text.split()
    twice = [word for word, count in Counter(words).items() if count > 1][:4]
    for word in twice * 2:
        words.remove(word)
    return " ".join(twice * 2 + words)


def looping(text: str) -> str:
    """As many words, the first five over and over."""
    words = text.split()
    return " ".join(words[number % 5] for number in range(len(words)))


def narrow(text: str) -> str:
    """As many words, but eight different ones, in an order in which no 4-gram returns."""
    rng = random.Random(text)
    eight = rng.sample(VOCABULARY, 8)
    words, seen = eight[:3], set()
    while len(words) < len(text.split()):
        word = rng.choice(eight)
        if (gram := (*words[-3:], word)) not in seen:
            words.append(word)
            seen.add(gram)
    return " ".join(words)


def salad(text: str) -> str:
    """As many words, all different."""
    return " ".join(random.Random(text).sample(VOCABULARY, len(text.split())))


PLANTS = {
    "repetition": lambda texts: [repeating(text) for text in texts],
    "copying": lambda texts: TRAINING[: len(texts)],
    "entropy_low": lambda texts: [narrow(text) for text in texts],
    "entropy_high": lambda texts: [salad(text) for text in texts],
    "empty": lambda texts: [" "] * len(texts),
    "duplicates": lambda texts: texts[:1] * len(texts),
}


def test_clean_texts_raise_no_finding(corpus: CorpusFigures) -> None:
    assert faults(CLEAN, corpus) == []
    assert faults(CLEAN[:10], corpus) == []


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("fault", PLANTS)
def test_each_collapse_is_found_by_its_own_guard_alone(fault: str, share: float, corpus: CorpusFigures) -> None:
    planted = round(share * len(CLEAN))
    texts = PLANTS[fault](CLEAN[:planted]) + CLEAN[planted:]
    found = find_collapse(texts, corpus, training=TRAINING)
    assert [finding.fault for finding in found] == [fault]
    assert found[0].share == pytest.approx(share, abs=0.1)  # a few texts have no four words twice
    assert found[0].share > found[0].limit
    assert f"{found[0].share:.1%}" in str(found[0])


def test_a_stretch_of_a_training_text_is_copied(corpus: CorpusFigures) -> None:
    pairs = list(zip((text.split() for text in CLEAN), (text.split() for text in TRAINING), strict=False))
    thirteen = [" ".join(text[:20] + source[5:18] + text[33:]) for text, source in pairs]
    assert faults(thirteen, corpus) == ["copying"]
    twelve = [" ".join(text[:20] + source[5:17] + text[32:]) for text, source in pairs]
    assert faults(twelve, corpus) == []


def test_a_loop_is_found_for_what_it_is(corpus: CorpusFigures) -> None:
    assert faults([looping(text) for text in CLEAN], corpus) == ["repetition", "entropy_low"]


def test_length_alone_is_no_fault(corpus: CorpusFigures) -> None:
    assert faults([" ".join(text.split()[:25]) for text in CLEAN], corpus) == []
    assert faults([text.split()[0] + str(number) for number, text in enumerate(CLEAN)], corpus) == []


def test_thresholds_are_those_of_the_corpus() -> None:
    """A corpus that repeats itself, copies and has duplicates allows as much of each."""
    odd = [repeating(text) for text in HELD_OUT[:200]] + TRAINING[:100] + HELD_OUT[200:210] * 10
    alike = [repeating(text) for text in CLEAN[:100]] + TRAINING[100:150] + CLEAN[100:105] * 10
    assert faults(alike, corpus_figures(odd, training=TRAINING)) == []
    strict = corpus_figures(HELD_OUT, training=TRAINING)
    assert faults(alike, strict) == ["repetition", "copying", "duplicates"]


def test_few_texts_prove_little(corpus: CorpusFigures) -> None:
    assert faults([*CLEAN[:2], repeating(CLEAN[3])], corpus) == []
    assert faults([repeating(text) for text in CLEAN[:5]], corpus) == ["repetition"]


def test_the_chance_of_so_many_faults() -> None:
    for hits in range(8):
        exact = sum(math.comb(7, k) * 0.3**k * 0.7 ** (7 - k) for k in range(hits, 8))
        assert _tail(hits, 7, 0.3) == pytest.approx(exact)
    assert _tail(3, 7, 1.2) == 1
    assert _tail(5000, 10_000, 0.5) == pytest.approx(0.504, abs=0.001)


def test_duplicates_are_compared_at_one_number_of_texts() -> None:
    rng = random.Random(0)
    poems = prose(300, 9)

    def some(count: int) -> list[str]:
        return rng.choices(poems, k=count)

    # 2,000 draws from 300 texts hold 85% duplicates, 60 draws a tenth of that; neither is a fault of the other.
    many, few = some(2000), some(60)
    assert find_collapse(many, corpus_figures(few, training=None), training=None) == []
    assert find_collapse(few, corpus_figures(many, training=None), training=None) == []
    found = find_collapse(few * 3, corpus_figures(many, training=None), training=None)
    assert [finding.fault for finding in found] == ["duplicates"]


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=7))
def test_the_expected_number_of_duplicates_is_the_mean_over_all_subsets(letters: list[str]) -> None:
    for size in range(1, len(letters) + 1):
        subsets = list(itertools.combinations(letters, size))
        mean = sum(size - len(set(subset)) for subset in subsets) / len(subsets)
        assert abs(_duplicates(_group_sizes(letters), size) - mean) <= 0.5 + 1e-9


def test_tokens_are_those_of_the_tokenizer_given() -> None:
    figures = corpus_figures(["abab cdcd", "abcd efgh"] * 50, training=None, tokenize=list)
    entropies = 4 / 9 * math.log(9 / 2) * 2 + 1 / 9 * math.log(9), math.log(9)
    assert figures.bars.offset == pytest.approx(sum(entropies) / 2)
    assert figures.bars.above == pytest.approx((entropies[1] - entropies[0]) / 2)
    assert [f.fault for f in find_collapse(["zzzz zzzz"] * 9, figures, training=None)] == ["repetition", "entropy_low"]


def test_without_training_texts_nothing_is_said_of_copying(corpus: CorpusFigures) -> None:
    figures = corpus_figures(HELD_OUT, training=None)
    assert find_collapse(TRAINING[:100], figures, training=None) == []
    with pytest.raises(UsageError, match="or to neither"):
        find_collapse(CLEAN, figures, training=TRAINING)
    with pytest.raises(UsageError, match="or to neither"):
        find_collapse(CLEAN, corpus, training=None)


def test_wrong_input(corpus: CorpusFigures) -> None:
    with pytest.raises(DataError, match="list of generated texts"):
        find_collapse([], corpus, training=TRAINING)
    with pytest.raises(DataError, match="none has a word"):
        corpus_figures(["", " "], training=None)
    with pytest.raises(DataError, match="no training texts"):
        find_collapse(CLEAN, corpus, training=iter([]))
    wrong: list[dict[str, Any]] = [{"quantile": 0.4}, {"tolerance": -0.1}, {"level": 1.0}, {"span": 0}]
    for each in wrong:
        with pytest.raises(UsageError, match="guards need"):
            GuardConfig(**each)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e2e:e2e-dataset.zip", "tinystories:tinystories_4MiB.txt.xz"])
def test_human_texts_raise_no_finding(data_dir, name: str) -> None:
    kind, file = name.split(":")
    if not (data_dir / file).exists():
        pytest.skip(f"no {file} in {data_dir}")
    train, test = (
        [example.text for example in read(f"{kind}:{data_dir / file}", split)] for split in ("train", "test")
    )
    figures = corpus_figures(test[::2], training=train)
    assert find_collapse(test[1::2], figures, training=train) == []
    found = find_collapse([looping(text) for text in test[1::2]], figures, training=train)
    assert {"repetition", "entropy_low"} <= {finding.fault for finding in found}
    assert "copying" in [finding.fault for finding in find_collapse(train[:200], figures, training=train)]
