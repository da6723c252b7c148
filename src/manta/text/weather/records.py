"""Weather records: their slots, their prompts, and a distribution in which skies and temperatures go together.

A record is drawn slot by slot, each given those before it:

    p(record) = p(place) p(day) p(sky) p(low | sky) p(high | sky, low) p(wind | sky) p(rain | sky)
"""

import math
import random
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import accumulate
from typing import Any

from manta.errors import DataError

KINDS = {
    "town": ("Harbour Town", "Market Cross", "Fernley", "Thornbury"),
    "island": ("Heron Island", "Gull Rock", "Ravensay", "Ternholm"),
    "bay": ("Pearl Bay", "Copper Bay", "Saltmouth", "Kelphaven"),
}
"""Places by kind, which decides the preposition and the noun that may stand for the name."""
COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

DOMAINS: dict[str, tuple[Any, ...]] = {
    "place": tuple(name for names in KINDS.values() for name in names),
    "day": DAYS,
    "sky": ("sunny", "clear", "cloudy", "overcast", "foggy", "showery", "stormy", "snowy"),
    "low": tuple(range(15)),
    "high": tuple(range(2, 23)),
    "wind_from": (None, *COMPASS),
    "wind_speed": (None, 25, 35, 45, 55),
    "rain": (None, 30, 50, 70, 90),
}
"""The values of each field of a record; None where the record is silent. No number has more than one of the meanings
temperature, speed and chance."""

_SLOT = re.compile(r"\s*(\w+):\s*([^:,]*?)\s*(?:,|$)")
_INTEGER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class WeatherRecord:
    """What a forecast has to say.

    Args:
        place: one of 12 invented places.
        day: a day of the week.
        sky: one of eight skies.
        low: night temperature in degrees Celsius, 0 to 14.
        high: day temperature in degrees Celsius, above `low`, 2 to 22.
        wind_from: one of eight compass directions; None if the record says nothing of wind.
        wind_speed: knots, 25 to 55 in steps of 10; None if the record says nothing of wind.
        rain: chance of rain in percent, 30 to 90 in steps of 20; None if the record says nothing of it.
    """

    place: str
    day: str
    sky: str
    low: int
    high: int
    wind_from: str | None = None
    wind_speed: int | None = None
    rain: int | None = None

    @property
    def prompt(self) -> str:
        """The record as a prompt, such as `place: Pearl Bay, day: Monday, sky: cloudy, low: 4, high: 12, rain: 70`.

        Values stand as they do in a text, after a space, so that a tokenizer gives them the same tokens there.
        """
        slots = {"place": self.place, "day": self.day, "sky": self.sky, "low": self.low, "high": self.high}
        if self.wind_speed is not None:
            slots["wind"] = f"{self.wind_from} {self.wind_speed}"
        if self.rain is not None:
            slots["rain"] = self.rain
        return ", ".join([f"{name}: {value}" for name, value in slots.items()])

    @property
    def point(self) -> tuple[int, ...]:
        """For each field, the index of its value in `DOMAINS`."""
        return tuple([positions[getattr(self, name)] for name, positions in _POSITIONS.items()])


_POSITIONS = {name: {value: index for index, value in enumerate(values)} for name, values in DOMAINS.items()}
assert tuple(_POSITIONS) == tuple(field.name for field in fields(WeatherRecord))


