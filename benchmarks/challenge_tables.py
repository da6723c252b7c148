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


def extension_table(result: dict[str, Any]) -> str:
    """Texts of blocks that may reach on into the next one, beside blocks that end where they end."""
    lines = [
        "| data | words of a block | written by | may reach on by | where below | texts; difference, 95% | calls "
        "| positions computed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["data"] == "e2e":
            texts = f"BLEU {row['bleu']:.1f}, slot errors {row['slot_error_rate']:.0%}"
            if "gain" in row:
                low, high = row["gain_interval"]
                texts += f"; BLEU {row['gain']:+.1f} [{low:.1f}, {high:.1f}]"
        else:
            texts = f"{row['grammatical']:.1%} grammatical, {row['faithful']:.1%} true"
        below = "–" if row["below"] is None else f"{row['below']}"
        decoder = row["decoder"] + (f", threshold {row['threshold']}" if "threshold" in row else "")
        cells = [row["data"], f"{row['length']}", decoder, f"{row['most'] or '–'}", below, texts]
        lines.append("| " + " | ".join([*cells, f"{row['calls']:.1f}", f"{row['positions']:.0f}"]) + " |")
    return "\n".join(lines)


def rates_table(result: dict[str, Any]) -> str:
    """How much the loss varies between bounds of the shares of hidden words, and what is learned between them."""
    return "\n\n".join(table for table in (_variances(result), _learned(result)) if table)


def _learned(result: dict[str, Any]) -> str:
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        if "nats" in row:
            groups[row["length"], row["arm"]].append(row)
    if not groups:
        return ""
    lines = [
        "| words of a block | shares | seeds | nats a word (bound) | gradient norm | its deviation | found |",
        "|---|---|---|---|---|---|---|",
    ]
    for (length, arm), rows in groups.items():
        cells = [f"{length}", arm, f"{len(rows)}", several([row["nats"] for row in rows])]
        cells += [several([row[name] for row in rows]) for name in ("gradient_norm", "gradient_norm_deviation")]
        bounds = dict.fromkeys(f"{row['low']:.2f} to {row['high']:.2f}" for row in rows if "low" in row)
        lines.append("| " + " | ".join([*cells, ", ".join(bounds) or "–"]) + " |")
    return "\n".join(lines)


def _variances(result: dict[str, Any]) -> str:
    lines = [
        "| words of a block | shares | variance of a row's loss | of a step's loss, one batch | of its gradient |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for told in row.get("variances", ()):
            cells = [f"{row['length']}", f"{told['low']:g} to {told['high']:g}", f"{told['row']:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{told['loss']:.4f}", f"{told['gradient']:.3f}"]) + " |")
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


def thinking_table(result: list[dict[str, Any]]) -> str:
    """Share of puzzles that are solved against calls, by what a model carries and how it takes words back."""
    groups: dict[tuple[str, str, str], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in result:
        groups[row["task"], row["model"], row["decoder"]][row["budget"]].append(row)
    budgets = sorted({row["budget"] for row in result})
    lines = [
        "| task | model | writes by | seeds | " + " | ".join(f"{budget} calls" for budget in budgets) + " |",
        "|---|---|---|---|" + "---|" * len(budgets),
    ]
    for (task, model, decoder), found in groups.items():
        seeds = {row["seed"] for rows in found.values() for row in rows}
        cells = [several([row["solved"] for row in found[b]], "{:.1%}") if b in found else "–" for b in budgets]
        told = [task, model, decoder, str(len(seeds)), *cells]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def elastic_table(result: list[dict[str, Any]]) -> str:
    """Texts on canvases that stay and that grow."""
    groups: dict[tuple[bool, float, int], list[dict[str, Any]]] = defaultdict(list)
    for row in result:
        for told in row["texts"]:
            groups[told["elastic"], told["start"], told["calls"]].append(told)
    lines = [
        "| canvas | begins with | budget | calls | BLEU | slot errors | padding | positions computed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (elastic, start, budget), told in groups.items():
        cells = ["elastic" if elastic else "fixed", f"{start:.0%}", f"{budget}"]
        for name, form in (("mean_calls", "{:.1f}"), ("bleu", "{:.1f}"), ("slot_error_rate", "{:.0%}")):
            cells.append(several([each[name] for each in told], form))
        cells += [several([each["padding"] for each in told], "{:.1%}")]
        cells += [several([each["positions"] for each in told], "{:.0f}")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def blanks_table(result: list[dict[str, Any]]) -> str:
    """Spans that come back word for word, by whether the blank says their size."""
    groups: dict[tuple[bool, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in result:
        for told in row["blanks"]:
            groups[told["elastic"], told["told"]].append(told)
    lines = ["| canvas | the blank says the size | back | of up to 8 tokens | longer |", "|---|---|---|---|---|"]
    for (elastic, size), told in sorted(groups.items()):
        cells = [several([each[name] for each in told], "{:.1%}") for name in ("back", "back_short", "back_long")]
        lines.append(f"| {'elastic' if elastic else 'fixed'} | {'yes' if size else 'no'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scales_table(result: list[dict[str, Any]]) -> str:
    """Models with classes of words beside plain ones, at equal calls; by decoder, where the family has any."""
    groups: dict[tuple[int, float, str | None], dict[int, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in result:
        groups[row["classes"], row["settled"], row.get("decoder")][row["budget"]].append(row)
    budgets = sorted({row["budget"] for row in result})
    by = ["words by"] if any("decoder" in row for row in result) else []
    heads = ["classes", "calls for classes", *by, *(f"{b} calls: BLEU (slot errors)" for b in budgets)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (classes, settled, decoder), found in groups.items():
        cells = []
        for budget in budgets:
            rows = found[budget]
            bleu, slots = ([row[name] for row in rows] for name in ("bleu", "slot_error_rate"))
            cells.append(f"{several(bleu, '{:.1f}')} ({several(slots, '{:.0%}')})")
        share = "–" if not classes else f"{settled:.0%}"
        words = [] if decoder is None else [decoder]
        lines.append("| " + " | ".join([f"{classes or 'none'}", share, *words, *cells]) + " |")
    return "\n".join(lines)


def schedule_table(result: list[dict[str, Any]]) -> str:
    """Fixed rules, and schedules that were learned, by their mean calls."""
    lines = ["| data | rule | calls | worth | of fixed rules at as many calls |", "|---|---|---|---|---|"]
    for data in dict.fromkeys(row["data"] for row in result):
        own = [row for row in result if row["data"] == data]
        for row in sorted((row for row in own if row["price"] is None), key=lambda row: row["calls"]):
            lines.append(f"| {data} | {row['rule']} | {row['calls']:.1f} | {row['worth']:.3f} | |")
        for price in dict.fromkeys(row["price"] for row in own if row["price"] is not None):
            rows = [row for row in own if row["price"] == price]
            beside = [row["beside"] for row in rows if row["beside"] is not None]
            cells = [
                several([row["calls"] for row in rows], "{:.1f}"),
                several([row["worth"] for row in rows], "{:.3f}"),
            ]
            cells.append(several(beside, "{:.3f}") if beside else "–")
            lines.append(f"| {data} | learned, price {price:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
