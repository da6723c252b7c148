import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from manta.errors import DataError, ModelError, UsageError
from manta.metrics.bootstrap import Interval
from manta.metrics.diversity import repeated_share, token_entropy
from manta.metrics.perplexity import JudgedQuality, judge_quality
from manta.runtime import make_generator

TEXTS = ["the mill is a pub", "zizzi is cheap", "a pub near the river and the mill and the sea"]


def unigram(chances: dict[str, float], first: bool = True) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    """A judge of known probabilities of words, with or without one for the first word."""

    def judge(texts: list[str]) -> tuple[Tensor, Tensor]:
        words = [text.split()[0 if first else 1 :] for text in texts]
        nats = [-sum(math.log(chances[word]) for word in each) for each in words]
        return torch.tensor(nats, dtype=torch.float64).clamp(min=0), torch.tensor([len(each) for each in words])

    return judge


def uniform(size: int, first: bool = True) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    return unigram({word: 1 / size for text in [*TEXTS, "loop"] for word in text.split()}, first)


def quality(texts: list[str], judge=None, **options) -> JudgedQuality:
    return judge_quality(texts, judge or uniform(50), judge_name="oracle", generator=make_generator(0), **options)


def test_a_uniform_judge_finds_as_many_words_as_it_knows() -> None:
    found = quality(TEXTS).perplexity
    assert (found.value, found.low, found.high) == pytest.approx((50, 50, 50))


def test_it_is_the_exponential_of_the_cross_entropy_of_all_words() -> None:
    counts = Counter(word for text in TEXTS for word in text.split())
    total = sum(counts.values())
    found = quality(TEXTS, unigram({word: n / total for word, n in counts.items()}))
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert found.perplexity.value == pytest.approx(math.exp(entropy))
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high
    assert found.tokens == total


def test_a_word_and_a_byte_cost_the_same_whatever_the_judge_calls_a_token() -> None:
    halves = uniform(50)
    twice = quality([*TEXTS, ""], lambda texts: (halves(texts)[0], 2 * halves(texts)[1]))
    assert twice.perplexity.value == pytest.approx(50**0.5)
    assert twice.a_word == pytest.approx(50) == quality(TEXTS).a_word
    letters, words = sum(map(len, TEXTS)), sum(len(text.split()) for text in TEXTS)
    assert twice.bits_a_byte == pytest.approx(words * math.log2(50) / letters)
    assert (twice.row()["perplexity_per_word"], twice.row()["bits_per_byte"]) == (twice.a_word, twice.bits_a_byte)
    # Words of a text of which the judge judged nothing are not counted.
    assert quality([*TEXTS, "the"], uniform(50, first=False)).words == words


def test_entropy_and_repetition_are_of_the_same_texts() -> None:
    texts = [*TEXTS, "loop " * 20, ""]
    found = quality(texts)
    assert found.entropy == pytest.approx(token_entropy(texts[:-1]))
    assert found.repetition == pytest.approx(repeated_share(texts[:-1]))
    letters = quality(texts, tokenize=list)
    assert letters.entropy == pytest.approx(token_entropy(texts[:-1], list))
    assert letters.perplexity == found.perplexity


def test_batches_change_nothing() -> None:
    judge = unigram({word: 1 / (2 + len(word)) for text in TEXTS for word in text.split()})
    assert quality(TEXTS, judge, batch_size=1) == quality(TEXTS, judge)


def test_texts_without_words_are_left_out_and_counted() -> None:
    seen = []

    def judge(texts: list[str]) -> tuple[Tensor, Tensor]:
        seen.extend(texts)
        return uniform(50)(texts)

    found = quality(["", *TEXTS, "  \n"], judge)
    assert seen == TEXTS
    assert (found.texts, found.empty, found.unjudged) == (5, 2, 0)


