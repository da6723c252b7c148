"""The table of one model for several tasks of text."""

from collections import defaultdict
from collections.abc import Callable
from statistics import mean
from typing import Any

COLUMNS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], float]], ...] = (
    ("describe", "describe: nats a word", "{:.3f}", lambda score: score["nats"]),
    ("describe", "BLEU", "{:.1f}", lambda score: score["bleu"]),
    ("describe", "slot errors", "{:.1%}", lambda score: score["slots"]["slot_error_rate"]),
    ("continue", "continue: nats a word", "{:.3f}", lambda score: score["nats"]),
    ("fill", "fill: nats a word", "{:.3f}", lambda score: score["nats"]),
    ("fill", "exact", "{:.1%}", lambda score: score["exact"]),
    ("fill", "F of words", "{:.3f}", lambda score: score["likeness"]),
    ("shorten", "shorten: nats a word", "{:.3f}", lambda score: score["nats"]),
    ("shorten", "length", "{:.0%}", lambda score: score["length"]),
    ("shorten", "slot errors ", "{:.1%}", lambda score: score["slots"]["slot_error_rate"]),
)
"""Task, heading, format and figure of each column."""


def text_tasks_table(result: dict[str, Any]) -> str:
    """What each arm makes of every task; of the human short texts, length and slot errors."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[row["name"]].append(row)
    lines = [
        "| weights | seeds | parameters | minutes | " + " | ".join(column[1].strip() for column in COLUMNS) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, rows in groups.items():
        cells = [over([read(row["scores"][task]) for row in rows], how) for task, _, how, read in COLUMNS]
        size, minutes = rows[0]["parameters"] / 1e6, mean(row["minutes_of_training"] for row in rows)
        lines.append(f"| {name} | {len(rows)} | {size:.2f}M | {minutes:.1f} | " + " | ".join(cells) + " |")
    human = result["rows"][0]["scores"]["shorten"]
    kept = [f"{human['human_length']:.0%}", f"{human['human_slots']['slot_error_rate']:.1%}"]
    lines.append("| human short texts | – | – | – | " + " | ".join([""] * (len(COLUMNS) - 2) + kept) + " |")
    return "\n".join(lines)


def over(values: list[float], how: str) -> str:
    """One figure, or the least and the most of several seeds."""
    least, most = how.format(min(values)), how.format(max(values))
    return least if least == most else f"{least} to {most}"
