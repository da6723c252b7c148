"""Measures the slot error checker on the human references of E2E dev, and its own error; prints one JSON object.

    python benchmarks/e2e_slots.py --data e2e-dataset.zip > benchmarks/results/e2e_slots.json

Three questions. What slot error rate do the human references have? What does the checker find of errors that are
planted in texts it judged clean: a value's own words deleted from the text or exchanged for those of another value
(found by plain text search, not by the checker's patterns), or the meaning representation changed under an untouched
text, which keeps every paraphrase that people use? And how many of its verdicts are false alarms, by reading 40 flagged
references (`READ` and `FALSE_ALARMS` below)?
"""

import argparse
import csv
import io
import json
import os
import random
import re
import sys
import zipfile
from collections import Counter

from manta.metrics.bootstrap import wilson
from manta.metrics.slots import SLOTS, parse_mr, slot_error_rate, slot_errors

VALUES = {
    "eatType": ("coffee shop", "pub", "restaurant"),
    "food": ("Japanese", "French", "Fast food", "Italian", "English", "Chinese", "Indian"),
    "priceRange": ("cheap", "less than £20", "moderate", "£20-25", "high", "more than £30"),
    "customer rating": ("low", "1 out of 5", "average", "3 out of 5", "high", "5 out of 5"),
    "area": ("riverside", "city centre"),
    "familyFriendly": ("yes", "no"),
    "near": ("Burger King", "All Bar One", "Café Rouge", "The Six Bells", "Ranch", "Clare Hall"),
    "name": ("Alimentum", "Cotto", "The Mill", "Zizzi", "The Golden Palace", "Strada"),
}
SAME = ({"cheap", "less than £20"}, {"moderate", "£20-25"}, {"high", "more than £30"})
SAME_RATING = ({"low", "1 out of 5"}, {"average", "3 out of 5"}, {"high", "5 out of 5"})
FRIENDLY = re.compile(r"(?:is |are )?(not |non-?)?(?:a )?(?:family|families|kids?|child|children)[- ]friendly", re.I)

READ = {
    *(39, 143, 247, 264, 290, 292, 297, 501, 691, 743, 876, 965, 1387, 1432, 1462, 1496, 1514, 1519, 1634, 1702),
    *(2255, 2530, 2736, 2740, 2778, 2966, 3062, 3084, 3114, 3127, 3281, 3473, 3549, 3553, 3764, 3807, 3850, 4069),
    *(4269, 4397),
}
"""Rows of dev (from 0) that were read: those that `flagged` drew with seed 1 after the last change of the checker."""
FALSE_ALARMS = {1432, 2736, 4069}
"""Rows in which a reader found that an error reported is none: "costs more than the average", "rated … as an average
place", "an average family friendly place". Breakfast where the record says English food (876, 3127, 3281) was read as
an omission of the food."""