def test_a_judge_need_not_judge_the_first_word() -> None:
    found = quality([*TEXTS, "loop"], uniform(50, first=False))
    assert found.unjudged == 1
    assert found.tokens == sum(len(text.split()) - 1 for text in TEXTS)
    assert found.perplexity.value == pytest.approx(50)
    with pytest.raises(DataError, match="0 of 2"):
        quality(["loop", "loop"], uniform(50, first=False))


def test_a_cut_holds_for_judge_entropy_and_repetition_alike() -> None:
    texts = ["the  mill\nis a pub", "zizzi is cheap", "a pub near the river"]
    found = quality(texts, max_words=3)
    short = ["the  mill\nis", "zizzi is cheap", "a pub near"]
    assert found == replace(quality(short), max_words=3, cut=2)
    assert "first 3 words (2 texts cut)" in str(found)
    assert "whole texts" in str(quality(texts))


def test_a_perplexity_is_printed_with_entropy_and_repetition() -> None:
    found = quality([*TEXTS, "loop " * 8])
    for part in (
        "perplexity 50 [50, 50]",
        "entropy 1.170 nats",
        "26.67% repeated",
        "judge oracle",
        "4 texts",
        "whole texts",
    ):
        assert part in str(found) and part in repr(found)
    row = found.row()
    assert (row["perplexity"], row["entropy"], row["repeated_4"]) == pytest.approx(
        (50, found.entropy, found.repetition)
    )


@pytest.mark.parametrize("missing", [{"entropy": None}, {"repetition": None}, {"entropy": None, "repetition": None}])
def test_a_perplexity_alone_is_not_printed(missing: dict[str, None]) -> None:
    found = replace(quality(TEXTS), **missing)
    with pytest.raises(UsageError, match="not shown without"):
        print(found)
    with pytest.raises(UsageError):
        f"{found}"
    with pytest.raises(UsageError):
        found.row()
    assert "withheld" in repr([found]) and "50" not in repr([found])


def test_a_loop_is_likely_and_the_entropy_shows_it() -> None:
    # The judge of a bigram model: what has just been said is likely to be said again.
    def judge(texts: list[str]) -> tuple[Tensor, Tensor]:
        words = [text.split() for text in texts]
        nats = [sum(0.1 if b == a else 4.0 for a, b in pairwise(each)) for each in words]
        return torch.tensor(nats), torch.tensor([len(each) - 1 for each in words])

    sound, loops = quality(TEXTS, judge), quality(["loop " * 20, "sea " * 20], judge)
    assert loops.perplexity.value < sound.perplexity.value / 10
    assert loops.entropy == 0
    assert loops.repetition is not None and loops.repetition > 0.9 and sound.repetition == 0


@pytest.mark.parametrize(
    "answer",
    [
        (torch.ones(2), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3), torch.ones(2, dtype=torch.int64)),
        (torch.tensor([1.0, math.inf, 1.0]), torch.ones(3, dtype=torch.int64)),
        (torch.tensor([1.0, -1.0, 1.0]), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3), torch.tensor([1, -1, 1])),
        (torch.ones(3), torch.tensor([1, 0, 1])),
    ],
)
def test_a_judge_that_answers_nonsense(answer: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ModelError, match="the judge"):
        quality(TEXTS, lambda _: answer)


def test_wrong_input() -> None:
    with pytest.raises(DataError, match="list of texts"):
        quality([])
    with pytest.raises(DataError, match="none of 2"):
        quality(["", " "])
    with pytest.raises(UsageError, match="max_words"):
        quality(TEXTS, max_words=0)
    with pytest.raises(UsageError, match="batch_size"):
        quality(TEXTS, batch_size=0)


def test_an_interval_is_of_the_perplexity_itself() -> None:
    found = quality(TEXTS, unigram({word: 1 / (2 + len(word)) for text in TEXTS for word in text.split()}), level=0.5)
    assert isinstance(found.perplexity, Interval) and found.perplexity.level == 0.5
    assert 1 < found.perplexity.low < found.perplexity.high
