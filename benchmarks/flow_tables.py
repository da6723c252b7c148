"""Tables of what is done with the flow: fewer calls, and noise that belongs to its text."""

from statistics import mean
from typing import Any


def distillation_table(result: dict[str, Any]) -> str:
    """Few calls of a model, of students that were made for them, and of the model trained on as long."""
    lines = [
        "| written by | style | calls | BLEU | slot errors | MAUVE | distinct 4-grams |",
        "|---|---|---|" + "---|" * 4,
    ]
    for row in sorted(result["rows"], key=lambda row: (row["style"], row["num_steps"])):
        low, high = row["bleu_interval"]
        cells = [f"{row['bleu']:.1f} [{low:.1f}, {high:.1f}]", f"{row['slot_error_rate']:.1%}", f"{row['mauve']:.2f}"]
        cells.append(f"{row['distinct_4']:.0%}")
        lines.append(f"| {row['model']} | {row['style']} | {row['num_steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def coupling_table(result: dict[str, Any]) -> str:
    """`diverse` forecasts from independent noise and from noise that belongs to the text, by network calls."""
    rows = result["rows"]
    lines = [
        "| noise | calls | runs | grammatical | faithful | distinct texts | MAUVE |",
        "|---|---|---|---|---|---|---|",
    ]
    for calls in sorted({row["num_steps"] for row in rows}):
        for coupling in dict.fromkeys(row["coupling"] for row in rows):
            found = [row for row in rows if (row["coupling"], row["num_steps"]) == (coupling, calls)]
            name = {"teacher": "of the text", "independent": "independent of it"}[coupling]
            cells = [_spread([100 * row[figure] for row in found]) + "%" for figure in ("grammatical", "faithful")]
            cells += [f"{mean(row['distinct'] for row in found):.0%}", f"{mean(row['mauve'] for row in found):.2f}"]
            lines.append(f"| {name} | {calls} | {len(found)} | " + " | ".join(cells) + " |")
    lines.append("\nNats a word of the policy in the last tenth of its steps, in rows that see no settled word:")
    for coupling in dict.fromkeys(row["coupling"] for row in rows):
        found = [row for row in rows if row["coupling"] == coupling]
        start, end = (mean(row[name] for row in found) for name in ("nats_start", "nats_end"))
        lines.append(f"{coupling} {start:.2f} at t = 0 and {end:.2f} at t = 1;")
    return "\n".join(lines).removesuffix(";") + "."


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")
