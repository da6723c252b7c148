"""Tables of cheaper operators and smaller models; `benchmarks/tables.py` puts them into the pages."""

import math
from collections import defaultdict
from statistics import mean
from typing import Any

FAMILIES = {"ar": "left to right", "masked": "masked", "manta": "Manta-LM"}


def several(values: list[float], form: str = "{:.2f}") -> str:
    """Mean over training seeds, and the least and the most of them."""
    ends = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
    return form.format(mean(values)) + ends


def figure(milliseconds: float) -> str:
    """Milliseconds with as many digits as they deserve."""
    return f"{milliseconds:,.0f}" if milliseconds >= 20 else f"{milliseconds:.1f}"


def growth_table(result: dict[str, Any]) -> str:
    """Milliseconds of every operator against length, its growth, and how it stands to attention."""
    rows = {(row["operator"], row["pass"], row["length"]): row["milliseconds"] for row in result["operators"]}
    lengths = sorted({length for _, _, length in rows})
    heads = " | ".join(f"{length:,}" for length in lengths)
    lines = []
    for told in dict.fromkeys(part for _, part, _ in rows):
        lines += ["", f"| {told}, ms | {heads} | slope from 4,096 | times faster than attention at 16,384 |"]
        lines.append("|---|" + "---|" * (len(lengths) + 2))
        for operator in dict.fromkeys(name for name, _, _ in rows):
            found = {length: rows[operator, told, length] for length in lengths if (operator, told, length) in rows}
            if not found:
                continue
            cells = [figure(found[length]) if length in found else "–" for length in lengths]
            last = max(found)
            slope = math.log(found[last] / found[4096]) / math.log(last / 4096) if last > 4096 else math.nan
            beside = rows["attention", told, 16384] / found[16384] if 16384 in found else math.nan
            lines.append(f"| {operator} | " + " | ".join([*cells, f"{slope:.2f}", f"{beside:.1f}"]) + " |")
    return "\n".join(lines[1:])


def conversions_table(result: list[dict[str, Any]]) -> str:
    """Nats a word of sources, of what became of them, and of the same trained from scratch."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in result:
        groups[row["data"], row["family"], row.get("operator"), row["how"], row.get("share")].append(row)
    told = lambda key, name="nats": several([row[name] for row in groups[key]]) if key in groups else "–"  # noqa: E731
    lines = [
        "| nats a word, held out | source | becomes | at once | after 5% | after 20% | scratch, 5% | scratch, 20% |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, family, operator in dict.fromkeys((key[0], key[1], key[2]) for key in groups if key[2] is not None):
        if (data, family, operator, "all", 0.2) not in groups:
            continue
        cells = [told((data, family, None, "source", None)), operator]
        cells.append(told((data, family, operator, "all", 0.2), "before"))
        cells += [told((data, family, operator, how, share)) for how in ("all", "scratch") for share in (0.05, 0.2)]
        lines.append(f"| {data}, {FAMILIES[family]} | " + " | ".join(cells) + " |")
    lines += ["", "| 20% of the steps | new ones first | the same, task alone | all at once |", "|---|---|---|---|"]
    for data, family in dict.fromkeys((key[0], key[1]) for key in groups if key[3] == "task alone"):
        cells = [told((data, family, "dijiang", how, 0.2)) for how in ("all", "task alone", "all at once")]
        lines.append(f"| {data}, {FAMILIES[family]}, dijiang | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tiny_table(result: list[dict[str, Any]]) -> str:
    """Nats a byte of the recipe's parts, and of what is inherited before any training."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in result:
        groups[row["family"], row["name"]].append(row)
    lines = [
        "| nats a byte, held out | family | parameters | of them vocabulary | nats a byte |",
        "|---|---|---|---|---|",
    ]
    for (family, name), rows in groups.items():
        size, share = mean(row["parameters"] for row in rows), mean(row["vocabulary_share"] for row in rows)
        cells = [FAMILIES[family], f"{size / 1e6:.2f}M", f"{share:.0%}"]
        lines.append(f"| {name} | " + " | ".join([*cells, several([r["nats_a_byte"] for r in rows], "{:.3f}")]) + " |")
    return "\n".join(lines)


def convolution_table(result: list[dict[str, Any]]) -> str:
    """Where attention becomes a convolution: a task of neighbours beside one of copying."""
    words = {"walk": "neighbours", "copy": "copy from 32 places away"}
    lines = [
        "| nats a hidden symbol | attention near | attention | convolution | its mean alone | gap recovered |",
        "|---|---|---|---|---|---|",
    ]
    for task, said in words.items():
        rows = [row for row in result if row["task"] == task]
        cells = [several([mean(row["near"]) for row in rows], "{:.0%}")]
        cells += [
            several([row[name] for row in rows]) for name in ("attention", "converted", "mean alone", "recovered")
        ]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def inheritance_table(result: list[dict[str, Any]]) -> str:
    """What half a model loses at once, by how the half was chosen."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in result:
        groups[row["what"], row["how"]].append(row["nats"])
    lines = ["| kept, before any training | chosen by | nats a word |", "|---|---|---|"]
    kept = {"whole": "everything", "blocks": "half of the blocks", "neurons": "half of the neurons"}
    lines += [f"| {kept[what]} | {how or '–'} | {several(nats)} |" for (what, how), nats in groups.items()]
    return "\n".join(lines)


def mixes_table(result: list[dict[str, Any]]) -> str:
    """Nats a word of Manta-LM with every mix, by data and length of the rows."""
    groups: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in result:
        groups[row["data"], row["length"]][row["mix"]].append(row["nats"])
    heads = [f"{data.removeprefix('builtin:')}, {length:,}" for data, length in groups]
    lines = ["| nats a word, held out | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for mix in dict.fromkeys(row["mix"] for row in result):
        cells = [several(found[mix], "{:.3f}") if mix in found else "–" for found in groups.values()]
        lines.append(f"| {mix.replace(',', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
