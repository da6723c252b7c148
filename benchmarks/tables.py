"""Write the tables of README and docs from the recorded results: `python benchmarks/tables.py`.

`--check` only compares. In brackets stand 95% intervals, where results hold them: over prompts, texts or puzzles, of
the models as they are. "to" joins the least and the most of several seeds.
"""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from challenge_tables import (
    blanks_table,
    blocks_table,
    elastic_table,
    extension_table,
    rates_table,
    scales_table,
    schedule_table,
    structure_table,
    thinking_table,
)
from cost_tables import (
    acceptance_table,
    bench_table,
    caches_table,
    captions_table,
    drafts_table,
    drawn_table,
    few_calls_table,
    fluency_table,
    gpu_table,
    infill_table,
    loading_table,
    long_texts_table,
    many_texts_table,
    one_trunk_table,
    rate_table,
    schema_table,
    serving_table,
    settling_table,
    speed_table,
    together_kills_table,
    together_speed_table,
    together_table,
    unplanned_table,
    verified_speed_table,
)
from diagnosis_tables import diagnose_table, feedback_table, prediction_table, steering_table, verdicts_table
from flow_tables import coupling_table, distillation_table
from image_tables import (
    adaptive_table,
    image_convolution_table,
    joint_bias_table,
    joint_table,
    large_memory_table,
    nets_table,
    restoration_table,
    seams_table,
    shapes_table,
)
from operator_tables import (
    conversions_table,
    convolution_table,
    growth_table,
    inheritance_table,
    mixes_table,
    tiny_table,
)
from quantised_tables import (
    quantised_images_table,
    quantised_speed_table,
    quantised_texts_table,
    quantised_writing_table,
)
from task_tables import text_tasks_table

from manta.metrics.bootstrap import wilson

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "diagnostics.md",
    ROOT / "docs" / "smaller.md",
    ROOT / "docs" / "challenges.md",
    ROOT / "docs" / "images.md",
    ROOT / "docs" / "restoring.md",
    ROOT / "docs" / "tasks.md",
    ROOT / "docs" / "quantising.md",
    ROOT / "docs" / "serving.md",
    ROOT / "docs" / "many-texts.md",
    ROOT / "docs" / "many-machines.md",
)
MARKS = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.S)


def recorded(name: str) -> Any:
    """A recorded result, or None where there is none."""
    file = RESULTS / name
    return json.loads(file.read_text()) if file.exists() else None


def bracketed(value: float, limits: Sequence[float] | None, form: str = "{:.1f}", factor: float = 1) -> str:
    """A figure with its interval; alone where there is none."""
    ends = "" if limits is None else " [" + ", ".join(form.format(factor * end) for end in limits) + "]"
    return form.format(factor * value) + ends


def e2e_table(result: dict[str, Any], *, plan: bool = False) -> str:
    """BLEU and slot errors against network calls of both styles, or of both with and without the plan."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        if plan == ("," in row["name"]):
            rows[row["name"], row["num_steps"]].append(row)
    budgets = sorted({steps for _, steps in rows})
    names, widest = list(dict.fromkeys(name for name, _ in rows)), 0.0
    shown = "slot error rate, distinct 4-grams" if plan else "slot error rate"
    lines = [f"| E2E test: BLEU ({shown}) | " + " | ".join(f"{b} calls" for b in budgets) + " |"]
    lines += ["|---|" + "---|" * len(budgets)]
    for name in names:
        cells = []
        for budget in budgets:
            found = rows.get((name, budget))
            if not found:
                cells.append("–")
                continue
            seeds = [bleu for row in found for bleu in row.get("bleu_seeds", [row["bleu"]])]
            widest = max(widest, max(seeds) - min(seeds))
            bleu = bracketed(mean(seeds), found[0].get("bleu_interval"))
            errors = mean(row["slot_error_rate"] for row in found)
            variety = f", {mean(row['distinct_4'] for row in found):.0%}" if plan else ""
            cells.append(f"{bleu} ({errors:.1%}{variety})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if plan:
        return "\n".join(lines)
    lines.append(
        f"\nOne sample for each of {result['prompts']} meaning representations, no reranking; sacreBLEU 13a, "
        f"lower-cased. Over sampling seeds a BLEU ranges by {widest:.1f} at most. {human_scale(result)} "
        "The challenge's baseline TGen has 65.9. `consensus` seeks the most agreed-on text, `diverse` draws texts as "
        "people do: BLEU rewards the former."
    )
    return "\n".join(lines)


def human_scale(result: dict[str, Any]) -> str:
    """What people reach, like for like: a human text has one reference fewer than a model's."""
    human = result["human"]
    errors = f"{human['slot_error_rate']:.1%} slot errors as the checker counts them"
    if "bleu_one_fewer" not in human:
        return f"The scale: the first human text against the others {human['bleu']:.1f}, a reference fewer ({errors})."
    fewer = {
        row["num_steps"]: bracketed(row["bleu_one_fewer"], row.get("bleu_one_fewer_interval"))
        for row in result["rows"]
        if row["name"] == "consensus"
    }
    people = bracketed(human["bleu_one_fewer"], human["bleu_one_fewer_interval"])
    model = ", ".join(f"{bleu} in {calls} calls" for calls, bleu in fewer.items() if calls >= 8)
    return (
        f"A human text is compared with the others, a reference fewer than a model's: with each reference left out in "
        f"turn people have {people} ({errors}), and `consensus` {model}."
    )


