"""The grammar of weather forecasts: what a text says, in which order, and how.

Choices that bind distant words are drawn first and hold to the end. *Register* decides the verbs of both sentences and
the notation of every unit: "will be", "degrees", "knots", "percent", or "looks", "C", "kn", "%". The *opening* has the
day or the place for its subject and may leave the other out; what it leaves out the second sentence owes. What is
named, the second sentence may only take up: by "it" where the place was the subject, by "the town" where the day was.
The *plan* says which facts come with the sky and which wait for the second sentence; every fact is said exactly once.
Texts have 10 to 30 words, seven in eight of them up to 24.

Facts: t temperatures, w wind, r rain. Features: first and second are the facts of the two sentences (none: no such
sentence, or nothing beside the sky); subject is what the first sentence is about; owed what the second has to name.
"""

from collections.abc import Iterator
from functools import cache

from manta.text.weather.pcfg import Grammar
from manta.text.weather.records import DOMAINS, KINDS

_PREPOSITIONS = {"town": "in", "island": "on", "bay": "at"}
_RULES = """
Text -> $Plan(register=formal) | $Plan(register=casual)
Plan -> {wind_speed=none, rain=none} $One(first=t) | {wind_speed=none, rain=none} $Two(second=t)
Plan -> {wind_speed!=none, rain=none} $One(first=tw) | {wind_speed!=none, rain=none} $Two(first=t,second=w)
Plan -> {wind_speed!=none, rain=none} $Two(first=w,second=t) | {wind_speed!=none, rain=none} $Two(second=tw)
Plan -> {wind_speed=none, rain!=none} $One(first=tr) | {wind_speed=none, rain!=none} $Two(first=t,second=r)
Plan -> {wind_speed=none, rain!=none} $Two(first=r,second=t) | {wind_speed=none, rain!=none} $Two(second=tr)
Plan -> {wind_speed!=none, rain!=none} $Two(first=t,second=wr) | {wind_speed!=none, rain!=none} $Two(first=w,second=tr)
Plan -> {wind_speed!=none, rain!=none} $Two(first=r,second=tw)

One -> $Opening(subject=day) | $Opening(subject=place)
Two -> 3: $Both(subject=day) | 2: $Both(subject=day,owed=place)
Two -> 3: $Both(subject=place) | 2: $Both(subject=place,owed=day)
Both -> $Opening $Follow

Opening first=none -> $Sky .
Opening first!=none -> $Sky , with $Facts(facts=?first) .
Sky subject=day -> $Day $Looks $SkyName $WhereUnlessOwed
Sky subject=place -> $Place $Looks $SkyName $WhenUnlessOwed
WhereUnlessOwed owed=none -> $Where
WhereUnlessOwed owed=place ->
WhenUnlessOwed owed=none -> on $Day
WhenUnlessOwed owed=day ->
Looks register=formal -> will be
Looks register=casual -> looks

Follow -> $Said(facts=?second) .
Said owed=place -> $ThereIs $Facts $Where
Said owed=day -> $ThereIs $Facts on $Day
Said owed=none -> $ThereIs $Facts
Said owed=none subject=place -> it $Gets $Facts
Said owed=none subject=day -> the $Kind $Gets $Facts
ThereIs register=formal -> there will be
ThereIs register=casual -> expect
Gets register=formal -> will have
Gets register=casual -> should get

Facts facts=t -> $Temperatures
Facts facts=w -> $Wind
Facts facts=r -> $Rain
Facts facts=tw -> $Temperatures and $Wind
Facts facts=tr -> $Temperatures and $Rain
Facts facts=wr -> $Wind and $Rain
Temperatures -> $Low to $High $Degrees | between $Low and $High $Degrees
Degrees register=formal -> degrees
Degrees register=casual -> C
Wind register=formal -> $From winds of $Speed knots | $AFrom wind of $Speed knots
Wind register=casual -> $From winds of $Speed kn | a $Speed kn $From wind
AFrom -> {wind_from=east} an $From | {wind_from!=east} a $From
Rain register=formal -> a $Chance percent chance of rain | a $Chance percent risk of rain
Rain register=casual -> a $Chance % chance of rain | a $Chance % risk of rain
"""
_SLOTS = {
    "Day": "day",
    "SkyName": "sky",
    "Low": "low",
    "High": "high",
    "From": "wind_from",
    "Speed": "wind_speed",
    "Chance": "rain",
}
"""The symbols that stand for the value of a field."""


def _lexicon() -> Iterator[str]:
    """The words for the values of each field."""
    for kind, names in KINDS.items():
        allowed = "/".join(names).replace(" ", "_")
        yield f"Where -> {{place={allowed}}} {_PREPOSITIONS[kind]} $Place"
        yield f"Kind -> {{place={allowed}}} {kind}"
        yield from (f"Place -> {{place={name.replace(' ', '_')}}} {name}" for name in names)
    for symbol, field in _SLOTS.items():
        yield from (f"{symbol} -> {{{field}={value}}} {value}" for value in DOMAINS[field] if value is not None)


@cache
def weather_grammar() -> Grammar:
    """The grammar of forecasts, built at the first call."""
    return Grammar([*filter(None, _RULES.splitlines()), *_lexicon()], DOMAINS, "Text")
