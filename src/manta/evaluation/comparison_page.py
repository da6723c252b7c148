"""A comparison as one self-contained page."""

from collections.abc import Sequence
from typing import Final

from manta.evaluation.comparison import QUALITIES, Comparison, Row, best, shown
from manta.evaluation.dataset import EvaluationSet
from manta.evaluation.evaluator import Evaluator
from manta.evaluation.results import Figure
from manta.report import Page, lines, scatter

TITLES: Final = {
    "oracle_faithful": "faithful texts (share)",
    "oracle_solved": "solved puzzles (share)",
    "bleu": "BLEU",
    "bleu_one_fewer": "BLEU, a reference fewer",
    "slot_error_rate": "slot error rate",
    "perplexity": "generative perplexity",
    "mauve": "MAUVE",
    "entropy": "entropy of a text (nats)",
    "nfe": "network calls a text",
    "repeated_4": "repeated 4-grams (share)",
    "seconds_per_text": "seconds a text",
}
"""How figures are called on axes and in tables."""
COLUMNS: Final = ("nfe", "seconds_per_text", *QUALITIES, "entropy", "repeated_4", "distinct")
"""Figures of the table, as far as they are measured."""


def comparison_page(comparison: Comparison, evaluator: Evaluator, command: str) -> str:
    """Write the page: frontier, entropy, table, paired differences, texts, warnings, and the command.

    Args:
        comparison: what came out.
        evaluator: what measured it.
        command: what was typed.

    Raises:
        UsageError: matplotlib is not installed.
    """
    data, rows = evaluator.data, comparison.rows
    whole = "texts" if data.words is None else f"passages of {data.words} words"
    page = Page(f"Models compared on {data.name.rpartition('/')[2]}")
    page.text(
        f"{len(comparison.parameters)} models on {len(data.prompts)} "
        f"{'prompts' if data.conditional else whole} of {data.name}, split {data.split}; "
        f"{evaluator.config.num_seeds} texts for each, one a sampling seed. Figures are means over seeds, in brackets "
        f"their 95% interval over {'prompts' if data.conditional else 'texts'}, which holds no other training. The "
        "range over seeds is in compare.json."
    )
    if "overlap" in evaluator.metrics:
        page.text(
            "A human text has one reference fewer than a model's, and scores that take the best of several references "
            "rise with their number: people and models compare by the figures against a reference fewer, each left out "
            f"in turn; BLEU against all of them compares with published systems (sacreBLEU's tokens "
            f"{evaluator.words.bleu})."
        )
    page.code(command)
    _plots(page, comparison)
    page.section("All settings")
    names = [name for name in COLUMNS if all(name in row.evaluation.figures for row in rows)]
    header = ["model", "setting", *(TITLES.get(name, name) for name in names), ""]
    body = [
        [row.name, row.label, *(_figure(row, name) for name in names), _mark(i, comparison)]
        for i, row in enumerate(rows)
    ]
    human = ["human texts", "", *(_human(comparison, evaluator, name) for name in names), ""]
    features = f" MAUVE compares {evaluator.features}." if "mauve" in names else ""
    page.table(
        header,
        [*body, human],
        "frontier: by their means none has as good a figure for as few calls (paired differences say which differ); "
        "entropy: nearest to the corpus." + features,
    )
    _lengths(page, comparison, data)
    _likelihoods(page, comparison)
    _differences(page, comparison)
    _texts(page, comparison, data)
    _warnings(page, comparison)
    return page.html()


def _plots(page: Page, comparison: Comparison) -> None:
    rows, corpus = comparison.rows, comparison.corpus
    groups = {name: [row for row in rows if row.name == name] for name in comparison.parameters}
    page.section("Quality and cost")
    for quality in [name for name in QUALITIES if all(name in row.evaluation.figures for row in rows)]:
        series, bands = {}, {}
        for name, own in groups.items():
            own = sorted(own, key=lambda row: row.mean("nfe"))
            spreads = [row.evaluation.figures[quality] for row in own]
            series[name] = ([row.mean("nfe") for row in own], [spread.mean for spread in spreads])
            ends = [_ends(figure) for figure in spreads]
            bands[name] = ([low for low, _ in ends], [high for _, high in ends])
        if quality in corpus:
            calls = [row.mean("nfe") for row in rows]
            series["human texts"] = ([min(calls), max(calls)], [corpus[quality]] * 2)
        title = TITLES[quality]
        drawn = lines(
            series, title=f"{title} against calls", x_label=TITLES["nfe"], y_label=title, bands=bands, log_x=True
        )
        more = "more" if QUALITIES[quality] else "less"
        page.figure(drawn, f"{title}: {more} is wanted. Bands are 95% intervals over prompts.")
    if comparison.parallelism:
        body = [[name, f"{area:.1f}"] for name, area in sorted(comparison.parallelism.items(), key=lambda x: -x[1])]
        page.table(
            ["model", "AUP"],
            body,
            f"Accuracy under parallelism, one figure for the frontier: the area under "
            f"{TITLES[str(comparison.quality)]}, in percent, over words a call, in which "
            "quality below the best of this page counts less, and settings 5 "
            "below a model's own at the fewest words a call not at all. A model that writes a word a call has its "
            "quality; more settings tell a model's area better.",
        )
    if comparison.quality is None or "entropy" not in corpus:
        return
    page.section("Quality at the data's own entropy")
    points = {
        name: ([row.mean("entropy") for row in own], [row.mean(comparison.quality) for row in own])
        for name, own in groups.items()
    }
    labels = {name: [row.label for row in own] for name, own in groups.items()}
    if comparison.quality in corpus:
        points["human texts"] = ([corpus["entropy"]], [corpus[comparison.quality]])
    title = TITLES[comparison.quality]
    drawn = scatter(
        points, title=f"{title} against entropy", x_label=TITLES["entropy"], y_label=title, joined=True, labels=labels
    )
    near = "; ".join(
        f"{name}: {rows[at].label} ({rows[at].mean('entropy'):.3f})" for name, at in comparison.nearest.items()
    )
    page.figure(
        drawn,
        f"The corpus has {corpus['entropy']:.3f} nats. Nearest to it are {near}. Fewer nats buy likelihood cheaply.",
    )


