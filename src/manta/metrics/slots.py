"""Slot errors of restaurant descriptions (E2E): which values of a meaning representation a text omits, changes or adds.

A text is searched for mentions. A mention says which values of its slot it agrees with: "cheap" agrees with `cheap` and
with `less than £20`, "less than £20" with that value alone, a rating in words with the same rating in figures. A slot
of the meaning representation is *missing* if nothing in the text mentions it and *wrong* if a mention does not agree
with its value; a slot that the text mentions and the representation lacks is *hallucinated*. The patterns were written
on the training references; the checker's own error on others is measured by `benchmarks/e2e_slots.py`.

Errors are counted as by Dušek, Howcroft and Rieser, "Semantic Noise Matters for Neural Natural Language Generation"
(INLG 2019).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache

import torch

from manta.errors import DataError
from manta.metrics.measured import Measured, Share, Sums
from manta.metrics.slot_patterns import PATTERNS
from manta.metrics.spread import Spread, in_turn, shards_of

SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
NAMES = (
    *(
        "Alimentum",
        "Aromi",
        "Bibimbap House",
        "Blue Spice",
        "Browns Cambridge",
        "Clowns",
        "Cocum",
        "Cotto",
        "Fitzbillies",
    ),
    *("Giraffe", "Green Man", "Loch Fyne", "Midsummer House", "Strada", "Taste of Cambridge", "The Cambridge Blue"),
    *("The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry", "The Golden Palace", "The Mill"),
    *("The Olive Grove", "The Phoenix", "The Plough", "The Punter", "The Rice Boat", "The Twenty Two", "The Vaults"),
    *("The Waterman", "The Wrestlers", "Travellers Rest Beefeater", "Wildwood", "Zizzi"),
)
"""The restaurants of the data."""
NEIGHBOURS = (
    *(
        "All Bar One",
        "Avalon",
        "Burger King",
        "Café Adriatic",
        "Café Brazil",
        "Café Rouge",
        "Café Sicilia",
        "Clare Hall",
    ),
    *("Crowne Plaza Hotel", "Express by Holiday Inn", "Rainbow Vegetarian Café", "Raja Indian Cuisine", "Ranch"),
    *("The Bakers", "The Portland Arms", "The Rice Boat", "The Six Bells", "The Sorrento", "Yippee Noodle Bar"),
)
"""The places near which they are."""

_OPTIONAL_WORDS = {"the", "cafe", "hotel", "inn", "express", "by", "vegetarian", "cuisine", "indian", "bar"}
"""Words of a venue's name that writers leave out."""
_SIMILAR = 0.8
"""Similarity of letters from which a stretch of text counts as a misspelt name."""
_SAYS_NOTHING = {"area": {"city centre", "riverside"}}
"""Values of a mention so vague that it adds nothing to a meaning representation without the slot ("in the city")."""

_COMPILED = {
    slot: [(re.compile("|".join(patterns)), values) for values, patterns in rows] for slot, rows in PATTERNS.items()
}
_YOUNG = r"(?:famil(?:y|ies|iy)|child(?:ren)?s?|kids?|kiddies|youngsters|little ones|toddlers)"
_FAMILY = re.compile(
    rf"\b(?:all ages?(?: groups?)?|every age|ages of people|{_YOUNG}"
    rf"(?: (?:and|or|with) (?:(?:small|young|the) )?(?:{_YOUNG}|friends)|[ -]and[ -]{_YOUNG})*)\b"
    r"(?:[ -]*(un)?[ -]?(?:friendly|free\b))?"
)
_ADULTS = re.compile(r"\b(?:adults?|grown[ -]?ups?|mature|over 18s?|18\+)")
_NEGATION = re.compile(
    r"(?:\b(?:not|non|none|no|nor|never|isnt|isn|arent|doesnt|dont|cannot|un|unable|without|avoid|discourag\w*|"
    r"away from|unsuitable|unfriendly|inappropriate|lacks?|neither|free of|prohibit\w*|bans?|hardly|leave)\b|n't\b)"
    r"(?! only\b)"
)
_BREAK = re.compile(r"[.;!?,:]|\b(?:but|and|with|while|though|although|however|which|in the|near|located)\b")
_NOT_AFTER = re.compile(
    r"^[ -]*(?:friendly|area|venue|environment|establishment|place|pub|restaurant|atmosphere|orient\w+|are|is|:|-|\?|"
    r"should|will|would|do|have|to|be|it|they|their|your|really|also|(?:coffee )?shop| )*[ ,-]*"
    r"(?:not|n't|no\b|aren't|isn't|wouldn't|unwelcome|un-?friendly|free\b|prohibited|banned|unsuitable)"
)


