"""A corpus is read by its script, and no text of it counts as one word for want of spaces."""

import unicodedata

import pytest

from manta.metrics.words import normal, plain_words, split_words, words_of

CHINESE = "北京的春天公园很漂亮，每天都有很多游客来参观。"
JAPANESE = "今日はとても良い天気ですね。"
RUSSIAN = "Это страна под номером 3, и она очень большая."


@pytest.mark.parametrize(
    ("texts", "unit", "bleu", "ascii_"),
    [
        (["The Mill is a pub near Café Rouge.", "It is in the city centre, by a river. " * 4], *("words", "13a", True)),
        (["Près de la forêt, l'été dernier, où j'étais né."], *("words", "13a", False)),
        ([RUSSIAN], *("words", "13a", False)),
        (["오늘 날씨가 좋습니다"], *("words", "13a", False)),
        ([CHINESE, "ABC"], *("characters", "zh", False)),
        (["วันนี้อากาศดีมาก"], *("characters", "char", False)),
        (["The river 河 is long and the word for it is one character."], *("words", "13a", False)),
        (["👍", "!!!"], *("words", "13a", True)),
    ],
)  # fmt: skip
def test_the_letters_of_a_corpus_decide(texts: list[str], unit: str, bleu: str, ascii_: bool) -> None:
    found = words_of(texts)
    assert (found.unit, found.bleu, found.ascii) == (unit, bleu, ascii_)


def test_japanese_is_read_by_mecab_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, wanted in ((None, "char"), (object(), "ja-mecab")):
        monkeypatch.setattr("manta.metrics.words.find_spec", lambda _, found=installed: found)
        assert words_of([JAPANESE]).bleu == wanted


def test_words_of_any_script() -> None:
    assert split_words("Don’t stop, 河北!") == ["Don", "’", "t", "stop", ",", "河", "北", "!"]
    assert split_words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"], "vowel signs are part of the word"
    assert split_words("e\u0301te\u0301 👍🏽 👨\u200d👩") == ["e\u0301te\u0301", "👍", "🏽", "👨\u200d", "👩"]
    assert split_words("ที่ดี") == ["ที่", "ดี"], "marks stay with their letter"
    assert split_words(" \n\t ") == split_words("") == []
    assert plain_words("Это, 3-Й раз: 河!") == ["это", "3", "й", "раз", "河"]


def test_passages_and_beginnings_stand_as_they_are() -> None:
    words, characters = words_of(["plain text"]), words_of([CHINESE])
    assert words.first("a  b\nc d", 3) == "a  b\nc" and words.first("a b", 5) == "a b"
    assert words.passages("a  b\nc d e", 2) == ["a  b", "c d"]
    assert characters.first("北京 的春天", 3) == "北京 的"
    assert characters.passages("北京 的春天", 2) == ["北京", "的春"]


def test_composed_and_decomposed_are_one_text() -> None:
    decomposed = unicodedata.normalize("NFD", "été")
    assert decomposed != "été" and normal(decomposed) == "été"