def _lengths(page: Page, comparison: Comparison, data: EvaluationSet) -> None:
    if not comparison.lengths:
        return
    page.section("Quality and length")
    series, bands = {}, {}
    for profile in comparison.lengths:
        row = None if profile.row is None else comparison.rows[profile.row]
        name = "human texts" if row is None else f"{row.name}, {row.label}"
        series[name] = (list(profile.words), [interval.value for interval in profile.intervals])
        bands[name] = ([i.low for i in profile.intervals], [i.high for i in profile.intervals])
    figure = comparison.lengths[0].figure
    told = "judge's nats a token" if figure == "judge_nats" else figure.replace("_", " ")
    unit = data.reading.unit
    x_label = f"{unit} of the human text of the prompt" if data.conditional else f"{unit} of the text so far"
    drawn = lines(series, title=f"{told} against length", x_label=x_label, y_label=told, bands=bands)
    whose = (
        "Each model at its best setting, its texts in groups from short to long by the human text"
        if data.conditional
        else "Each model with its most calls, where its entropy is nearest to the corpus' own, its texts in parts from "
        "first to last; what counts is a line's distance from that of human texts"
    )
    page.figure(
        drawn, f"{whose}; bands are bootstrap intervals. Errors that compound show as a line that worsens to the right."
    )


def _likelihoods(page: Page, comparison: Comparison) -> None:
    found = {name: likelihood for name, likelihood in comparison.likelihoods.items() if likelihood is not None}
    if not found:
        return
    page.section("Likelihood of human texts")
    body = []
    for name, likelihood in found.items():
        bits, count = likelihood.bits_per_byte, comparison.parameters[name]
        samples = "" if likelihood.samples is None else f"; {likelihood.samples} draws a text"
        sign = "≤ " if likelihood.kind == "bound" else ""
        cells = [
            "–" if likelihood.nats_per_token is None else f"{sign}{likelihood.nats_per_token:.4g}",
            "–" if bits is None else f"{sign}{bits}",
        ]
        body.append(
            [name, "–" if count is None else f"{count:,}", likelihood.kind, *cells, likelihood.estimator + samples]
        )
    header = ["model", "parameters", "kind", "nats a token", "bits a byte", "estimator"]
    page.table(header, body, "Bits a byte compare between tokenizers, nats a token do not. Self-conditioning is off.")


def _differences(page: Page, comparison: Comparison) -> None:
    if not comparison.differences:
        return
    page.section("Paired differences")
    body = []
    for difference in comparison.differences:
        first, second = comparison.rows[difference.first], comparison.rows[difference.second]
        interval = difference.interval
        sure = "differ" if interval.low > 0 or interval.high < 0 else "may be equal"
        pair = [f"{first.name}, {first.label}", f"{second.name}, {second.label}", difference.why]
        body.append([*pair, difference.figure, str(interval), sure])
    level = comparison.differences[0].interval.level
    page.table(
        ["first", "second", "", "figure", "first − second", ""],
        body,
        f"With its {level:.0%} interval over the prompts, which both answer; it holds no other training. So many are "
        f"compared that about {1 - level:.0%} of pairs that are equal look as if they differ.",
    )


def _texts(page: Page, comparison: Comparison, data: EvaluationSet) -> None:
    page.section("Texts side by side")
    chosen = [comparison.rows[at] for at in best(comparison.rows, comparison.quality).values()]
    first = ["prompt"] if data.conditional else []
    body = [
        [
            *([data.prompts[at] or ""] if first else []),
            data.references[at][0],
            *(row.evaluation.texts[at] for row in chosen),
        ]
        for at in shown(len(data.prompts))
    ]
    page.table([*first, "a human text", *(f"{row.name}, {row.label}" for row in chosen)], body)


def _warnings(page: Page, comparison: Comparison) -> None:
    said = [(f"{row.name}, {row.label}", warning) for row in comparison.rows for warning in row.evaluation.warnings]
    said += [("left out", reason) for reason in comparison.left_out]
    page.section("Warnings")
    if said:
        page.table(["of", "warning"], said)
    else:
        page.text("None.")


def _figure(row: Row, name: str) -> str:
    figure = row.evaluation.figures[name]
    return f"{figure.mean:.4g}" if figure.interval is None else str(figure.interval)


def _ends(figure: Figure) -> tuple[float, float]:
    """Of a band: the interval, or the mean alone where there is none."""
    return (figure.mean, figure.mean) if figure.interval is None else (figure.interval.low, figure.interval.high)


def _human(comparison: Comparison, evaluator: Evaluator, name: str) -> str:
    if name not in comparison.corpus:
        return "–"
    interval = evaluator.corpus_intervals.get(name)
    return f"{comparison.corpus[name]:.4g}" if interval is None else str(interval)


def _mark(at: int, comparison: Comparison) -> str:
    marks: Sequence[tuple[str, bool]] = (
        ("frontier", at in comparison.frontier),
        ("entropy", at in comparison.nearest.values()),
    )
    return ", ".join(word for word, yes in marks if yes)