@dataclass(frozen=True)
class SlotReport:
    """What a text does with the slots of its meaning representation.

    Args:
        missing: slots that the text does not mention.
        wrong: slots that the text mentions with a value that is not theirs.
        hallucinated: slots that the text mentions and the meaning representation lacks.
        slots: slots of the meaning representation.
    """

    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    hallucinated: tuple[str, ...]
    slots: int

    @property
    def errors(self) -> int:
        """All errors together."""
        return len(self.missing) + len(self.wrong) + len(self.hallucinated)


def parse_mr(mr: str) -> dict[str, str]:
    """Reads a meaning representation such as `name[Blue Spice], eatType[coffee shop], area[city centre]`.

    Raises:
        DataError: it holds no slots, or one that is not of E2E.
    """
    slots = {name.strip(): value.strip() for name, value in re.findall(r"([\w ]+)\[([^\]]*)\]", mr)}
    if not slots:
        raise DataError(f"no meaning representation: {mr[:200]!r}; write it like name[Blue Spice], eatType[pub]")
    if unknown := [name for name in slots if name not in SLOTS]:
        raise DataError(f"unknown slot {unknown[0]!r} in {mr[:200]!r}; the slots are {', '.join(SLOTS)}")
    return slots


def slot_errors(mr: str, text: str) -> SlotReport:
    """Compares a text with its meaning representation, slot by slot.

    "restaurant" is what writers call any place that serves food, so it neither contradicts another `eatType` nor counts
    as hallucinated.

    Args:
        mr: the meaning representation.
        text: the description.

    Raises:
        DataError: the meaning representation cannot be read.
    """
    wanted = parse_mr(mr)
    mentions = _mentions(wanted, text)
    missing, wrong, hallucinated = [], [], []
    for slot in SLOTS:
        found = mentions[slot]
        if slot not in wanted:
            if any("restaurant" not in values and set(values) != _SAYS_NOTHING.get(slot) for values in found):
                hallucinated.append(slot)
            continue
        agreeing = [wanted[slot] in values for values in found if wanted[slot] in values or values != ("restaurant",)]
        if not agreeing:
            missing.append(slot)
        elif not all(agreeing):
            wrong.append(slot)
    return SlotReport(tuple(missing), tuple(wrong), tuple(hallucinated), len(wanted))