def read_dev(path: str) -> list[tuple[str, str]]:
    """The pairs of the dev set, in file order."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("devset.csv"))
        rows = csv.DictReader(io.TextIOWrapper(archive.open(name), "utf-8", newline=""))
        return [(row["mr"], row["ref"]) for row in rows]


def other_values(slot: str, value: str) -> list[str]:
    """The values of a slot that do not mean the same as the given one."""
    groups = SAME if slot == "priceRange" else SAME_RATING if slot == "customer rating" else ()
    alike = next((group for group in groups if value in group), {value})
    # "restaurant" is no contradiction of another type of place, by design of the checker.
    return [other for other in VALUES[slot] if other not in alike and (slot, other) != ("eatType", "restaurant")]


def written(mr: dict[str, str]) -> str:
    """A meaning representation as the data writes it."""
    return ", ".join(f"{slot}[{mr[slot]}]" for slot in SLOTS if slot in mr)


def planted_in_text(mr: dict[str, str], text: str, slot: str, rng: random.Random) -> dict[str, str]:
    """The text with a slot's value deleted, and exchanged, where it stands there in the data's own words."""
    if slot == "familyFriendly":
        if len(FRIENDLY.findall(text)) != 1:
            return {}
        opposite = "is family friendly" if mr[slot] == "no" else "is not family friendly"
        return {"delete": FRIENDLY.sub("is nice", text), "swap": FRIENDLY.sub(opposite, text)}
    spelling = re.compile(rf"(?<!\w){re.escape(mr[slot])}(?!\w)", re.I)
    if not spelling.search(text) or (
        slot in ("priceRange", "customer rating") and mr[slot] in ("high", "low", "average")
    ):
        return {}
    other = rng.choice(other_values(slot, mr[slot]))
    if other in ("high", "low", "average", "moderate", "cheap") and slot == "customer rating":
        other = {"high": "5 out of 5", "low": "1 out of 5", "average": "3 out of 5"}[other]
    if slot == "priceRange" and other in ("high", "moderate"):
        other = {"high": "more than £30", "moderate": "£20-25"}[other]
    return {"delete": spelling.sub("", text), "swap": spelling.sub(other, text)}


def planted_in_mr(mr: dict[str, str], slot: str, rng: random.Random) -> dict[str, dict[str, str]]:
    """The meaning representation with another value in a slot, and without the slot."""
    return {
        "changed": {**mr, slot: rng.choice(other_values(slot, mr[slot]))},
        "removed": {name: value for name, value in mr.items() if name != slot},
    }


def sensitivity(pairs: list[tuple[str, str]], rng: random.Random) -> dict[str, object]:
    """The share of planted errors that the checker reports in the slot where they were planted."""
    planted: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    kinds = {"delete": "missing", "swap": "wrong", "changed": "wrong", "removed": "hallucinated"}
    for text_mr, text in pairs:
        mr = parse_mr(text_mr)
        if slot_errors(text_mr, text).errors:
            continue
        for slot in mr:
            cases = [(kind, text_mr, new) for kind, new in planted_in_text(mr, text, slot, rng).items()]
            # A text that is named after a place keeps its name whatever the record says.
            if slot != "name":
                cases += [(kind, written(new), text) for kind, new in planted_in_mr(mr, slot, rng).items()]
            for kind, new_mr, new_text in cases:
                if kind == "removed" and mr[slot] == "restaurant":
                    continue
                report = slot_errors(new_mr, new_text)
                planted[kind, slot] += 1
                # An exchanged value is an error of its slot whether it reads as wrong or as missing.
                reported = report.missing + report.wrong if kinds[kind] != "hallucinated" else report.hallucinated
                found[kind, slot] += slot in reported
    shares = {}
    for kind in kinds:
        total = sum(count for (name, _), count in planted.items() if name == kind)
        hits = sum(count for (name, _), count in found.items() if name == kind)
        by_slot = {slot: round(found[kind, slot] / planted[kind, slot], 4) for slot in SLOTS if planted[kind, slot]}
        shares[kind] = {"planted": total, "found": round(hits / total, 4), "by_slot": by_slot}
    return shares


def flagged(pairs: list[tuple[str, str]], num: int, rng: random.Random) -> list[int]:
    """Rows drawn from those with an error, to be read."""
    return sorted(rng.sample([row for row, pair in enumerate(pairs) if slot_errors(*pair).errors], num))


def by_slot(pairs: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Errors of each kind in each slot, as shares of the texts."""
    counts: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        report = slot_errors(*pair)
        for kind in ("missing", "wrong", "hallucinated"):
            counts.update((slot, kind) for slot in getattr(report, kind))
    return {
        slot: {kind: round(counts[slot, kind] / len(pairs), 4) for kind in ("missing", "wrong", "hallucinated")}
        for slot in SLOTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default=os.environ.get("MANTA_DATA", "e2e-dataset.zip"), help="the E2E zip")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the references to be read, on stderr")
    parser.add_argument("--planted-texts", type=int, default=1000, help="texts drawn for planted errors")
    options = parser.parse_args()
    pairs = read_dev(options.data)
    rng = random.Random(options.seed)
    rows = flagged(pairs, 40, random.Random(options.seed))
    if options.show:
        for row in rows:
            report = slot_errors(*pairs[row])
            found = {
                kind: getattr(report, kind) for kind in ("missing", "wrong", "hallucinated") if getattr(report, kind)
            }
            print(row, *pairs[row], found, sep="\n  ", file=sys.stderr)
    read = [row in FALSE_ALARMS for row in rows if row in READ]
    alarms = wilson(sum(read), len(read)) if read else None
    result = {
        "references": {name: round(value, 4) for name, value in slot_error_rate(pairs).items()},
        "by_slot": by_slot(pairs),
        "sensitivity": sensitivity(rng.sample(pairs, options.planted_texts), rng),
        "read_by_eye": {
            "read": len(read),
            "false_alarm_rate": alarms and alarms.value,
            "interval": alarms and [round(alarms.low, 4), round(alarms.high, 4)],
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