def parse_prompt(prompt: str) -> WeatherRecord:
    """Reads a record from a prompt; slots may come in any order.

    Raises:
        DataError: the prompt is no list of `slot: value`, lacks a slot, has an unknown one, or an impossible value.
    """
    slots: dict[str, str] = {}
    at = 0
    while at < len(prompt):
        if not (match := _SLOT.match(prompt, at)):
            raise DataError(f"no weather record: {prompt[:200]!r}; write it like {_EXAMPLE.prompt}")
        if match[1] in slots:
            raise DataError(f"the weather record names the slot {match[1]!r} twice: {prompt[:200]!r}")
        slots[match[1]] = match[2]
        at = match.end()
    wanted = ("place", "day", "sky", "low", "high")
    if missing := [name for name in wanted if name not in slots]:
        raise DataError(
            f"the weather record lacks {', '.join(missing)}: {prompt[:200]!r}; write it like {_EXAMPLE.prompt}"
        )
    if unknown := [name for name in slots if name not in (*wanted, "wind", "rain")]:
        raise DataError(
            f"a weather record has no slot {unknown[0]!r}; its slots are {', '.join(wanted)}, wind and rain"
        )
    chosen: dict[str, Any] = {name: _number(text) for name, text in slots.items() if name != "wind"}
    if "wind" in slots:
        direction, _, speed = slots["wind"].rpartition(" ")
        chosen |= {"wind_from": direction, "wind_speed": _number(speed)}
    for name, value in chosen.items():
        if value not in _POSITIONS[name]:
            slot = name.partition("_")[0]
            raise DataError(f"the weather record's {slot} is {slots[slot]}; {_ALLOWED[slot]}")
    if chosen["high"] <= chosen["low"]:
        raise DataError(f"the weather record's high is {slots['high']}, not above its low, {slots['low']}; raise it")
    return WeatherRecord(**chosen)


def _number(text: str) -> str | int:
    return int(text) if _INTEGER.fullmatch(text) else text


def _one_of(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values if value is not None)


_ALLOWED = {
    **{name: f"it is one of {_one_of(DOMAINS[name])}" for name in ("place", "day", "sky")},
    **{name: f"it is a number from {DOMAINS[name][0]} to {DOMAINS[name][-1]}" for name in ("low", "high")},
    "wind": f"it is a direction ({_one_of(COMPASS)}) and a speed ({_one_of(DOMAINS['wind_speed'])}), as in `north 35`",
    "rain": f"it is a chance in percent, one of {_one_of(DOMAINS['rain'])}",
}
_EXAMPLE = WeatherRecord(
    place="Harbour Town", day="Monday", sky="cloudy", low=4, high=12, wind_from="north", wind_speed=35, rain=70
)


@dataclass(frozen=True, kw_only=True)
class _Climate:
    """What goes with a sky.

    Args:
        weight: of the sky, relative to the others.
        low: the lows, equally likely.
        rise: by how much the day may be warmer than the night, equally likely.
        wind: how likely the record says something of wind; then `speed` weighs its speeds.
        rain: the same of rain and its chances.
    """

    weight: float
    low: range
    rise: range
    wind: float
    speed: tuple[float, ...]
    rain: float
    chance: tuple[float, ...]


_WEAK, _EVEN, _STRONG = (4.0, 3.0, 2.0, 1.0), (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0)
_CLIMATES = {
    "sunny": _Climate(weight=4.0, low=range(8, 15), rise=range(5, 9), wind=0.45, speed=_WEAK, rain=0.3, chance=_WEAK),
    "clear": _Climate(weight=4.0, low=range(0, 15), rise=range(3, 9), wind=0.45, speed=_WEAK, rain=0.3, chance=_WEAK),
    "cloudy": _Climate(weight=4.0, low=range(3, 15), rise=range(2, 8), wind=0.45, speed=_EVEN, rain=0.45, chance=_EVEN),
    "overcast": _Climate(
        weight=4.0, low=range(3, 14), rise=range(2, 6), wind=0.45, speed=_EVEN, rain=0.45, chance=_EVEN
    ),
    "foggy": _Climate(weight=3.0, low=range(0, 10), rise=range(2, 7), wind=0.0, speed=_WEAK, rain=0.6, chance=_WEAK),
    "showery": _Climate(
        weight=4.0, low=range(4, 14), rise=range(2, 7), wind=0.4, speed=_EVEN, rain=0.8, chance=_STRONG
    ),
    "stormy": _Climate(
        weight=3.0, low=range(5, 15), rise=range(2, 7), wind=0.8, speed=_STRONG, rain=0.4, chance=_STRONG
    ),
    "snowy": _Climate(weight=3.0, low=range(0, 3), rise=range(2, 5), wind=0.6, speed=_EVEN, rain=0.0, chance=_EVEN),
}


