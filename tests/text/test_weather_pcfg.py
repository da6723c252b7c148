import math
import random
from collections import Counter

import pytest

from manta.text.weather.pcfg import Grammar

DOMAINS = {"colour": ("red", "blue", None), "size": (1, 2, 3)}
LINES = (
    "Text -> 3: $Said(tone=plain) | 1: $Said(tone=loud)",
    "Said -> $Colour $Size $End | {colour=red} red $Size $End",
    "Colour -> {colour!=none} $Name | {colour=none} something",
    "Name -> {colour=red} red | {colour=blue} blue",
    "Size -> 2: {size=2/3} big | 1: {size=1/2} small | 1: {size=3} very big",
    "End tone=plain -> . |",
    "End tone=loud -> !",
)


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(LINES, DOMAINS, "Text")


def words(text: str) -> list[tuple[str, ...]]:
    return [(word,) for word in text.split()]


def test_probability_adds_up_the_derivations(grammar: Grammar) -> None:
    # red, 2: loud is 1/4; "red" arises in both alternatives of Said (1/2 + 1/2); big 2/3.
    assert grammar.probability(words("red big !"), (0, 1)) == pytest.approx(1 / 4 * 2 / 3)
    # red, 3: plain is 3/4, "big" 2/3 without "very", the full stop 1/2.
    assert grammar.probability(words("red big ."), (0, 2)) == pytest.approx(3 / 4 * 2 / 3 * 1 / 2)
    assert grammar.probability(words("red big"), (0, 2)) == pytest.approx(3 / 4 * 2 / 3 * 1 / 2)


@pytest.mark.parametrize("text", ["blue big .", "red very small .", "red big . .", "", "red", "red big ! ."])
def test_texts_outside_the_language_have_no_probability(grammar: Grammar, text: str) -> None:
    assert grammar.probability(words(text), (0, 1)) == 0


@pytest.mark.parametrize("point", [(0, 0), (0, 2), (1, 1), (2, 2)])
def test_enumeration_chart_and_samples_agree(grammar: Grammar, point: tuple[int, int]) -> None:
    language = grammar.enumerate(point)
    assert math.fsum(language.values()) == pytest.approx(1)
    for text, chance in language.items():
        assert grammar.probability([(word,) for word in text], point) == pytest.approx(chance)
    rng = random.Random(0)
    drawn = Counter(tuple(grammar.sample(point, rng)) for _ in range(4000))
    assert set(drawn) <= set(language)
    for text, chance in language.items():
        assert abs(drawn[text] / 4000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000) + 1e-9


def test_probability_adds_up_the_ways_to_cut_a_text() -> None:
    grammar = Grammar(("Text -> $Left $Right", "Left -> a | a b", "Right -> b c | c"), DOMAINS, "Text")
    assert grammar.probability(words("a b c"), (0, 0)) == pytest.approx(1 / 4 + 1 / 4)
    assert grammar.probability(words("a c"), (0, 0)) == pytest.approx(1 / 4)


def test_readings_are_the_records_that_derive_the_text(grammar: Grammar) -> None:
    for text in ("red big !", "something small .", "blue very big", "blue small !"):
        readings, _ = grammar.readings(words(text))
        for colour in range(3):
            for size in range(3):
                held = any(one[0] >> colour & 1 and one[1] >> size & 1 for one in readings)
                assert held == (grammar.probability(words(text), (colour, size)) > 0)


def test_reading_says_how_far_it_got(grammar: Grammar) -> None:
    readings, furthest = grammar.readings(words("red big fish"))
    assert not readings
    assert furthest == 2


def test_a_place_may_stand_for_several_words(grammar: Grammar) -> None:
    assert grammar.probability([("RED", "red"), ("big",), ("!",)], (0, 1)) == pytest.approx(1 / 4 * 2 / 3)


@pytest.mark.parametrize(
    "lines",
    [
        ("Text > a",),
        ("Text -> $Nothing",),
        ("Text -> {colour~red} a",),
        ("Text -> {shape=round} a",),
        ("Text -> {colour=green} a",),
        ("Text -> $Said(tone=low)", "Said tone=high -> a"),
    ],
)
def test_a_broken_grammar_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        Grammar(lines, DOMAINS, "Text")
