"""Tables of quantised models; `benchmarks/tables.py` puts them into the pages."""

from typing import Any

NAMES = {"manta": "Manta-LM, E2E", "aligned": "aligned, E2E"}


def quantised_texts_table(result: dict[str, Any]) -> str:
    """What texts lose: overlap with people's and wrong slots, of every way to quantise."""
    lines = [
        "| | size beside float32 | mean error of a map | BLEU at 4 calls | 8 calls | 16 calls "
        "| slot errors at 4 calls | 8 calls | 16 calls |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result.get("texts", ()):
        cells = [f"{NAMES.get(row['model'], row['model'])}, {row['way']}", *_size_and_error(row)]
        scores = row["scores"].values()
        cells += [f"{score['bleu']:.1f} [{', '.join(f'{x:.1f}' for x in score['bleu_interval'])}]" for score in scores]
        cells += [f"{score['slot_error_rate']:.1%}" for score in scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quantised_images_table(result: dict[str, Any]) -> str:
    """What images lose, of every way to quantise."""
    lines = [
        "| | size beside float32 | mean error of a map | Fréchet distance at 4 calls | 8 calls | 16 calls |",
        "|---|---|---|---|---|---|",
    ]
    for row in result.get("images", ()):
        cells = [f"{row['model']}, {row['way']}", *_size_and_error(row)]
        cells += [f"{score['frechet']:.2f}" for score in row["scores"].values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quantised_speed_table(result: dict[str, Any]) -> str:
    """Milliseconds of a call of four blocks, and how many times as fast integers are."""
    lines = [
        "| width | rows × elements | float32, ms | bfloat16 | w8a8 | w4a8 | w8a8, dynamic "
        "| w8a8 beside float32 | beside bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result.get("speed", ()):
        told = row["milliseconds"]
        cells = [str(row["width"]), f"{row['rows']} × {row['elements']}", *(f"{ms:.1f}" for ms in told.values())]
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
