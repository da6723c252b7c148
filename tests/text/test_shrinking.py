"""A smaller vocabulary: what is kept is reached, every text comes back, and coverage is what encoding anew finds."""

import random

import pytest

from manta.errors import ConfigError, DataError
from manta.text import Tokenizer, shrink
from manta.text.tokenizers import SPECIALS

SENTENCE = "the cat sat on a mat while rain fell over green hills and rivers ran to seas of salt"


def texts(num: int = 400) -> list[str]:
    """Some words often, some seldom."""
    rng = random.Random(0)
    words = SENTENCE.split()
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=12)) for _ in range(num)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(texts(), 512)


def test_everything_that_is_needed_is_kept_and_nothing_else(tokenizer):
    found = shrink(tokenizer, texts(), 0.6)
    assert len(found.kept) == found.tokenizer.vocab_size < tokenizer.vocab_size
    assert list(found.kept[: len(SPECIALS)]) == [0, 1, 2, 3]
    old, new = (each.backend.get_vocab() for each in (tokenizer, found.tokenizer))
    assert all(old[name] == found.kept[index] for name, index in new.items())
    merged = [index for name, index in new.items() if len(name) > 1 and index >= len(SPECIALS)]
    for index in merged:  # each is what its own text is encoded as
        assert found.tokenizer.encode(found.tokenizer.token(index), start=False) == [index]
    assert found.coverage >= 0.6


def test_coverage_is_counted_by_hand():
    """Old tokens that are one token still, of all old tokens, over the texts encoded anew."""
    found = shrink(tokenizer := Tokenizer.train(texts(), 512), texts(50), 0.8)
    kept = whole = 0
    for text in texts(50):
        spans = []
        for each in (tokenizer, found.tokenizer):
            names = {index: name for name, index in each.backend.get_vocab().items()}
            end, ends = 0, set()
            for index in each.encode(text):
                ends.add((end, end + len(names[index])))
                end += len(names[index])
            spans.append(ends)
        kept, whole = kept + len(spans[0] & spans[1]), whole + len(spans[0])
    assert found.coverage == pytest.approx(kept / whole)
    assert found.tokens_before == whole
    assert found.tokens_after == sum(len(found.tokenizer.encode(text)) for text in texts(50))
    assert found.num_bytes == sum(len(text.encode()) for text in texts(50))


def test_it_is_the_smallest_that_covers(tokenizer):
    sizes = [shrink(tokenizer, texts(), coverage).tokenizer.vocab_size for coverage in (0.3, 0.6, 0.9, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    least = shrink(tokenizer, texts(), 0.6)
    assert least.coverage - 0.6 < 0.25


def test_all_tokens_of_the_texts_stay_at_full_coverage(tokenizer):
    found = shrink(tokenizer, texts(), 1.0)
    assert found.coverage == 1.0
    assert found.tokens_after == found.tokens_before


@pytest.mark.parametrize("text", ["", " ", "Zürich 東京 \x00 🙂\n\n  two  spaces", "the cat's mats"])
def test_every_text_comes_back(tokenizer, text):
    small = shrink(tokenizer, texts(), 0.3).tokenizer
    assert small.decode(small.encode(text)) == text


def test_it_is_a_tokenizer_like_any_other(tokenizer, tmp_path):
    small = shrink(tokenizer, texts(), 0.5).tokenizer
    small.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint() == small.fingerprint()


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.01])
def test_a_coverage_out_of_range_is_refused(tokenizer, coverage):
    with pytest.raises(ConfigError, match="coverage should be above 0 and at most 1"):
        shrink(tokenizer, texts(), coverage)


def test_no_text_and_no_merges_are_refused(tokenizer):
    with pytest.raises(DataError, match="no text to measure"):
        shrink(tokenizer, ["", ""], 0.5)
    with pytest.raises(ConfigError, match="a token for each symbol"):
        shrink(Tokenizer.of_symbols("abc"), ["abc"], 0.5)
