"""Tables of what writing and training cost; `benchmarks/tables.py` puts them into the pages."""

from typing import Any


def rate_table(result: dict[str, Any]) -> str:
    """Training as a share of the machine's matrix rate, and texts a second."""
    lines = [
        "| training, stage | share of the matrix rate | text tokens a second | milliseconds a step |",
        "|---|---|---|---|",
    ]
    for row in result["training"]:
        cells = [f"{row['share_of_matrix_rate']:.0%}", f"{row['text_tokens_per_second']:,}"]
        lines.append(f"| {row['stage']} | " + " | ".join([*cells, f"{row['milliseconds_per_step']:.0f}"]) + " |")
    lines += ["", "| writing, batch | calls | texts a second (least, median, most) |", "|---|---|---|"]
    for row in result["generation"]:
        lines.append(f"| {row['batch']} | {row['num_steps']} | {', '.join(map(str, row['texts_per_second']))} |")
    return "\n".join([*lines, "", f"Peak memory {result['peak_memory_mib']:,} MiB."])


def caches_table(result: list[dict[str, Any]]) -> str:
    """One text at a time under every cache: solved, positions computed, seconds."""
    lines = ["| a text at a time | cache | solved | calls | positions | ms a text |", "|---|---|---|---|---|---|"]
    for row in result:
        if row.get("batch") == 1:
            figures = [f"{100 * row['solved']:.0f}%", f"{row['calls']:.1f}", f"{row['positions']:.0f}"]
            figures.append(f"{1000 * row['seconds_a_text']:.0f}")
            lines.append(f"| {row['task']}, {row['decoder']} | {row['cache']} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


BENCHED = {
    "src/manta/models/e2e": "the model that ships",
    "runs/e2e-teacher": "its teacher",
    "runs/spaces/masked-0": "masked",
}
"""Models of bench.json, as the command named them."""


def bench_table(result: dict[str, Any]) -> str:
    """What `manta bench` says of writing, starting and operators."""
    lengths = sorted({row["length"] for row in result["writing"]})
    heads = [f"{length} tokens, batch {batch}" for length in lengths for batch in (1, 16)]
    lines = ["| tokens a second | calls | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for model, decoder in dict.fromkeys((row["model"], row["decoder"]) for row in result["writing"]):
        rows = [row for row in result["writing"] if (row["model"], row["decoder"]) == (model, decoder)]
        rates = {(row["length"], row["batch"]): f"{row['tokens_per_second']:,.0f}" for row in rows}
        calls = f"{rows[0]['calls']:.0f}" if rows[0]["family"] != "ar" or decoder == "verified" else "one a token"
        cells = [rates[length, batch] for length in lengths for batch in (1, 16)]
        lines.append(f"| {BENCHED[model]}{', ' + decoder if decoder else ''} | {calls} | " + " | ".join(cells) + " |")
    outside = result["outside"][: 2 * len(lengths)]
    cells = [
        f"{row['tokens_per_second']:,.0f}" for row in sorted(outside, key=lambda row: (row["length"], row["batch"]))
    ]
    size = f"{outside[0]['parameters'] / 1e6:.1f}M parameters"
    lines.append(f"| `transformers`' GPT-2, {size} | one a token | " + " | ".join(cells) + " |")
    lines += ["", "| operator | grows with length to the power of: seconds | operations |", "|---|---|---|"]
    for row in (row for row in result["growth_of_operators"] if row.get("pass", "forward") == "forward"):
        lines.append(f"| {row['operator']} | {row['exponent_of_seconds']:.2f} | {row['exponent_of_operations']:.2f} |")
    start = next(row for row in result["start"] if BENCHED.get(row["what"]) == "the model that ships")
    lines.append(
        f"\nCold start of the model that ships {start['seconds']:.1f} s, of which importing "
        f"{start['import_seconds']:.1f} s; {start['peak_memory_mib']} MiB."
    )
    return "\n".join(lines)


def gpu_table(result: dict[str, Any]) -> str:
    """Seconds of eight calls and of a call a token on a GPU."""
    names = {"manta": "Manta-LM", "masked": "masked", "ar": "left to right"}
    rows = [row for row in result["writing"] if row["decoder"] in ("", None, "confidence", "sequential")]
    lengths, batches = (sorted({row[name] for row in rows}) for name in ("length", "batch"))
    heads = [f"{length} tokens, batch {batch}" for length in lengths for batch in batches]
    lines = [f"| {result['machine']['gpu']}: milliseconds | calls | " + " | ".join(heads) + " |"]
    lines.append("|---|---|" + "---|" * len(heads))
    for family, name in names.items():
        found = {(row["length"], row["batch"]): row for row in rows if row["family"] == family}
        taken = [found[length, batch] for length in lengths for batch in batches]
        calls = "one a token" if family == "ar" else f"{taken[0]['calls']:.0f}"
        cells = [f"{1000 * row['seconds']:.0f} ± {500 * row['seconds'] * row['spread']:.0f}" for row in taken]
        lines.append(f"| {name} | {calls} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(result: dict[str, Any]) -> str:
    """Seconds against length: left to right beside GPT-2, and the caches of a masked model."""
    lines = [
        "| left to right: length | batch | seconds | over GPT-2 of equal shape | over GPT-2 of equal parameters |",
        "|---|---|---|---|---|",
    ]
    for row in result["autoregressive"]:
        ratios = [row[f"ratio_to_{name}"] for name in ("gpt2", "gpt2_of_equal_parameters")]
        seconds = sorted(row["seconds_ours"])[len(row["seconds_ours"]) // 2]
        cells = [f"{middle:.2f} ({least:.2f} to {most:.2f})" for middle, least, most in ratios]
        lines.append(f"| {row['length']} | {row['batch']} | {seconds:.2f} | " + " | ".join(cells) + " |")
    lengths = sorted({row["length"] for row in result["masked"]})
    lines += ["", "| masked: seconds over no cache | " + " | ".join(f"{n} words" for n in lengths) + " |"]
    lines.append("|---|" + "---|" * len(lengths))
    for name in dict.fromkeys(row["cache"] for row in result["masked"]):
        found = {row["length"]: row for row in result["masked"] if row["cache"] == name}
        cells = []
        for length in lengths:
            row = found.get(length)
            same = "" if row is None else f" (agrees {row['agreement_with_none']:.0%})"
            cells.append("–" if row is None else f"{row['ratio_to_none']:.2f}{same}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def few_calls_table(result: dict[str, Any]) -> str:
    """E2E in few calls: quality and seconds of every setting."""
    measured, sizes = result["measure"], ("1", "8", "32")
    lines = [
        "| setting | calls a text | BLEU | slot errors | "
        + " | ".join(f"ms a text, batch {size}" for size in sizes)
        + " |",
        "|---|" + "---|" * (3 + len(sizes)),
    ]
    for row in measured["rows"]:
        cells = [f"{row['mean_calls']:g}"]
        for name, factor, unit in (("bleu", 1, ""), ("slot_error_rate", 100, "%")):
            limits = [f"{factor * limit:.1f}{unit}" for limit in row.get(f"{name}_interval", ())]
            cells.append(f"{factor * row[name]:.1f}{unit}" + (f" [{', '.join(limits)}]" if limits else ""))
        cells += [f"{measured['milliseconds'][row['name']][size]:.1f}" for size in sizes]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fluency_table(result: dict[str, Any]) -> str:
    """What counts of the training texts add, by model and calls."""
    rows = {(row["model"], row["name"], row["num_steps"]): row for row in result["rows"]}
    lines = [
        "| model, calls | BLEU as the network says | with counts (0.5) | difference | slot errors as it says | with "
        "counts | distinct 4-grams as it says | with counts | BLEU at 0.25 / 1 |",
        "|---|" + "---|" * 8,
    ]
    for model, name, calls in rows:
        if name != "weight 0":
            continue
        plain, told = rows[model, name, calls], rows[model, "weight 0.5", calls]
        cells = [f"{row['bleu']:.1f} [{_ends(row['bleu_interval'])}]" for row in (plain, told)]
        cells.append(f"+{told['bleu_gain']:.1f} [{_ends(told['bleu_gain_interval'])}]")
        cells += [f"{row[figure]:.1%}" for figure in ("slot_error_rate", "distinct_4") for row in (plain, told)]
        cells.append(" / ".join(f"{rows[model, f'weight {weight}', calls]['bleu']:.1f}" for weight in ("0.25", "1")))
        lines.append(f"| `{model}`, {calls} call{'s' * (calls > 1)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ends(interval: list[float]) -> str:
    return ", ".join(f"{end:.1f}" for end in interval)


def one_trunk_table(result: dict[str, Any]) -> str:
    """What one trunk with two readings loses to models with one."""
    rows = {(row["model"], row["way"]): row for row in result["rows"]}
    ways = list(dict.fromkeys(row["way"] for row in result["rows"]))
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    sizes = {row["model"]: f"{row['parameters'] / 1e6:.1f}M" for row in result["rows"]}
    head = [f"{name}, {sizes[name]}" for name in names]
    lines = ["| BLEU (slot errors) | " + " | ".join(head) + " |", "|---|" + "---|" * len(names)]
    for way in ways:
        cells = []
        for name in names:
            row = rows.get((name, way))
            if row is None:
                cells.append("–")
                continue
            calls = f", {row['mean_calls']:g} calls" if way.startswith("left") else ""
            cells.append(
                f"{row['bleu']:.1f} [{_ends(row['bleu_interval'])}] ({100 * row['slot_error_rate']:.1f}%){calls}"
            )
        lines.append(f"| {way.replace(' 1 calls', ' 1 call')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verified_speed_table(result: dict[str, Any]) -> str:
    """What checked drafts save, by size of the model and batch."""
    lines = [
        "| parameters | batch | a word a call, ms a text: float32 / bfloat16 | drafted and checked | "
        "times quicker than the quicker of the first two |",
        "|---|" + "---|" * 4,
    ]
    for row in result["rows"]:
        spent = row["milliseconds_a_text"]
        cells = [
            " / ".join(f"{spent[f'{way}, {precision}'][0]:.0f}" for precision in ("float32", "bfloat16"))
            for way in ("sequential", "verified")
        ]
        best = max(row[f"times_quicker_{precision}"] for precision in ("float32", "bfloat16"))
        cells.append(f"{best[0]:.1f} ({best[1]:.1f} to {best[2]:.1f})")
        lines.append(f"| {row['parameters'] / 1e6:.0f}M | {row['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def unplanned_table(result: dict[str, Any]) -> str:
    """The plan's share with counts and without, of models that have a plan."""
    planned = {row["model"] for row in result["rows"] if row["name"] == "weight 0, no plan"}
    rows = {(row["name"], row["num_steps"]): row for row in result["rows"] if row["model"] in planned}
    lines = ["| calls | with its plan | without | with its plan, counts | without, counts |", "|---|---|---|---|---|"]
    for calls in sorted({calls for name, calls in rows if name == "weight 0, no plan"}):
        found = [rows[f"weight {weight}{plan}", calls] for weight in ("0", "0.5") for plan in ("", ", no plan")]
        cells = [f"{row['bleu']:.1f} ({row['slot_error_rate']:.1%})" for row in found]
        lines.append(f"| {calls} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawn_table(result: dict[str, Any]) -> str:
    """`diverse` texts beside counts and without, with their plan, without one, and with the split of `consensus`."""
    rows = [row for row in result["rows"] if row["name"].startswith("diverse")]
    lines = ["| calls | how | MAUVE | slot errors | BLEU | distinct 4-grams |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["num_steps"]):
        how = row["name"].removeprefix("diverse").removeprefix(", ") or "as the network says"
        low, high = row["mauve_interval"]
        cells = [f"{row['mauve']:.2f} [{low:.2f}, {high:.2f}]", f"{row['slot_error_rate']:.1%}", f"{row['bleu']:.1f}"]
        lines.append(f"| {row['num_steps']} | {how} | " + " | ".join([*cells, f"{row['distinct_4']:.0%}"]) + " |")
    return "\n".join(lines)


def infill_table(result: dict[str, Any]) -> str:
    """Spans of human texts that are asked for back."""
    lines = ["| filled by | word for word | words right (F) | BLEU of the spans | nats a token of the text |"]
    lines.append("|---|---|---|---|---|")
    for row in result["infill"]["rows"]:
        cells = [f"{row['exact']:.1%}", f"{row['words']:.2f}", f"{row['bleu']:.1f}", f"{row['nats']:.2f}"]
        lines.append(f"| {row['way']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drafts_table(result: list[dict[str, Any]]) -> str:
    """Drafts that are checked: calls, words a call, and processor time beside a word a call."""
    lines = [
        "| drafter | words | drafted a call | calls a text | words a call | places a text | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result:
        cells = [str(row["num_drafts"]), f"{row['calls']:.1f} (of {row['sequential_calls']:.1f})"]
        cells += [f"{row['words_a_call']:.2f}", f"{row['places']:.0f}", f"{row['speedup']:.2f}"]
        lines.append(f"| {row['model']} | {row['way']} | " + " | ".join(cells) + " |")
    texts = sum(row["texts"] for row in result)
    equal = [sum(row[name] for row in result) for name in ("equal_alone", "equal_in_batches")]
    lines.append(f"\nEqual to the sequential text: {equal[0]:,} of {texts:,} alone, {equal[1]:,} in batches of 64.")
    return "\n".join(lines)


def acceptance_table(result: list[dict[str, Any]]) -> str:
    """Drafts that stand, by shared noise and by the ordinary acceptance of probability."""
    lines = [
        "| model | places | first draft stands: Σ min(p, q) | shared noise | of 7 stand: by p/q | shared noise |",
        "|---|---|---|---|---|---|",
    ]
    for row in result:
        cells = [
            f"{row[what][0]:.2f} ± {row[what][1]:.2f}" for what in ("sum_min", "first_shared", "independent", "shared")
        ]
        lines.append(f"| {row['model']} | {row['places']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def settling_table(result: list[dict[str, Any]]) -> str:
    """Orders in which the slots of an aligned model settle."""
    rules = list(dict.fromkeys(row["rule"] for row in result))
    lines = ["| model, calls | counts | " + " | ".join(rules) + " |", "|---|---|" + "---|" * len(rules)]
    found: dict[tuple[str, int, float], dict[str, str]] = {}
    for row in result:
        if "faithful" in row:
            told = f"{row['faithful']:.1%}"
        else:
            low, high = row["bleu_interval"]
            told = f"{row['bleu']:.1f} [{low:.1f}, {high:.1f}] ({row['slot_error_rate']:.1%})"
        found.setdefault((row["model"], row["num_steps"], row["fluency"]), {})[row["rule"]] = told
    for (model, calls, fluency), told in found.items():
        cells = " | ".join(told[rule] for rule in rules)
        lines.append(f"| {model}, {calls} calls | {'yes' if fluency else 'no'} | {cells} |")
    return "\n".join(lines)


def long_texts_table(result: dict[str, Any]) -> str:
    """Texts beyond the window: memory, time, and repetition along them."""
    lines = ["| tokens of one text | MiB beside the model | ms a token |", "|---|---|---|"]
    lines += [f"| {row['tokens']:,} | {row['mib']:.0f} | {row['ms_a_token']:.1f} |" for row in result["memory"]]
    lines += ["", "| 4-grams repeated within the quarter / said in one before | " + " | ".join("1234") + " |"]
    lines.append("|---|---|---|---|---|")
    for who in dict.fromkeys(row["of"] for row in result["quarters"]):
        rows = [row for row in result["quarters"] if row["of"] == who]
        cells = " | ".join(f"{row['repeated']:.1%} / {row['before']:.1%}" for row in rows)
        lines.append(f"| {who} ({rows[0]['texts']} texts of 500 words) | {cells} |")
    return "\n".join(lines)


CAPTIONERS = {
    "ar": "left to right",
    "aligned": "aligned",
    "taught": "aligned, taught by the first",
    "manta": "Manta-LM",
    "masked": "masked",
}
"""Models of `captions.py`, in words."""


def captions_table(result: dict[str, Any]) -> str:
    """German captions into English ones."""
    lines = ["| model | steps | written | calls a text | BLEU | chrF |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        low, high = row["bleu_interval"]
        cells = [CAPTIONERS[row["model"]], f"{row['steps']:,}", row["setting"], f"{row['calls']:.1f}"]
        lines.append(
            "| " + " | ".join([*cells, f"{row['bleu']:.1f} [{low:.1f}, {high:.1f}]", f"{row['chrf']:.1f}"]) + " |"
        )
    return "\n".join(lines)


def serving_table(result: dict[str, Any]) -> str:
    """A server under load."""
    lines = [
        "| who writes | clients | texts a second | beside one client | p50, ms | p99, ms | texts that differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [f"{row['texts_a_second']:.1f}", f"{row['times_one']:.1f}×", f"{row['p50_ms']:.0f}"]
        cells += [f"{row['p99_ms']:.0f}", f"{row['wrong']} of {row['texts']}"]
        lines.append(f"| {row['road']} | {row['clients']} | " + " | ".join(cells) + " |")
    once, gone, full, paint = (result.get(name) for name in ("at_once", "freed", "overload", "first_paint_ms"))
    told = []
    if once:
        told.append(
            f"{once['requests']:,} requests at the same moment: {once['served']:,} served, {once['wrong']} other than "
            f"offline, p50 {once['p50_ms'] / 1000:.1f} s, p99 {once['p99_ms'] / 1000:.1f} s."
        )
    if full:
        served, refused = full["statuses"].get("200", 0), full["statuses"].get("429", 0)
        told.append(
            f"The same with a queue of {full['queue']}: {served} served (p99 {full['p99_ms'] / 1000:.1f} s), {refused} "
            "answered with 429."
        )
    if gone:
        told.append(
            f"A client that leaves: its place is free after {gone['p50_ms']:.0f} ms (median of {gone['rounds']}, at "
            f"most {gone['most_ms']:.0f}), the asking for it included."
        )
    if paint:
        told.append(f"The page's first paint: {min(paint):.0f} to {max(paint):.0f} ms, {len(paint)} times.")
    return "\n".join([*lines, "", *told])


def schema_table(result: dict[str, Any]) -> str:
    """Requests made from a server's schema: how many are served, by endpoint and kind."""
    kinds = ("positive", "few", "negative")
    by: dict[str, dict[str, dict[str, int]]] = {}
    for name, counts in result["by_operation"].items():
        endpoint, _, kind = name.rpartition(", ")
        by.setdefault(endpoint, {})[kind] = counts
    lines = ["| served, of cases | allowed | allowed, few fields | not allowed |", "|---|---|---|---|"]
    for endpoint, found in by.items():
        if sum(sum(counts.values()) for counts in found.values()) == 1:  # there is one such request
            continue
        cells = [f"{found[k].get('200', 0)} of {sum(found[k].values())}" if k in found else "–" for k in kinds]
        lines.append(f"| `{endpoint}` | " + " | ".join(cells) + " |")
    refused = sum(count for status, count in result["by_status"].items() if status.startswith("4"))
    told = (
        f"{result['cases']:,} cases in {result['seconds']:.0f} s, {result['streams']} of them answered by a stream: "
        f"{refused:,} refused, {result['server_faults']} answered with 500 or above, by half a stream, or not at all."
    )
    return "\n".join([*lines, "", told])


def many_texts_table(result: dict[str, Any]) -> str:
    """Thousands of texts by several processes."""
    lines = ["| who writes | texts | from the command to its end, s | texts a second, once they write |"]
    lines.append("|---|---|---|---|")
    for workers in dict.fromkeys(row.get("workers") for row in result["rows"]):
        who = "one process, plain" if workers is None else f"Ray, {workers} worker{'s' if workers > 1 else ''}"
        mine = [row for row in result["rows"] if row.get("workers") == workers]
        seconds, rates = ([row[name] for row in mine] for name in ("seconds", "texts_a_second"))
        spans = f"{min(seconds):.0f} to {max(seconds):.0f} | {min(rates):.0f} to {max(rates):.0f}"
        lines.append(f"| {who} | {mine[0]['texts']:,} | {spans} |")
    end = result.get("killed")
    if end is None:
        return "\n".join(lines)
    lines += [
        "",
        f"{end['texts']:,} texts by two workers, whose driver was killed after {end['at_driver']} of {end['parts']} "
        f"files and one of which was killed after {end['at_worker']}: {end['different_ids']:,} different lines, "
        f"{end['differ']} texts other than the plain run's, {len(end['failed'])} line failed, the poisoned one.",
    ]
    return "\n".join(lines)


def together_table(result: dict[str, Any]) -> str:
    """What each of several processes holds of a model, beside what a plan says."""
    lines = ["| processes | `--shard` | the fullest holds, MB: weights | gradients | moments | average | in the plan |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in result["memory"]:
        held = row["measured"]
        said = sum(row["predicted"][part] for part in held)
        cells = " | ".join(f"{size / 1e6:.2f}" for size in held.values())
        same = "the same" if said == sum(held.values()) else f"{said / 1e6:.2f} in all"
        lines.append(f"| {row['processes']} | `{row['shard']}` | {cells} | {same} |")
    return "\n".join(lines)


def together_speed_table(result: dict[str, Any]) -> str:
    """Tokens a second of two processes beside one, at equal steps."""
    lines = ["| processes | `--shard` | tokens a second | times one process |", "|---|---|---|---|"]
    for row in result["speed"]:
        spans = [(min(row[name]), max(row[name])) for name in ("tokens_a_second", "times_one")]
        cells = f"{spans[0][0]:,.0f} to {spans[0][1]:,.0f} | {spans[1][0]:.2f} to {spans[1][1]:.2f}"
        lines.append(f"| {row['processes']} | `{row['shard']}` | {cells} |")
    return "\n".join(lines)


def together_kills_table(result: dict[str, Any]) -> str:
    """What kills of processes cost a run."""
    lines = [
        "| `--shard` | kills of one of two processes | finished checkpoints lost | steps | losses apart |",
        "|---|---|---|---|---|",
    ]
    for row in result["kills"]:
        kinds = ", ".join(f"`{shard}`" for shard in row["shards"])
        apart = "equal to the last bit" if row["apart"] == 0 else f"{row['apart']:.1g}"
        lines.append(f"| {kinds} | {row['kills']} | {row['lost']} | {row['steps']} | {apart} |")
    return "\n".join(lines)


def loading_table(result: dict[str, Any]) -> str:
    """The loader alone beside training, and what preparing a large file takes."""
    lines = [
        "| family, smallest size | training, tokens a second | loader alone, from the disk | beside training "
        "| from memory | beside training | its own memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [f"{row['tokens_a_second']:,}"]
        for name in ("cold", "warm"):
            cells += [f"{row[name]['tokens_a_second']:,}", f"{row[name]['times_training']:,.0f}×"]
        cells.append(f"{row['cold']['own_bytes_more'] / 1e6:.1f} MB")
        lines.append(f"| {row['family']} | " + " | ".join(cells) + " |")
    told = [
        f"Preparing {row['bytes'] / 1e9:.2g} GB of lines ({row['tokens'] / 1e6:,.0f} million tokens): "
        f"{row['processor_seconds'] / 60:.1f} minutes of one core, {row['megabytes_a_processor_second']:.1f} MB a "
        f"second, {row['peak_memory_bytes'] / 1e6:,.0f} MB of memory at most."
        for row in result["prepared"]
    ]
    return "\n".join([*lines, "", *told])
