import pytest

from manta.errors import DataError
from manta.text import Example, Tokenizer, build, describe


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat"] * 20, 512)


def test_figures(tokenizer):
    examples = [Example("the cat", "p"), Example("the cat", "p"), Example("the mat sat " * 9, "q"), Example(" ", "q")]
    found = describe(examples, tokenizer, max_prompt=4, max_text=10)
    lengths = [len(tokenizer.encode(e.text)) for e in examples[:3]]
    used = {i for e in examples[:3] for i in (*tokenizer.encode(e.text), *tokenizer.encode(str(e.prompt)))}
    assert (found.examples, found.prompts) == (4, 2)
    assert (found.empty, found.duplicates, found.long_texts, found.rows) == (1, 1, 1, 1)
    assert found.bytes_per_token == (7 + 7 + 9 * 12) / sum(lengths)
    assert found.unused_vocabulary_share == pytest.approx(1 - len(used) / (tokenizer.vocab_size - 4))
    assert found.text_quantiles[0.0] == found.text_quantiles[0.5] == lengths[0]
    assert found.text_quantiles[0.75] == found.text_quantiles[1.0] == lengths[2]


def test_what_becomes_of_examples_is_what_building_the_corpus_makes_of_them(tokenizer, tmp_path):
    examples = [Example("the cat", "p"), Example("the cat", "p"), Example("the mat sat " * 9, "q"), Example(" ", "q")]
    examples += [Example("the mat", "the cat sat on the mat " * 9), Example("the cat sat on " * 20), Example("on the")]
    found = describe(examples, tokenizer, max_prompt=4, max_text=10)
    report = build(examples, tokenizer, tmp_path / "corpus", max_prompt=4, max_text=10)
    for name in ("empty", "duplicates", "long_prompts", "long_texts", "windowed", "rows"):
        assert getattr(found, name) == getattr(report, name) > 0, name
    assert found.without_prompt == 2


def test_texts_outside_the_vocabulary_show(tokenizer):
    inside = describe([Example("the cat sat on the mat")], tokenizer, 0, 99)
    outside = describe([Example("日本語の文章です")], tokenizer, 0, 99)
    assert outside.bytes_per_token < 1.01 < 2.5 < inside.bytes_per_token
    assert inside.prompt_quantiles == {}


def test_no_text(tokenizer):
    with pytest.raises(DataError, match="none of 1 examples has text"):
        describe([Example("")], tokenizer, 1, 1)
