"""The oracle of the weather corpus: writes forecasts, reads them back, and knows the probability of each exactly."""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manta.errors import UsageError
from manta.text.example import Example
from manta.text.hashing import SPLITS, split_of
from manta.text.weather.grammar import weather_grammar
from manta.text.weather.pcfg import Values
from manta.text.weather.records import DOMAINS, WeatherRecord, allows_record, parse_prompt, sample_record

SIZES = {"train": 15_000, "dev": 1_000, "test": 1_000}
"""Examples a split holds where no number is asked for."""

_TOKEN = re.compile(r"[^\s.,]+|[.,]")
_MAX_CHARACTERS = 1_000


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of a text.

    Args:
        grammatical: the grammar derives the text for some record.
        faithful: the grammar derives the text for this record: every slot is said, none is wrong or added.
        errors: why not: where reading stopped, or each slot that is missing, wrong or not in the record.
    """

    grammatical: bool
    faithful: bool
    errors: tuple[str, ...] = ()


def examples(split: str, num: int | None = None, seed: int = 0) -> Iterator[Example]:
    """Draws records and forecasts, the same ones for the same arguments on every machine.

    Records fall into splits by the hash of their prompt, so that no record is in two.

    Args:
        split: "train", "dev" or "test".
        num: how many, at least 0; None for 15,000 (train) or 1,000 (dev, test).
        seed: any integer; others give other draws of the same splits.

    Yields:
        Pairs of prompt and text.

    Raises:
        UsageError: an unknown split or a negative number.
    """
    if split not in SIZES:
        raise UsageError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if num is not None and num < 0:
        raise UsageError(f"the number of examples is {num}; give 0 or more")
    return _draw(split, SIZES[split] if num is None else num, random.Random(f"weather {split} {seed}"))


def _draw(split: str, num: int, rng: random.Random) -> Iterator[Example]:
    while num > 0:
        record = sample_record(rng)
        prompt = record.prompt
        if split_of(prompt) == split:
            num -= 1
            yield Example(text=realise(record, rng), prompt=prompt)


def realise(record: WeatherRecord, rng: random.Random) -> str:
    """Draws a forecast from p(text | record)."""
    return _write(weather_grammar().sample(record.point, rng))


def check(prompt: str, text: str) -> Verdict:
    """Judges a forecast exactly.

    Args:
        prompt: a weather record.
        text: any string.

    Raises:
        DataError: the prompt is no weather record.
    """
    record = parse_prompt(prompt)
    words = _read(text)
    if words is None:
        return Verdict(False, False, ("words and punctuation are not spaced as in a text of the corpus",))
    readings, furthest = weather_grammar().readings(words)
    readings = frozenset(values for values in readings if allows_record(values))
    if not readings:
        return Verdict(False, False, (_where_stopped(text, furthest),))
    wrong = min((_differences(record, values) for values in readings), key=len)
    return Verdict(True, not wrong, wrong)


def log_probability(prompt: str, text: str) -> float:
    """log p(text | record) in nats, summed over all derivations; -inf if the record has none.

    Args:
        prompt: a weather record.
        text: any string.

    Raises:
        DataError: the prompt is no weather record.
    """
    point = parse_prompt(prompt).point
    words = _read(text)
    probability = 0.0 if words is None else weather_grammar().probability(words, point)
    return math.log(probability) if probability > 0 else -math.inf


def entropy(record: WeatherRecord, rng: random.Random, num: int = 200) -> tuple[float, float]:
    """Estimates the entropy of p(text | record), -E log p, by sampling.

    Args:
        record: the record.
        rng: source of the samples.
        num: samples, at least 2.

    Returns:
        The estimate and its standard error, in nats.
    """
    draws = [-log_probability(record.prompt, realise(record, rng)) for _ in range(num)]
    mean = math.fsum(draws) / num
    variance = math.fsum((draw - mean) ** 2 for draw in draws) / (num - 1)
    return mean, math.sqrt(variance / num)


def _write(words: Sequence[str]) -> str:
    """Joins words into a text: punctuation attached, each sentence capitalised."""
    text = ""
    start = True
    for word in words:
        space = "" if not text or word in ".," else " "
        text += space + (word[0].upper() + word[1:] if start else word)
        start = word == "."
    return text


def _read(text: str) -> list[tuple[str, ...]] | None:
    """For each place in a text, the words that `_write` would write so; None if it writes no text with this spacing."""
    tokens = _TOKEN.findall(text) if len(text) <= _MAX_CHARACTERS else []
    spaced = "".join(token if token in ".," or at == 0 else " " + token for at, token in enumerate(tokens))
    if spaced != text or not tokens:
        return None
    starts = (at == 0 or tokens[at - 1] == "." for at in range(len(tokens)))
    return [_alternatives(token) if start else (token,) for token, start in zip(tokens, starts, strict=True)]


def _alternatives(token: str) -> tuple[str, ...]:
    lowered = token[0].lower() + token[1:]
    return () if token[0].islower() else (token,) if lowered == token else (token, lowered)


def _where_stopped(text: str, furthest: int) -> str:
    tokens = list(_TOKEN.finditer(text))
    if furthest >= len(tokens):
        return "the text ends too soon, or its parts do not fit one record"
    return f"cannot go on at {tokens[furthest].group()!r} (character {tokens[furthest].start()})"


_SLOT_OF = {"wind_from": "wind", "wind_speed": "wind"}


def _differences(record: WeatherRecord, values: Values) -> tuple[str, ...]:
    """In which slots a record is not what a reading of a text allows, one line each."""
    found: dict[str, str] = {}
    for (name, domain), mask, index in zip(DOMAINS.items(), values, record.point, strict=True):
        slot = _SLOT_OF.get(name, name)
        if mask >> index & 1 or slot in found:
            continue
        said = [value for at, value in enumerate(domain) if mask >> at & 1]
        if said == [None]:
            found[slot] = f"{slot}: missing"
        elif domain[index] is None:
            found[slot] = f"{slot}: not in the record"
        else:
            found[slot] = f"{name.replace('_', ' ')}: {' or '.join(map(str, said))} instead of {domain[index]}"
    return tuple(found.values())
