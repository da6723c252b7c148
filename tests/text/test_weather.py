import math
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import DataError, UsageError
from manta.text import Tokenizer, weather
from manta.text.weather import WeatherRecord, check, log_probability, parse_prompt, realise
from manta.text.weather.grammar import weather_grammar
from manta.text.weather.records import COMPASS, DOMAINS

RECORD = WeatherRecord(place="Market Cross", day="Monday", sky="cloudy", low=4, high=12)
WINDY = replace(RECORD, wind_from="east", wind_speed=35)
RAINY = replace(RECORD, rain=70)
FULL = replace(WINDY, rain=70)
TEXT = "Monday will be cloudy in Market Cross, with 4 to 12 degrees. There will be east winds of 35 knots."


def written(words: tuple[str, ...]) -> str:
    from manta.text.weather.oracle import _write

    return _write(words)


def language(record: WeatherRecord) -> dict[str, float]:
    """Every text of a record with its probability."""
    return {written(words): chance for words, chance in weather_grammar().enumerate(record.point).items()}


@pytest.fixture(scope="module")
def corpus() -> list:
    return list(weather.examples("train", 400, seed=1))


@pytest.mark.parametrize(("record", "ways"), [(RECORD, 32), (WINDY, 160), (RAINY, 160), (FULL, 288)])
def test_probabilities_sum_to_one(record: WeatherRecord, ways: int) -> None:
    texts = language(record)
    assert math.fsum(texts.values()) == pytest.approx(1, abs=1e-9)
    # Two sequences of words never write the same text, or the chart would have to add them up.
    assert len(texts) == len(weather_grammar().enumerate(record.point)) == ways
    for text, chance in texts.items():
        assert log_probability(record.prompt, text) == pytest.approx(math.log(chance))
        assert check(record.prompt, text) == weather.Verdict(True, True)


def test_entropy_by_sampling_agrees_with_the_enumeration() -> None:
    exact = -math.fsum(chance * math.log(chance) for chance in language(FULL).values())
    estimate, stderr = weather.entropy(FULL, random.Random(0), num=150)
    assert 0 < stderr < 0.25
    assert abs(estimate - exact) < 4 * stderr


def test_what_the_corpus_writes_is_faithful_and_of_sane_length(corpus: list) -> None:
    for example in corpus[:120]:
        verdict = check(example.prompt, example.text)
        assert verdict == weather.Verdict(True, True), (example, verdict)
        assert math.isfinite(log_probability(example.prompt, example.text))
    lengths = [len(example.text.split()) for example in corpus]
    assert min(lengths) >= 9 and max(lengths) <= 30
    assert sum(10 <= length <= 24 for length in lengths) > 0.8 * len(lengths)


def test_few_words_make_many_texts(corpus: list) -> None:
    assert len({example.text for example in corpus}) > 0.98 * len(corpus)
    assert len({word for example in corpus for word in example.text.split()}) < 200


def test_a_value_has_one_token_and_the_same_in_prompt_and_text(corpus: list) -> None:
    tokenizer = Tokenizer.train((part for example in corpus for part in (example.prompt, example.text)), 1024)
    for example in corpus:
        prompt, text = tokenizer.encode(example.prompt), tokenizer.encode(example.text)
        values = [word for slot in example.prompt.split(", ") for word in slot.partition(": ")[2].split()]
        for value in values:
            (token,) = tokenizer.encode(value)
            assert token in prompt and token in text, (value, example)


def test_a_number_is_a_temperature_a_speed_or_a_chance() -> None:
    temperatures, speeds, chances = ({*DOMAINS["low"], *DOMAINS["high"]}, {*DOMAINS["wind_speed"]}, {*DOMAINS["rain"]})
    assert not temperatures & speeds and not temperatures & chances and speeds & chances == {None}


@pytest.mark.parametrize("name", DOMAINS)
def test_every_value_of_every_slot_can_be_said(name: str) -> None:
    rng = random.Random(0)
    for value in DOMAINS[name]:
        record = replace(FULL, **{name: value})
        if name == "low":
            record = replace(record, high=value + 3)
        elif name == "high":
            record = replace(record, low=min(value - 2, 14))
        elif name in ("wind_speed", "wind_from") and value is None:
            record = RAINY
        for _ in range(3):
            assert check(record.prompt, realise(record, rng)).faithful