class _Choice:
    """A finite distribution.

    Args:
        weights: a positive number for each value.
    """

    def __init__(self, weights: Mapping[Any, float]) -> None:
        total = math.fsum(weights.values())
        self._values = tuple(weights)
        self._shares = {value: weight / total for value, weight in weights.items()}
        self._cumulative = tuple(accumulate(self._shares.values()))

    def draw(self, rng: random.Random) -> Any:
        return self._values[bisect(self._cumulative, rng.random(), hi=len(self._values) - 1)]

    def probability(self, value: Any) -> float:
        return self._shares.get(value, 0.0)


@cache
def _choice(slot: str, sky: str = "", low: int = 0) -> _Choice:
    """The distribution of one slot given the slots before it; of wind and rain, given that there is one."""
    if slot == "sky":
        return _Choice({name: climate.weight for name, climate in _CLIMATES.items()})
    if slot == "low":
        return _Choice(dict.fromkeys(_CLIMATES[sky].low, 1.0))
    if slot == "high":
        return _Choice({low + rise: 1.0 for rise in _CLIMATES[sky].rise})
    values = [value for value in DOMAINS[slot] if value is not None]
    if slot in ("wind_speed", "rain"):
        weights = _CLIMATES[sky].speed if slot == "wind_speed" else _CLIMATES[sky].chance
        return _Choice(dict(zip(values, weights, strict=True)))
    return _Choice(dict.fromkeys(values, 1.0))


def sample_record(rng: random.Random) -> WeatherRecord:
    """Draws a record."""
    sky = _choice("sky").draw(rng)
    climate = _CLIMATES[sky]
    low = _choice("low", sky).draw(rng)
    windy, rainy = rng.random() < climate.wind, rng.random() < climate.rain
    return WeatherRecord(
        place=_choice("place").draw(rng),
        day=_choice("day").draw(rng),
        sky=sky,
        low=low,
        high=_choice("high", sky, low).draw(rng),
        wind_from=_choice("wind_from").draw(rng) if windy else None,
        wind_speed=_choice("wind_speed", sky).draw(rng) if windy else None,
        rain=_choice("rain", sky).draw(rng) if rainy else None,
    )


def record_log_probability(prompt: str) -> float:
    """The log-probability of a record under `sample_record`, in nats; -inf if it is never drawn.

    Raises:
        DataError: the prompt is no weather record.
    """
    record = parse_prompt(prompt)
    climate = _CLIMATES[record.sky]
    total = math.prod(_choice(slot).probability(getattr(record, slot)) for slot in ("place", "day", "sky"))
    total *= _choice("low", record.sky).probability(record.low)
    total *= _choice("high", record.sky, record.low).probability(record.high)
    if record.wind_speed is None:
        total *= 1 - climate.wind
    else:
        total *= climate.wind * _choice("wind_from").probability(record.wind_from)
        total *= _choice("wind_speed", record.sky).probability(record.wind_speed)
    if record.rain is None:
        total *= 1 - climate.rain
    else:
        total *= climate.rain * _choice("rain", record.sky).probability(record.rain)
    return math.log(total) if total > 0 else -math.inf


def allows_record(masks: Sequence[int]) -> bool:
    """Whether some well-formed record has, in each field, a value in the given set.

    Args:
        masks: for each field, a bit mask over its `DOMAINS`.
    """
    allowed = {
        name: [value for at, value in enumerate(DOMAINS[name]) if mask >> at & 1]
        for name, mask in zip(DOMAINS, masks, strict=True)
    }
    if not all(allowed.values()):
        return False
    wind = any((speed is None) == (way is None) for speed in allowed["wind_speed"] for way in allowed["wind_from"])
    return wind and min(allowed["low"]) < max(allowed["high"])
