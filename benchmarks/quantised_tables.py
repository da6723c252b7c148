"""Tables of quantised models; `benchmarks/tables.py` puts them into the pages."""

from collections.abc import Sequence
from typing import Any

TORCHAO = "torchao, dynamic"
"""The control, where it was measured."""
NAMES = {"manta": "Manta-LM, E2E", "aligned": "aligned, E2E"}


def quantised_texts_table(result: dict[str, Any]) -> str:
    """What texts lose: overlap with people's and wrong slots, of every way to quantise."""
    rows = result.get("texts", ())
    calls = _calls(rows)
    lines = _head(("BLEU", "slot errors"), calls)
    for row in rows:
        cells = [f"{NAMES.get(row['model'], row['model'])}, {row['way']}", *_size_and_error(row)]
        scores = [row["scores"].get(each) for each in calls]
        bleu = [(score["bleu"], score["bleu_interval"]) if score else None for score in scores]
        cells += ["–" if b is None else f"{b[0]:.1f} [{', '.join(f'{x:.1f}' for x in b[1])}]" for b in bleu]
        cells += [f"{score['slot_error_rate']:.1%}" if score else "–" for score in scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quantised_images_table(result: dict[str, Any]) -> str:
    """What images lose, of every way to quantise."""
    rows = result.get("images", ())
    calls = _calls(rows)
    lines = _head(("Fréchet distance",), calls)
    for row in rows:
        cells = [f"{row['model']}, {row['way']}", *_size_and_error(row)]
        scores = [row["scores"].get(each) for each in calls]
        cells += [f"{score['frechet']:.2f}" if score else "–" for score in scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quantised_speed_table(result: dict[str, Any]) -> str:
    """Milliseconds of a call of four blocks, and how many times as fast integers are."""
    rows = result.get("speed", ())
    ways = ["float32", "bfloat16", "w8a8", "w4a8", "w8a8, dynamic"]
    ways += [TORCHAO] if any(TORCHAO in row["milliseconds"] for row in rows) else []
    names = ["float32, ms", *ways[1:]]
    lines = ["| width | rows × elements | " + " | ".join(names) + " | w8a8 beside float32 | beside bfloat16 |"]
    lines.append("|---|---|" + "---|" * (len(ways) + 2))
    for row in rows:
        told = row["milliseconds"]
        cells = [str(row["width"]), f"{row['rows']} × {row['elements']}"]
        cells += [f"{told[way]:.1f}" if way in told else "–" for way in ways]
        cells += [f"{told[other] / told['w8a8']:.2f}×" for other in ("float32", "bfloat16")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quantised_writing_table(result: dict[str, Any]) -> str:
    """Seconds of whole texts."""
    ways = ("float32", "w8a8", "w4a8", "w8a8, dynamic", "w8")
    lines = ["| seconds | texts at once | " + " | ".join(ways) + " | w8a8 beside float32 |", "|---|---|" + "---|" * 6]
    for row in result.get("writing", ()):
        told, million = row["seconds"], row["parameters"] / 1e6
        name = "Manta-LM, 8 calls" if row["family"] == "manta" else "left to right, 32 words"
        cells = [f"{name}, {million:.0f}M", str(row["texts"]), *(f"{told[way]:.2f}" for way in ways)]
        lines.append("| " + " | ".join([*cells, f"{told['float32'] / told['w8a8']:.2f}×"]) + " |")
    return "\n".join(lines)


def _size_and_error(row: dict[str, Any]) -> list[str]:
    error = row.get("mean_error")
    return [f"{row['bytes'] / (4 * row['parameters']):.3f}", "–" if error is None else f"{error:.1e}"]


def _calls(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Budgets that any row has scores of, ascending."""
    return sorted({each for row in rows for each in row["scores"]}, key=int)


def _head(figures: Sequence[str], calls: Sequence[str]) -> list[str]:
    """Head of a table that tells figures at some budgets."""
    titles = [
        f"{figure} at {each} calls" if each == calls[0] else f"{each} calls" for figure in figures for each in calls
    ]
    return [f"| | size beside float32 | mean error of a map | {' | '.join(titles)} |", "|" + "---|" * (3 + len(titles))]