def corruptions(text: str, rng: random.Random, vocabulary: list[str]) -> list[str]:
    tokens = text.split()
    at = rng.randrange(len(tokens))
    other = rng.choice(vocabulary)
    return [
        " ".join([*tokens[:at], other, *tokens[at + 1 :]]),
        " ".join([*tokens[:at], *tokens[at + 1 :]]),
        " ".join([*tokens[:at], other, *tokens[at:]]),
        " ".join([*tokens[:at], tokens[at], *tokens[at:]]),
    ]


def test_texts_with_one_corrupted_word_are_rejected(corpus: list) -> None:
    rng = random.Random(2)
    vocabulary = sorted({word for example in corpus for word in example.text.split()})
    tried = accepted = 0
    for example in corpus[:70]:
        for text in corruptions(example.text, rng, vocabulary):
            if text != example.text:
                faithful = check(example.prompt, text).faithful
                # The verdict and the probability are computed apart.
                assert faithful == math.isfinite(log_probability(example.prompt, text))
                tried += 1
                accepted += faithful
    assert tried > 200
    assert accepted / tried < 0.03


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"place": "Fernley"}, "place: Market Cross instead of Fernley"),
        ({"place": "Ternholm"}, "place: Market Cross instead of Ternholm"),
        ({"day": "Friday"}, "day: Monday instead of Friday"),
        ({"sky": "sunny"}, "sky: cloudy instead of sunny"),
        ({"low": 5}, "low: 4 instead of 5"),
        ({"high": 13}, "high: 12 instead of 13"),
        ({"wind_from": "west"}, "wind from: east instead of west"),
        ({"wind_speed": 55}, "wind speed: 35 instead of 55"),
        ({"rain": 30}, "rain: 70 instead of 30"),
        ({"wind_from": None, "wind_speed": None}, "wind: not in the record"),
        ({"rain": None}, "rain: not in the record"),
    ],
)
def test_a_wrong_slot_is_grammatical_and_unfaithful(change: dict, error: str) -> None:
    other = replace(FULL, **change)
    for text in random.Random(3).sample(sorted(language(FULL)), 30):
        assert check(other.prompt, text) == weather.Verdict(True, False, (error,))
        assert log_probability(other.prompt, text) == -math.inf


def test_missing_and_added_slots_are_told_apart() -> None:
    rng = random.Random(4)
    assert check(FULL.prompt, realise(WINDY, rng)).errors == ("rain: missing",)
    assert check(WINDY.prompt, realise(FULL, rng)).errors == ("rain: not in the record",)
    assert check(WINDY.prompt, realise(RECORD, rng)).errors == ("wind: missing",)
    assert check(WINDY.prompt, realise(RAINY, rng)).errors == ("wind: missing", "rain: not in the record")


def test_a_text_written_by_hand() -> None:
    assert check(WINDY.prompt, TEXT).faithful
    opening = 1 / 2 * 1 / 4 * 3 / 10  # formal, temperatures with the sky and wind after it, day and place
    words = 1 / 2 * 1 / 2 * 1 / 2  # "4 to 12", "there will be", "east winds of"
    assert log_probability(WINDY.prompt, TEXT) == pytest.approx(math.log(opening * words))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("in Market Cross", "on Market Cross"),
        ("will be cloudy", "looks cloudy"),
        ("There will be", "Expect"),
        ("12 degrees", "12 C"),
        ("35 knots", "35 kn"),
        ("4 to 12", "12 to 4"),
        ("4 to 12", "4 and 12"),
        ("12 degrees", "12degrees"),
        (" with 4 to 12 degrees", " with east winds of 35 knots"),
        ("Cross, with", "Cross with"),
        ("Cross, with", "Cross , with"),
        ("Cross, with", "Cross,  with"),
        ("Monday will", "monday will"),
        ("There will", "there will"),
        ("east winds", "a east wind"),
        ("knots.", "knots"),
        ("knots.", "knots. "),
        ("knots.", "knots in Market Cross."),
        ("knots.", "knots on Monday."),
        ("knots.", "knots and 4 to 12 degrees."),
        ("4 to", "04 to"),
    ],
)
def test_ungrammatical_variants(right: str, wrong: str) -> None:
    assert right in TEXT
    text = TEXT.replace(right, wrong)
    verdict = check(WINDY.prompt, text)
    assert not verdict.grammatical and not verdict.faithful and verdict.errors
    assert log_probability(WINDY.prompt, text) == -math.inf


def test_articles_fit_their_words() -> None:
    for way, article, other in (("east", "an", "a"), ("southeast", "a", "an")):
        record, text = replace(WINDY, wind_from=way), TEXT.replace("east winds", f"{article} {way} wind")
        assert check(record.prompt, text).faithful
        assert not check(record.prompt, text.replace(f"{article} {way}", f"{other} {way}")).grammatical