def evaluation_table(result: dict[str, Any], *, whole: bool = False) -> str:
    """What `manta evaluate` says of the shipped model, of its teacher and of published systems: the best by BLEU and
    the challenge's baseline, or the whole of them."""
    published, ours = result["published"], result["rows"]
    if not whole:
        published = [row for row in published if row in published[:1] or row["name"] == "tgen"]
        ours = [row for row in ours if row["name"] != "aligned, 4 calls"]  # as one call
    lines = [
        "| E2E test, `manta evaluate` | BLEU | a reference fewer | chrF | ROUGE-L | slot errors | distinct 4-grams "
        "| MAUVE | 13 words from training | calls |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    people = [{"name": "people", **result["human"]}] if "human" in result else []
    for row in (*ours, *people, *published):
        figures = [_limited(row, key) for key in ("bleu", "bleu_one_fewer", "chrf", "rougeL")]
        figures += [_limited(row, key, 100, "{:.1f}%") for key in ("slot_error_rate", "distinct_4")]
        figures.append(_limited(row, "mauve", form="{:.2f}"))
        figures.append(_limited(row, "training_13_words", 100, "{:.1f}%"))
        calls = f"{row['nfe']['mean']:.0f}" if "nfe" in row else "–"
        lines.append(
            f"| {row['name']}{' (published)' if row in published else ''} | " + " | ".join([*figures, calls]) + " |"
        )
    return "\n".join(lines)


def _limited(row: dict[str, Any], name: str, factor: float = 1, form: str = "{:.1f}") -> str:
    figure = row.get(name)
    if figure is None:
        return "–"
    low = figure.get("low")
    return bracketed(figure["mean"], None if low is None else (low, figure["high"]), form, factor)


WITHDRAWN = "masked"
"""Models of the stories by minutes that were not told the places of their words: their rows are not shown."""


def stories_table(result: dict[str, Any]) -> str:
    """TinyStories: of every family the judge's perplexity with entropy and repetition beside it, against calls."""
    seeds: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    intervals: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    budgets: set[int] = set()
    for row in (*result["seeds"]["rows"], *result.get("longer", {"rows": ()})["rows"]):
        if "minutes" in result and row["model"].startswith(WITHDRAWN):
            continue
        family, run = row["model"].rsplit("-", 1)
        calls = row["setting"].get("num_steps")
        budgets |= {calls} if calls else set()
        kind = f"{family}, temperature {row['setting']['temperature']:g}" + (", longer" if run == "longer" else "")
        column = "its own" if calls is None else str(calls)
        seeds[kind, column].append(row["figures"])
        if "perplexity" in row.get("intervals", {}):
            intervals[kind, column].append(row["intervals"]["perplexity"])
    columns = [*map(str, sorted(budgets))]
    lines = [
        "| perplexity (entropy, repeated 4-grams, MAUVE) | runs | " + " | ".join(f"{c} calls" for c in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for kind in dict.fromkeys(kind for kind, _ in seeds):
        cells, runs = [], 0
        for column in columns:
            found = seeds.get((kind, column)) or (seeds.get((kind, "its own")) if column == columns[-1] else None)
            if not found:
                cells.append("–")
                continue
            runs = len(found)
            judged = [figures["perplexity"] for figures in found if "perplexity" in figures]
            text = _large(mean(judged)) if judged else "–"
            limits = intervals.get((kind, column)) or (
                intervals.get((kind, "its own")) if column == columns[-1] else None
            )
            text += f" [{', '.join(_large(mean(ends)) for ends in zip(*limits, strict=True))}]" if limits else ""
            text += f", {_large(min(judged))} to {_large(max(judged))}" if len(judged) > 1 else ""
            names = ("entropy", "repeated_4", "mauve", "nfe")
            entropy, repeated, near, calls = (mean(figures[name] for figures in found) for name in names)
            own = "" if (kind, column) in seeds else f", {calls:.0f} calls"
            different = mean(figures["distinct"] for figures in found)
            own += f", {different:.0%} different" if different < 0.5 else ""
            cells.append(f"{text} ({entropy:.2f}, {repeated:.0%}, {near:.2f}{own})")
        lines.append(f"| {kind} | {runs} | " + " | ".join(cells) + " |")
    human = result["seeds"]["corpus"]
    repeated = f"{human['repeated_4']:.0%}"
    lines.append(f"\nHuman texts: {human['perplexity']:.1f} ({human['entropy']:.2f}, {repeated}).")
    return "\n".join(lines)


def _large(value: float) -> str:
    """As many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def nearest_table(result: dict[str, Any]) -> str:
    """TinyStories: of every model the setting whose entropy is nearest to that of human texts, and its likelihood."""
    lines = [
        "| model | parameters | minutes | tokens | nats a token of people | nearest setting | perplexity | entropy "
        "| MAUVE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in ("seeds", "longer"):
        found = result.get(report, {"models": ()})
        for model in found["models"]:
            if "minutes" in result and model["name"].startswith(WITHDRAWN):
                continue
            row = found["rows"][found["nearest_entropy"][model["name"]]]
            calls = row["setting"].get("num_steps") or f"its own {row['figures']['nfe']:.0f}"
            setting = f"{calls} calls, temperature {row['setting']['temperature']:g}"
            told = model["likelihood"] or {}
            nats = f"{told['nats_per_token']:.2f} ({told['kind']})" if told.get("nats_per_token") else "–"
            figures = [_large(row["figures"]["perplexity"])]
            figures += [f"{row['figures'][name]:.2f}" for name in ("entropy", "mauve")]
            size = f"{model['parameters'] / 1e6:.2f}M | {model['minutes']:.1f} | {model['tokens'] / 1e6:.1f}M"
            lines.append(f"| {model['name']} | {size} | {nats} | {setting} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def sampling_table(result: dict[str, Any]) -> str:
    """Escape from repetition: feedback moved along a direction, by model, way to write and length."""
    lines = ["| model | words | feedback moved along | by | perplexity | entropy | repeated | distinct 4-grams |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for model in result["rows"]:
        for row in model.get("escape", {"rows": ()})["rows"]:
            if "refused" in row:
                continue
            limits = row.get("perplexity_interval")
            ends = "" if limits is None else f" [{', '.join(map(_large, limits))}]"
            figures = [f"{_large(row['perplexity'])}{ends}", f"{row['entropy']:.2f}"]
            figures += [f"{row['repeated_4']:.1%}", f"{row['distinct_4']:.0%}"]
            told = [model["model"], row["way"], row["direction"], f"{row['scale']:g}"]
            lines.append("| " + " | ".join([*told, *figures]) + " |")
    return "\n".join(lines)


def masking_table(result: dict[str, Any]) -> str:
    """Masks of a step: words supervised, and what was learned in equally many steps."""
    lines = [
        "| masks of a text in a step | seeds | words supervised | nats a token of people, at most "
        "| faithful texts, 16 calls |",
        "|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["arm"] == arm]
        bounds = [row["bound_nats_a_token"] for row in rows]
        ends = f" ({min(bounds):.3f} to {max(bounds):.3f})" if len(bounds) > 1 else ""
        share = f"{mean(row['supervised_share'] for row in rows):.0%}"
        faithful = spread([100 * row["written"]["16"]["faithful"] for row in rows])
        lines.append(f"| {arm} | {len(rows)} | {share} | {mean(bounds):.3f}{ends} | {faithful}% |")
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
        cells = [f"{spread([100 * value for value in values])}%" for values in shares.values()]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {cells[2]} ({shares['corpus_distinct'][0]:.1%}) |")
    return "\n".join(lines)


def tasks_table(result: list[dict[str, Any]]) -> str:
    """Of every task and test set its decoders: puzzles solved over training seeds, an interval, and what it costs."""
    lines = []
    for task, test in dict.fromkeys((row["task"], row["test"]) for row in result):
        found = [row for row in result if (row["task"], row["test"]) == (task, test) and row.get("batch") != 1]
        name = task if test == "builtin" else f"{task}, {test}"
        cells = any(row["cell_accuracy"] is not None for row in found)
        lines += [
            "",
            f"| {name} | solved | 95% interval |{' cells right |' if cells else ''} calls | positions | ms a text |",
        ]
        lines.append("|---|---|---|---|---|---|" + ("---|" if cells else ""))
        for decoder in dict.fromkeys(row["decoder"] for row in found):
            rows = [row for row in found if row["decoder"] == decoder]
            num = sum(row["num"] for row in rows)
            interval = wilson(round(sum(row["solved"] * row["num"] for row in rows)), num)
            figures = [f"{spread([100 * row['solved'] for row in rows])}%"]
            figures.append(f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%")
            if cells:
                figures.append(f"{spread([100 * row['cell_accuracy'] for row in rows])}%")
            figures.append(f"{mean(row['calls'] for row in rows):.1f}")
            figures.append(f"{mean(row['positions'] for row in rows):.0f}" if decoder != "left to right" else "–")
            figures.append(f"{1000 * median(row['seconds_a_text'] for row in rows):.1f}")
            lines.append(f"| {decoder} | " + " | ".join(figures) + " |")
    return "\n".join(lines[1:])


def gains_table(result: list[dict[str, Any]]) -> str:
    """Deferred commitment less block decoding, in points of solved puzzles, mean over training seeds."""
    lines = [
        "| deferred less … (points) | " + " | ".join(("block", "95% interval", "least seed", "most seed")) + " |",
        "|---|---|---|---|---|",
    ]
    for task, test in dict.fromkeys((row["task"], row["test"]) for row in result):
        found = [
            row
            for row in result
            if (row["task"], row["test"], row["family"]) == (task, test, "masked") and row.get("batch") != 1
        ]
        deferred = {row["seed"]: row["solved"] for row in found if row["decoder"] == "deferred"}
        for decoder in dict.fromkeys(row["decoder"] for row in found if row["decoder"].startswith("block")):
            rows = [row for row in found if row["decoder"] == decoder]
            gains = [100 * (deferred[row["seed"]] - row["solved"]) for row in rows]
            low, high = difference_of_shares([row for row in found if row["decoder"] == "deferred"], rows)
            figures = f"{mean(gains):+.1f} | {low:+.1f} to {high:+.1f} | {min(gains):+.1f} | {max(gains):+.1f}"
            lines.append(f"| {task if test == 'builtin' else f'{task}, {test}'}, {decoder} | {figures} |")
    return "\n".join(lines)


def difference_of_shares(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> tuple[float, float]:
    """Newcombe's 95% limits of a difference of shares of all seeds' puzzles, in points.

    They are rather too wide, since that both decoders have the same puzzles is not used.
    """
    ours, theirs = (
        wilson(round(sum(row["solved"] * row["num"] for row in rows)), sum(row["num"] for row in rows))
        for rows in (first, second)
    )
    gap = ours.value - theirs.value
    below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    above = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return 100 * (gap - below), 100 * (gap + above)


def spaces_table(result: list[dict[str, Any]]) -> str:
    """Spaces at equal minutes on E2E dev."""
    columns = [("consensus", calls) for calls in ("4", "8", "16", "32")] + [("diverse", calls) for calls in ("8", "16")]
    heads = [f"{style} {calls}" for style, calls in columns]
    lines = [
        "| E2E dev: BLEU (slot error rate) | parameters | minutes | " + " | ".join(heads) + " |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for row in result:
        cells = []
        for style, calls in columns:
            own = row["scores"][style].get("its own") if (style, calls) in (columns[3], columns[-1]) else None
            scored = row["scores"][style].get(calls, own)
            cost = f", {scored['nfe']} calls" if own else ""
            cells.append("–" if scored is None else f"{scored['bleu']:.1f} ({scored['slot_error_rate']:.1%}{cost})")
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f}M | {row['minutes']:.0f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def variants_table(result: list[dict[str, Any]]) -> str:
    """Ablations on the weather corpus: faithful texts at each budget."""
    budgets = sorted({budget for row in result for budget in row["quality"]}, key=int)
    lines = [
        "| weather: faithful texts | seeds | minutes | "
        + " | ".join(f"{b} call{'s' * (b != '1')}" for b in budgets)
        + " | left to right |",
        "|---|---|---|" + "---|" * (len(budgets) + 1),
    ]
    for name in dict.fromkeys(row["name"] for row in result):
        rows = [row for row in result if row["name"] == name]
        told = [b for b in (*budgets, "left to right") if b in rows[0]["scores"]]
        cells = [
            spread([100 * row["scores"][b]["faithful"] for row in rows]) + "%" if b in told else "–"
            for b in (*budgets, "left to right")
        ]
        lines.append(
            f"| {name} | {len(rows)} | {spread([row['minutes'] for row in rows])} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def families_table(result: dict[str, Any]) -> str:
    """Families of equal data, steps and parameters on E2E test, at 1 to 64 calls."""
    budgets = sorted({row["budget"] for model in result["models"] for row in model["rows"] if row["budget"]})
    lines = [
        "| E2E test: BLEU (slot error rate) | parameters | style | " + " | ".join(f"{b} calls" for b in budgets) + " |",
        "|---|---|---|" + "---|" * len(budgets),
    ]
    for model in result["models"]:
        for style in dict.fromkeys(row["style"] for row in model["rows"]):
            rows = {row["budget"]: row for row in model["rows"] if row["style"] == style}
            if None in rows:
                rows = {budgets[-1]: rows[None]}
            cells = []
            for budget in budgets:
                row = rows.get(budget)
                extra = "" if row is None or row["budget"] else f", {row['nfe']} calls"
                extra += f", {row['decoder']}" if row is not None and "decoder" in row else ""
                if row is None:
                    cells.append("–")
                else:
                    bleu = bracketed(row["bleu"], row.get("bleu_interval"))
                    cells.append(f"{bleu} ({row['slot_error_rate']:.1%}{extra})")
            size = f"{model['parameters'] / 1e6:.1f}M"
            lines.append(f"| {model['name']} | {size} | {style} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def editing_table(result: dict[str, Any]) -> str:
    """How much of a new record a changed text says, and how much of the old words it keeps."""
    lines = [
        f"| E2E test, {result['texts']} texts, {result['num_steps']} calls | says the new value | slot errors | words "
        "kept (F) | nats a token |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        name = row["name"] + (f", strength {row['strength']:g}" if "strength" in row else "")
        cells = [
            bracketed(row["new_value"], row["new_value_interval"], "{:.0f}%", 100),
            bracketed(row["slot_error_rate"], row["slot_error_rate_interval"], "{:.1f}%", 100),
            f"{row['kept']:.2f}",
            bracketed(row["nats"], row["nats_interval"], "{:.2f}"),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean over training seeds, and the least and the most of them."""
    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{ends}"


TABLES: dict[str, tuple[tuple[str, Callable[[Any], str]], ...]] = {
    "headline": (("e2e_evaluations.json", evaluation_table),),
    "e2e": (("e2e.json", e2e_table),),
    "weather": (("weather.json", weather_table),),
    "evaluations": (("e2e_evaluations.json", partial(evaluation_table, whole=True)),),
    "stories": (("stories.json", stories_table), ("stories.json", nearest_table)),
    "stories_blocks": (("stories_blocks.json", stories_table), ("stories_blocks.json", nearest_table)),
    "sampling": (("sampling.json", sampling_table),),
    "masking": (("masking.json", masking_table),),
    "plan": (("e2e.json", partial(e2e_table, plan=True)),),
    "spaces": (("e2e_spaces.json", spaces_table),),
    "steps": (("e2e_steps.json", spaces_table),),
    "speed": (("speed.json", speed_table),),
    "families": (("e2e_families.json", families_table),),
    "variants": (("weather_variants.json", variants_table),),
    "growth": (("bench_operators.json", growth_table),),
    "conversions": (("conversions.json", conversions_table),),
    "tiny": (("tiny_recipe.json", tiny_table),),
    "convolution": (("convolution.json", convolution_table),),
    "inheritance": (("inheritance.json", inheritance_table),),
    "mixes": (("mixes.json", mixes_table),),
    "blocks": (("blocks.json", blocks_table),),
    "extension": (("extension.json", extension_table),),
    "rates": (("rates.json", rates_table),),
    "structure": (("structure.json", structure_table),),
    "thinking": (("thinking.json", thinking_table),),
    "elastic": (("elastic.json", elastic_table), ("elastic.json", blanks_table)),
    "scales": (("scales.json", scales_table),),
    "schedule": (("schedule.json", schedule_table),),
    "bench": (("bench.json", bench_table),),
    "gpu": (("bench_gpu.json", gpu_table),),
    "rate": (("rate.json", rate_table),),
    "serving": (("serving.json", serving_table),),
    "schema": (("schema.json", schema_table),),
    "many_texts": (("many_texts.json", many_texts_table),),
    "loading": (("loading.json", loading_table),),
    "together": (("together.json", together_table),),
    "together_speed": (("together.json", together_speed_table),),
    "together_kills": (("together.json", together_kills_table),),
    "drafts": (("drafts.json", drafts_table),),
    "distillation": (("distillation.json", distillation_table),),
    "coupling": (("coupling.json", coupling_table),),
    "drafts_aligned": (("drafts_aligned.json", drafts_table),),
    "captions": (("captions.json", captions_table),),
    "settling": (("settling.json", settling_table),),
    "long_texts": (("long_texts.json", long_texts_table),),
    "acceptance": (("acceptance.json", acceptance_table),),
    "drafts_stories": (("drafts_stories.json", drafts_table),),
    "few_calls": (("few_calls.json", few_calls_table),),
    "one_trunk": (("one_trunk.json", one_trunk_table),),
    "verified_speed": (("verified_speed.json", verified_speed_table),),
    "fluency": (("fluency.json", fluency_table),),
    "unplanned": (("fluency.json", unplanned_table),),
    "drawn": (("fluency.json", drawn_table),),
    "fluency_masked": (("fluency_masked.json", fluency_table),),
    "infill": (("few_calls.json", infill_table),),
    "editing": (("editing.json", editing_table),),
    "feedback": (("feedback.json", feedback_table),),
    "prediction": (("prediction.json", prediction_table),),
    "tasks": (("tasks.json", tasks_table),),
    "gains": (("tasks.json", gains_table),),
    "caches": (("tasks.json", caches_table),),
    "diagnosed": (("diagnose.json", diagnose_table),),
    "verdicts": (("diagnose.json", verdicts_table),),
    "diagnosed_masked": (("diagnose_masked.json", diagnose_table),),
    "verdicts_masked": (("diagnose_masked.json", verdicts_table),),
    "steering": (("steering.json", steering_table),),
    "shapes": (("shapes.json", shapes_table),),
    "nets": (("images.json", nets_table),),
    "adaptive": (("adaptive.json", adaptive_table),),
    "joint": (("joint.json", joint_table),),
    "joint_bias": (("joint.json", joint_bias_table),),
    "image_convolution": (("image_convolution.json", image_convolution_table),),
    "restoration": (("restoration.json", restoration_table),),
    "large_memory": (("large_photo.json", large_memory_table),),
    "seams": (("large_photo.json", seams_table),),
    "text_tasks": (("text_tasks.json", text_tasks_table),),
    "quantised_texts": (("quantised.json", quantised_texts_table),),
    "quantised_images": (("quantised.json", quantised_images_table),),
    "quantised_speed": (("quantised.json", quantised_speed_table),),
    "quantised_writing": (("quantised.json", quantised_writing_table),),
}
"""Mark of a page → recorded results and what writes each as a table."""


def tables(mark: str) -> str:
    """The tables of a mark whose results are recorded."""
    found = [(write, recorded(name)) for name, write in TABLES[mark]]
    return "\n\n".join(write(result) for write, result in found if result is not None) + "\n"


def with_tables(text: str) -> str:
    """A page with its tables written anew."""
    return MARKS.sub(lambda match: match[1] + tables(match[2]) + match[3], text)


def main() -> int:
    """Write the tables, or say whether they differ."""
    differs = False
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for page, wanted in {page: with_tables(text) for page, text in texts.items()}.items():
        differs |= texts[page] != wanted
        if "--check" not in sys.argv:
            page.write_text(wanted, encoding="utf-8")
    return int(differs and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
