"""Tables of what the open challenges became; `benchmarks/tables.py` puts them into the pages."""

from collections import defaultdict
from typing import Any

from operator_tables import several


def blocks_table(result: list[dict[str, Any]]) -> str:
    """A word's nats, and texts against calls, by the length of a block."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in result:
        groups[row["length"]].append(row)
    lines = [
        "| words of a block | nats a word | most calls a block | BLEU | slot errors | calls of a text |",
        "|---|---|---|---|---|---|",
    ]
    for length, rows in sorted(groups.items()):
        nats = several([row["nats"] for row in rows])
        texts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            for told in row.get("texts", ()):
                texts[told["steps"]].append(told)
        for steps, told in texts.items():
            cells = [several([each["bleu"] for each in told], "{:.1f}")]
            cells += [several([each["slot_error_rate"] for each in told], "{:.0%}")]
            cells += [several([each["mean_calls"] for each in told], "{:.1f}")]
            lines.append(f"| {length} | {nats} | {steps or 'as many as it takes'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def structure_table(result: list[dict[str, Any]]) -> str:
    """Of texts that are held, and of free ones, how many are valid, and what it costs."""
    families = {"aligned": "left to right", "masked": "masked"}
    lines = [
        "| asked for | family | valid | valid if not asked | different texts | ms a text, held | free | for example |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result:
        share = f"{row['valid']} of {row['texts']}"
        cost = [f"{1000 * row[name]:.0f}" for name in ("seconds", "free_seconds")]
        cells = [row["asked"], families[row["model"]], share, f"{row['free_valid']}", f"{row['distinct']}", *cost]
        lines.append("| " + " | ".join(cells) + f" | `{row['example']}` |")
    return "\n".join(lines)