DAY = "Monday looks cloudy in Market Cross, with 4 to 12 C. "
DAY_OWING = DAY.replace(" in Market Cross", "")
PLACE = "Market Cross looks cloudy on Monday, with 4 to 12 C. "
PLACE_OWING = PLACE.replace(" on Monday", "")


@pytest.mark.parametrize(
    ("end", "openings"),
    [
        ("Expect east winds of 35 kn.", {DAY, PLACE}),
        ("There will be east winds of 35 knots.", set()),  # formal after casual
        ("Expect east winds of 35 knots.", set()),
        ("Expect east winds of 35 kn in Market Cross.", {DAY_OWING}),
        ("Expect east winds of 35 kn on Monday.", {PLACE_OWING}),
        ("It should get east winds of 35 kn.", {PLACE}),
        ("The town should get east winds of 35 kn.", {DAY}),
        ("The island should get east winds of 35 kn.", set()),
        ("The town should get 4 to 12 C and east winds of 35 kn.", set()),  # said again
    ],
)
def test_distant_words_have_to_agree(end: str, openings: set[str]) -> None:
    for opening in (DAY, DAY_OWING, PLACE, PLACE_OWING):
        assert check(WINDY.prompt, opening + end).faithful == (opening in openings), opening


def test_the_register_of_the_opening_decides_the_verb_of_the_second_sentence() -> None:
    formal = PLACE.replace("looks", "will be").replace("12 C", "12 degrees")
    for opening, end in (
        (formal, "It will have east winds of 35 knots."),
        (PLACE, "It should get east winds of 35 kn."),
    ):
        assert check(WINDY.prompt, opening + end).faithful
        other = "should get" if "will have" in end else "will have"
        assert not check(WINDY.prompt, f"{opening}It {other} {end.split(maxsplit=3)[3]}").grammatical


def test_a_short_opening_needs_its_second_sentence() -> None:
    assert check(RECORD.prompt, DAY.strip()).faithful and check(RECORD.prompt, PLACE.strip()).faithful
    for owing in (DAY_OWING, PLACE_OWING):
        assert not check(RECORD.prompt, owing.strip()).grammatical


def test_no_text_tells_a_fact_twice_or_another_place(corpus: list) -> None:
    for example in corpus:
        record = parse_prompt(example.prompt)
        for name in ("place", "day", "sky", "wind_from"):
            said = [v for v in DOMAINS[name] if v is not None and f" {v} " in f" {re.sub('[.,]', ' ', example.text)} "]
            assert said == [value for value in (getattr(record, name),) if value is not None]
        numbers = sorted(int(number) for number in re.findall(r"\d+", example.text))
        told = (record.low, record.high, record.wind_speed, record.rain)
        assert numbers == sorted(number for number in told if number is not None)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_string_gets_a_verdict(text: str) -> None:
    assert not check(RECORD.prompt, text).grammatical
    assert log_probability(RECORD.prompt, text) == -math.inf


def test_huge_texts_are_refused_at_once() -> None:
    assert not check(RECORD.prompt, "it will be cloudy. " * 100_000).grammatical


def test_prompts_round_trip() -> None:
    rng = random.Random(5)
    for _ in range(100):
        record = weather.sample_record(rng)
        assert parse_prompt(record.prompt) == record
        assert math.isfinite(weather.record_log_probability(record.prompt))
    assert FULL.prompt.endswith("sky: cloudy, low: 4, high: 12, wind: east 35, rain: 70")
    assert parse_prompt("rain:70 , high: 12,low: 4, sky: cloudy, day: Monday, place: Market Cross ") == RAINY


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "hello",
        "place: Market Cross",
        "place[Market Cross], day[Monday], sky[cloudy], low[4], high[12]",
        RECORD.prompt.replace("Market Cross", "Paris"),
        RECORD.prompt.replace("Market Cross", "None"),
        RECORD.prompt.replace("low: 4", "low: four"),
        RECORD.prompt.replace("low: 4", "low: 12"),
        RECORD.prompt.replace("high: 12", "high: 99"),
        RECORD.prompt + ", snow: 5",
        RECORD.prompt + ", low: 3",
        RECORD.prompt + ", wind: north 7",
        RECORD.prompt + ", wind: 35",
        RECORD.prompt + ", wind: north",
        RECORD.prompt + ", rain: 40",
        RECORD.prompt + ", rain: ",
        RECORD.prompt + " and more",
    ],
)
def test_prompts_that_are_no_record(prompt: str) -> None:
    with pytest.raises(DataError):
        check(prompt, TEXT)


