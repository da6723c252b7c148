"""Write the tables of the README from the recorded results: `python benchmarks/tables.py`; `--check` only compares."""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.S)


def recorded(name: str) -> Any:
    """A recorded result, or None where there is none."""
    file = RESULTS / name
    return json.loads(file.read_text()) if file.exists() else None


def e2e_table(result: dict[str, Any]) -> str:
    """BLEU and slot errors against network calls, both styles, and what the plan adds."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        rows[row["name"], row["num_steps"]].append(row)
    budgets = sorted({steps for _, steps in rows})
    names = list(dict.fromkeys(name for name, _ in rows))
    lines = ["| E2E test: BLEU (slot error rate) | " + " | ".join(f"{b} calls" for b in budgets) + " |"]
    lines += ["|---|" + "---|" * len(budgets)]
    for name in names:
        cells = []
        for budget in budgets:
            found = rows.get((name, budget))
            if not found:
                cells.append("–")
                continue
            bleu = [row["bleu"] for row in found]
            spread = f" ± {(max(bleu) - min(bleu)) / 2:.1f}" if len(bleu) > 1 else ""
            errors = sum(row["slot_error_rate"] for row in found) / len(found)
            cells.append(f"{sum(bleu) / len(bleu):.1f}{spread} ({errors:.1%})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    human = result["human"]
    lines.append(
        f"\nOne sample for each of {result['prompts']} meaning representations, no reranking; sacreBLEU 13a, "
        "lower-cased; "
        f"± is half the range over sampling seeds. The scale: one human text against the others {human['bleu']:.1f} "
        f"({human['slot_error_rate']:.1%} slot errors as the checker counts them), the challenge's baseline TGen 65.9. "
        f"`consensus` seeks the most agreed-on text, `diverse` draws texts as people write them: "
        "BLEU rewards the former."
    )
    return "\n".join(lines)


def evaluation_table(result: list[dict[str, Any]]) -> str:
    """What `manta evaluate` says of the shipped model and of its teacher."""
    lines = [
        "| E2E test, `manta evaluate` | BLEU | chrF | ROUGE-L | slot errors | 13 words from training | calls |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result:
        figures = [f"{row[key]['mean']:.1f}" for key in ("bleu", "chrf", "rougeL")]
        figures += [f"{row[key]['mean']:.1%}" for key in ("slot_error_rate", "training_13_words")]
        lines.append(f"| {row['name']} | " + " | ".join([*figures, f"{row['nfe']['mean']:.0f}"]) + " |")
    return "\n".join(lines)


def weather_table(result: list[dict[str, Any]]) -> str:
    """Oracle's verdicts on the built-in corpus."""
    lines = [
        "| weather, 3 minutes on two cores, 2 seeds | grammatical | faithful | distinct texts (corpus) |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in result):
        found = [row for row in result if row["name"] == name]
        shares = {
            key: [row[key] for row in found] for key in ("grammatical", "faithful", "distinct", "corpus_distinct")
        }
        cells = [
            f"{sum(values) / len(values):.1%} ± {50 * (max(values) - min(values)):.1f}" for values in shares.values()
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {cells[2]} ({shares['corpus_distinct'][0]:.1%}) |")
    return "\n".join(lines)


def tasks_table(result: list[dict[str, Any]]) -> str:
    """Solved puzzles by decoder, mean and half the range over training seeds, with calls a text."""
    columns = list(dict.fromkeys((row["task"], row["test"]) for row in result))
    names = list(dict.fromkeys(row["decoder"] for row in result if row["task"] == columns[0][0]))
    names += [row["decoder"] for row in result if row["decoder"] not in names]
    heads = [task if test == "builtin" else f"{task}, {test}" for task, test in columns]
    lines = ["| solved (calls) | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in dict.fromkeys(names):
        cells = []
        for task, test in columns:
            found = [
                row
                for row in result
                if (row["task"], row["test"], row["decoder"]) == (task, test, name) and row.get("batch") != 1
            ]
            if not found:
                cells.append("–")
                continue
            solved = [100 * row["solved"] for row in found]
            spread = f" ± {(max(solved) - min(solved)) / 2:.1f}" if len(solved) > 1 else ""
            cells.append(
                f"{sum(solved) / len(solved):.1f}%{spread} ({sum(row['calls'] for row in found) / len(found):.1f})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables() -> str:
    """All tables whose results are recorded."""
    parts = []
    if (e2e := recorded("e2e.json")) is not None:
        parts.append(e2e_table(e2e))
    if (found := recorded("e2e_autoregressive.json")) is not None:
        parts.append(evaluation_table(found))
    if (found := recorded("weather.json")) is not None:
        parts.append(weather_table(found))
    if (found := recorded("tasks.json")) is not None:
        parts.append(tasks_table(found))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the tables, or say whether they differ."""
    text = README.read_text(encoding="utf-8")
    wanted = MARKS.sub(lambda match: match[1] + tables() + match[2], text)
    if "--check" in sys.argv:
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