def slot_error_rate(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """The slot error rate of many texts: errors over slots of their meaning representations.

    Args:
        pairs: meaning representation and text; at least one.

    Returns:
        `slot_error_rate`, and its parts `missing`, `wrong`, `hallucinated` (each over the slots); `clean`, the share of
        texts without an error; and the numbers of `texts` and `slots`.

    Raises:
        DataError: there are no pairs, or a meaning representation cannot be read.
    """
    reports = [slot_errors(mr, text) for mr, text in pairs]
    if not reports:
        raise DataError("no texts to check for slot errors; give at least one pair of meaning representation and text")
    slots = sum(report.slots for report in reports)
    return {
        "slot_error_rate": sum(report.errors for report in reports) / slots,
        "missing": sum(len(report.missing) for report in reports) / slots,
        "wrong": sum(len(report.wrong) for report in reports) / slots,
        "hallucinated": sum(len(report.hallucinated) for report in reports) / slots,
        "clean": sum(report.errors == 0 for report in reports) / len(reports),
        "texts": len(reports),
        "slots": slots,
    }


def slot_errors_measured(pairs: Sequence[tuple[str, str]], spread: Spread = in_turn) -> dict[str, Measured]:
    """The shares of `slot_error_rate` with what their intervals over texts are computed from.

    Args:
        pairs: meaning representation and text; at least one.
        spread: reads shards of them; it changes no figure.

    Raises:
        DataError: as there.
    """
    reports = [report for shard in spread(_reports, shards_of(pairs)) for report in shard]
    if not reports:
        raise DataError("no texts to check for slot errors; give at least one pair of meaning representation and text")
    slots = torch.tensor([report.slots for report in reports])

    def rate(count: Callable[[SlotReport], int]) -> Measured:
        return Sums.ratio(torch.tensor([count(report) for report in reports]), slots)

    return {
        "slot_error_rate": rate(lambda report: report.errors),
        "missing": rate(lambda report: len(report.missing)),
        "wrong": rate(lambda report: len(report.wrong)),
        "hallucinated": rate(lambda report: len(report.hallucinated)),
        "clean": Share(torch.tensor([report.errors == 0 for report in reports])),
    }


def _reports(pairs: Sequence[tuple[str, str]]) -> list[SlotReport]:
    return [slot_errors(mr, text) for mr, text in pairs]


def _mentions(wanted: dict[str, str], text: str) -> dict[str, list[tuple[str, ...]]]:
    """For each slot, its mentions in a text, each as the values it agrees with; venues are cut out first."""
    text = _plain(text)
    found: dict[str, list[tuple[str, ...]]] = {slot: [] for slot in SLOTS}
    for slot in ("near", "name"):
        if slot in wanted:
            text, hits = _cut(text, wanted[slot])
            found[slot] += [(wanted[slot],)] * hits
    for slot, known in (("near", NEIGHBOURS), ("name", NAMES)):
        for value in known:
            text, hits = _venue(value).subn("@", text)
            found[slot] += [(value,)] * hits
    for slot, rows in _COMPILED.items():
        rest = text
        for pattern, values in rows:
            rest, hits = pattern.subn("~", rest)
            if values is not None:
                found[slot] += [values] * hits
    found["familyFriendly"] = [("yes",) if welcome else ("no",) for welcome in _families_welcome(text)]
    return found


def _plain(text: str) -> str:
    """Lower case, without accents, with one kind of quote and single spaces."""
    decomposed = unicodedata.normalize("NFD", text.lower().replace("’", "'").replace("`", "'"))
    return " ".join("".join(char for char in decomposed if not unicodedata.combining(char)).split())


@cache
def _venue(value: str) -> re.Pattern[str]:
    words = _plain(value).split()
    body = r"[ -]+".join(map(re.escape, words[1:] if words[0] == "the" and len(words) > 2 else words))
    return re.compile(rf"\b(?:the )?{body}(?:'?s)?\b")


@cache
def _short_venue(value: str) -> re.Pattern[str] | None:
    core = [re.escape(word) for word in _plain(value).split() if word not in _OPTIONAL_WORDS]
    return re.compile(rf"\b(?:the )?{'[ -]*'.join(core)}(?:'?s)?\b(?: cafe| hotel| restaurant)?") if core else None


def _cut(text: str, value: str) -> tuple[str, int]:
    """Cuts a venue out of a text: its name, else its name without the words people omit, else a misspelling of it."""
    plain = _plain(value)
    if not plain:
        return text, 0
    for pattern in (_venue(value), _short_venue(value)):
        if pattern is not None:
            cut, hits = pattern.subn("@", text)
            if hits:
                return cut, hits
    size = len(plain.split())
    words = list(re.finditer(r"\S+", text))
    for first in range(len(words)):
        for last in range(first + max(0, size - 2), min(first + size + 1, len(words))):
            begin, end = words[first].start(), words[last].end()
            if SequenceMatcher(None, plain, text[begin:end].strip(".,'\"")).ratio() >= _SIMILAR:
                return f"{text[:begin]}@{text[end:]}", 1
    return text, 0


def _families_welcome(text: str) -> list[bool]:
    """For each mention of families or children, whether they are welcome; else, for each of adults, False."""
    verdicts = []
    for match in _FAMILY.finditer(text):
        before = " ".join(_BREAK.split(text[: match.start()])[-1].split()[-8:])
        unwelcome = _NEGATION.search(before) or match[1] or match[0].endswith("free")
        unwelcome = unwelcome or _NOT_AFTER.match(text[match.end() : match.end() + 60])
        verdicts.append(not unwelcome)
    return verdicts or [False for _ in _ADULTS.finditer(text)]