def test_record_probabilities_sum_to_one() -> None:
    def probability(record: WeatherRecord) -> float:
        return math.exp(weather.record_log_probability(record.prompt))

    total = 0.0
    for sky in DOMAINS["sky"]:
        temperatures = {
            (low, high): probability(replace(RECORD, sky=sky, low=low, high=high))
            for low in DOMAINS["low"]
            for high in DOMAINS["high"]
            if high > low
        }
        likeliest = max(temperatures, key=temperatures.__getitem__)
        base = replace(RECORD, sky=sky, low=likeliest[0], high=likeliest[1])
        winds = [replace(base, wind_from=way, wind_speed=speed) for way in COMPASS for speed in (25, 35, 45, 55)]
        rains = [replace(base, rain=chance) for chance in (30, 50, 70, 90)]
        with_wind, with_rain = (1 + sum(map(probability, some)) / probability(base) for some in (winds, rains))
        total += math.fsum(temperatures.values()) * with_wind * with_rain
    assert total * len(DOMAINS["place"]) * len(DOMAINS["day"]) == pytest.approx(1, abs=1e-9)


def test_there_are_many_records_and_every_value_is_frequent() -> None:
    rng = random.Random(7)
    records = [weather.sample_record(rng) for _ in range(2000)]
    # Two draws agree with probability sum p(record)^2; its inverse is the number of equally likely records.
    assert 1 / (sum(math.exp(weather.record_log_probability(record.prompt)) for record in records) / 2000) > 1e5
    for name, values in DOMAINS.items():
        counts = Counter(getattr(record, name) for record in records)
        assert min(counts[value] for value in values) >= 5, (name, counts)


def test_skies_and_weather_go_together() -> None:
    rng = random.Random(6)
    records = [weather.sample_record(rng) for _ in range(600)]
    by_sky = {sky: [record for record in records if record.sky == sky] for sky in DOMAINS["sky"]}
    assert all(record.high <= 6 and record.rain is None for record in by_sky["snowy"])
    assert all(record.low >= 8 for record in by_sky["sunny"])
    assert all(record.wind_speed is None for record in by_sky["foggy"])
    speeds = {sky: [record.wind_speed for record in by_sky[sky] if record.wind_speed] for sky in ("stormy", "sunny")}
    assert sum(speeds["stormy"]) / len(speeds["stormy"]) > sum(speeds["sunny"]) / len(speeds["sunny"]) + 5


def test_splits_are_disjoint_and_draws_are_reproducible() -> None:
    prompts = {split: {example.prompt for example in weather.examples(split, 25)} for split in ("train", "dev", "test")}
    assert not prompts["train"] & (prompts["dev"] | prompts["test"]) and not prompts["dev"] & prompts["test"]
    assert list(weather.examples("train", 20, seed=7)) == list(weather.examples("train", 20, seed=7))
    assert list(weather.examples("train", 20, seed=7)) != list(weather.examples("train", 20, seed=8))
    assert list(weather.examples("train", 5)) == list(islice(weather.examples("train"), 5))
    assert weather.SIZES == {"train": 15_000, "dev": 1_000, "test": 1_000}


def test_examples_refuse_a_wrong_request() -> None:
    with pytest.raises(UsageError, match="split"):
        weather.examples("valid")
    with pytest.raises(UsageError, match="-1"):
        weather.examples("train", -1)


def test_judge_finds_the_corpus_right_and_broken_texts_wrong(corpus: list) -> None:
    pairs = [(example.prompt, example.text) for example in corpus[:60]]
    report = weather.judge(pairs)
    assert report["grammatical"] == report["faithful"] == report["distinct"] == 1
    assert report["errors"] == {}
    assert abs(report["log_probability_mean"] - report["corpus_log_probability_mean"]) < 0.8
    broken = [*pairs[:30], *((prompt, "Nothing.") for prompt, _ in pairs[30:])]
    report = weather.judge(broken)
    assert report["grammatical"] == report["faithful"] == 0.5
    assert report["grammatical_stderr"] == pytest.approx(math.sqrt(0.25 / 60))
    assert report["distinct"] == 31 / 60
    assert report["corpus_distinct"] == 1
    assert report["errors"] == {"grammar": 30}
    assert weather.judge(broken[30:])["log_probability_mean"] is None
