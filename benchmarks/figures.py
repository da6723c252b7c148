"""Draw the figures of docs/ from the recorded results: `python benchmarks/figures.py`.

Each is an .svg that docs/results.md shows. Colours of text and axes are read on white and on near black.
"""

from collections import defaultdict
from statistics import mean
from typing import Any

from tables import ROOT, WITHDRAWN, recorded

from manta.report.plots import lines, scatter
from manta.runtime import atomic_write

GREY = "#7d838c"
"""Of text and axes."""
TITLES = {
    "latents": "Manta-LM, latents",
    "embeddings": "Manta-LM, embeddings",
    "autoregressive": "left to right",
}
FRONTIER_CALLS = (16, 64)


def family(model: str) -> str:
    """A model's name without its variant and seed."""
    return model.split("-", 1)[0]


def shown(found: dict[str, Any]) -> dict[str, Any]:
    """A comparison without the models that are withdrawn."""
    kept = [index for index, row in enumerate(found["rows"]) if family(row["model"]) != WITHDRAWN]
    places = {old: new for new, old in enumerate(kept)}
    lengths = [{**each, "row": places.get(each["row"])} for each in found["lengths"] if each["row"] in (None, *kept)]
    return {**found, "rows": [found["rows"][index] for index in kept], "lengths": lengths}


def perplexity_and_entropy(found: dict[str, Any]) -> str:
    """Of every family the points of its temperatures, means over training seeds, beside human texts; without settings
    that write few different texts, whose entropy says nothing."""
    points: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in found["rows"]:
        calls = row["setting"].get("num_steps")
        if calls is not None and calls not in FRONTIER_CALLS:
            continue
        name = TITLES[family(row["model"])] + (f", {calls} calls" if calls else "")
        figures = row["figures"]
        if "perplexity" in figures and figures["distinct"] > 0.5:
            points[name][row["setting"]["temperature"]].append((figures["entropy"], figures["perplexity"]))
    series, labels = {}, {}
    for name, of_temperature in points.items():
        middle = [tuple(map(mean, zip(*pairs, strict=True))) for _, pairs in sorted(of_temperature.items())]
        series[name] = tuple(zip(*middle, strict=True))
        labels[name] = [f"{temperature:g}" for temperature in sorted(of_temperature)]
    series["human texts"] = ((found["corpus"]["entropy"],), (found["corpus"]["perplexity"],))
    return scatter(
        series, title="TinyStories: judged perplexity against entropy, by temperature", labels=labels, joined=True,
        x_label="entropy of a text, nats", y_label="perplexity under the judge", log_y=True,
    )  # fmt: skip


def perplexity_and_calls(found: dict[str, Any]) -> str:
    """Of every family at temperature 1, mean and range over training seeds."""
    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in found["rows"]:
        if row["setting"]["temperature"] == 1 and "perplexity" in row["figures"]:
            calls = row["setting"].get("num_steps") or round(row["figures"]["nfe"])
            curves[TITLES[family(row["model"])]][calls].append(row["figures"]["perplexity"])
    series, bands = {}, {}
    for name, of_calls in curves.items():
        if name == TITLES["autoregressive"]:
            of_calls = {mean(of_calls): [value for values in of_calls.values() for value in values]}
        calls, values = zip(*sorted(of_calls.items()), strict=True)
        series[name] = (calls, [mean(each) for each in values])
        bands[name] = ([min(each) for each in values], [max(each) for each in values])
    series["human texts"] = ((1, 64), (found["corpus"]["perplexity"],) * 2)
    return lines(
        series, title="TinyStories: judged perplexity against calls, temperature 1", bands=bands,
        x_label="network calls of a text", y_label="perplexity under the judge", log_x=True, log_y=True,
    )  # fmt: skip


def length(found: dict[str, Any]) -> str:
    """Nats a token of each part of a text, less those of human texts: errors that compound rise to the right."""
    human = next(profile for profile in found["lengths"] if profile["row"] is None)
    curves: dict[str, list[list[float]]] = defaultdict(list)
    for profile in found["lengths"]:
        if profile["row"] is not None:
            more = [mine - theirs for mine, theirs in zip(profile["mean"], human["mean"], strict=True)]
            curves[TITLES[family(found["rows"][profile["row"]]["model"])]].append(more)
    series = {name: (human["words"], [mean(each) for each in zip(*runs, strict=True)]) for name, runs in curves.items()}
    bands = {
        name: ([min(each) for each in zip(*runs, strict=True)], [max(each) for each in zip(*runs, strict=True)])
        for name, runs in curves.items()
    }
    return lines(
        series, title="TinyStories: judge's nats a token above human texts, along the text", bands=bands,
        x_label="words of the text so far", y_label="nats a token above human texts",
    )  # fmt: skip


def slots_and_length(found: dict[str, Any]) -> str:
    """Slot errors of every model's best setting, its texts grouped by the length of the human text."""
    series, bands = {}, {}
    for profile in found["lengths"]:
        row = found["rows"][profile["row"]]
        calls = row["setting"].get("num_steps")
        name = TITLES[family(row["model"])] + (f", {calls} calls" if calls else "")
        series[name], bands[name] = (profile["words"], profile["mean"]), (profile["low"], profile["high"])
    return lines(
        series, title="E2E test: slot errors against length, consensus", bands=bands,
        x_label="words of the human text of the prompt", y_label="slot errors a text",
    )  # fmt: skip


def main() -> None:
    """Draw the figures that docs/results.md shows."""
    found = shown(recorded("stories.json")["seeds"])
    drawn = {
        "e2e-length": slots_and_length(shown(recorded("e2e_compare.json"))),
        "stories-entropy": perplexity_and_entropy(found),
        "stories-calls": perplexity_and_calls(found),
        "stories-length": length(found),
    }
    for name, figure in drawn.items():
        atomic_write(ROOT / "docs" / f"{name}.svg", (figure.replace("currentColor", GREY) + "\n").encode())


if __name__ == "__main__":
    main()
