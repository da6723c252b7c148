"""A diagnosis as one HTML page: verdicts, drawings, each with what it means and what to try, and all figures."""

import math
from collections.abc import Sequence

import torch

from manta.diagnosis.glossary import FIGURES
from manta.diagnosis.results import Figure
from manta.diagnosis.run import Diagnosis
from manta.diagnosis.verdicts import verdicts
from manta.metrics import bootstrap_mean
from manta.report import Page, heat, lines, scatter
from manta.runtime import make_generator


def render(found: Diagnosis) -> str:
    """Write the report of a diagnosis.

    Args:
        found: from `diagnose`.

    Returns:
        A self-contained HTML page.

    Raises:
        UsageError: matplotlib is not installed.
    """
    page = Page("Diagnosis of " + ", ".join(model.name for model in found.models))
    _opening(page, found)
    _words(page, found)
    _plan(page, found)
    _adjoint(page, found)
    _disturbed(page, found)
    _steered(page, found)
    _figures(page, found)
    return page.html()


def _opening(page: Page, found: Diagnosis) -> None:
    page.section("What was found")
    settings = found.settings
    page.text(
        f"{len(found.prompts)} prompts, the same seeds and the same disturbances for every model. Faithfulness: "
        f"{found.oracle or 'no oracle reads these prompts'}. Fluency: "
        f"{f'likelihood under {found.judge}' if found.judge else 'no judge (name one with --judge)'}. "
        f"Manta-LM's field is measured with its words "
        f"{'held as they settle in writing' if settings.words == 'writing' else 'all masked'}. Times run from 0 "
        "(nothing is decided) to 1 (the text is written). In brackets are 95% intervals of the mean over prompts; "
        "bands show one standard deviation, within the extremes."
    )
    rows = []
    for model in found.models:
        facts = [f"{key.replace('_', ' ')} {value}" for key, value in model.about.items() if key not in _COLUMNS]
        row = [model.name, model.family, f"{model.about['parameters']:,}", f"{model.about['calls']:g}"]
        rows.append([*row, "; ".join(facts), f"{model.seconds:.0f} s"])
    header = ["model", "family", "parameters", "calls a text", "about", "measured in"]
    page.table(header, rows, "The models. An autoregressive model takes a call a token.")
    given = [[v.claim, v.subject, v.status, v.evidence] for v in verdicts(found)]
    page.table(
        ["claim", "of", "verdict", "evidence"],
        given,
        "Three claims. Singularity: the flow's way has no sudden step. Adjoint: the end's gradient reaches early "
        "states of the flow, while it is absent or vanishes elsewhere. Irreversibility: the flow recovers from a "
        "disturbance that the others keep. A claim holds or fails where the 95% interval of the paired "
        "difference leaves out 0.",
    )


_COLUMNS = ("parameters", "calls")


def _curves(found: Diagnosis, names: dict[str, str], title: str, y_label: str, *, log_y: bool = False) -> str | None:
    """Profiles of several kinds for each model that has them; the band is left out where it would reach below 0."""
    series, bands = {}, {}
    for model in found.models:
        for name, suffix in names.items():
            profile = model.measured.profiles.get(name)
            if profile is None or not any(map(math.isfinite, profile.mean())):
                continue
            label = f"{model.name}{suffix}"
            series[label] = (profile.times, profile.mean())
            bands[label] = profile.band()
    if not series:
        return None
    return lines(
        series, title=title, x_label="time (0 nothing decided, 1 written)", y_label=y_label, bands=bands, log_y=log_y
    )


def _draw(page: Page, svg: str | None, caption: str) -> None:
    if svg is not None:
        page.figure(svg, caption)


def _words(page: Page, found: Diagnosis) -> None:
    page.section("How the words come")
    _draw(
        page,
        _curves(found, {"way_travelled": ""}, "Share of the words' way that is behind", "share"),
        "A straight line is an even pace; a jump is a moment at which much is decided at once. "
        "Try: more calls, or another decoder, where a curve leaps.",
    )
    _draw(
        page,
        _curves(found, {"words_gone_back": ""}, "Times a word's draft has changed", "changes a word"),
        "A model that never goes back cannot mend its own early mistakes; one that never stops has not converged. "
        "Try: more calls if the curve still climbs at the end.",
    )
    for model in found.models:
        for timeline in model.measured.timelines[:1]:
            calls = [str(k + 1) for k in range(len(timeline["belief"]))]
            drawing = heat(
                timeline["belief"],
                title=f"{model.name}: belief in the word that stands at the end",
                x_label="word",
                y_label="network call",
                x_ticks=timeline["words"],
                y_ticks=calls,
            )
            page.figure(
                drawing,
                "Bright: that call already believed in the final word. From left to right it is a staircase, in "
                "parallel a fog that clears; dark cells late in a column are words decided at the last moment. "
                "Try: look up the words that stay dark, they are what the model is unsure of.",
            )
    for kind, title in (("words", "expected embedding of the text"), ("plan", "the plan")):
        for model in found.models:
            ways = model.measured.ways.get(kind, [])[:4]
            if ways:
                series = {f"text {i + 1}": way for i, way in enumerate(ways)}
                page.figure(
                    scatter(
                        series,
                        title=f"{model.name}: {title}, in the plane of its main directions",
                        x_label="along (the end is at 0)",
                        y_label="across",
                        joined=True,
                    ),
                    "Each way starts at the left and ends at the origin, seen in its own plane: straight and evenly "
                    "dotted is easy to follow in few calls. Try: a finer grid, or a second-order solver, at turns.",
                )


def _plan(page: Page, found: Diagnosis) -> None:
    if not any(model.family == "manta" for model in found.models):
        return
    page.section("The flow's field")
    _draw(
        page,
        _curves(found, {"strain": ""}, "Strain: how fast neighbouring plans part", "largest eigenvalue, 1/t"),
        "A peak is a moment at which small errors grow most, and at which few steps fail. Try: a higher noise floor of "
        "the space (space.noise_floor), or more steps at the peak.",
    )
    _draw(
        page,
        _curves(found, {"vorticity_share": ""}, "Rotation in the field", "|Ω|² / |J|²"),
        "The exact field has no rotation, so what is seen is error of training. Try: longer training or a larger model "
        "where it is far above 0.",
    )
    names = {"R": ", by differentiation", "R_of_steps": ", over the steps made", "R_of_pressure": ", pressure"}
    _draw(
        page,
        _curves(found, names, "R(t) = |Dv/Dt|² / |v|², 0 is straight at an even pace", "1/t²", log_y=True),
        "The residual of the Hamilton-Jacobi-Bellman equation without a potential. If differentiation reads far above "
        "the steps, the net ripples in time between the times it is asked at, which no step meets; the pressure is "
        "what the field's own uncertainty asks for. Try: `manta distill`, or more calls.",
    )


def _adjoint(page: Page, found: Diagnosis) -> None:
    page.section("What reaches the beginning")
    names = {
        "adjoint": "",
        "adjoint_of_words": ", words' likelihood",
        "adjoint_straight_through": ", straight-through",
        "adjoint_relaxed": ", relaxed",
    }
    _draw(
        page,
        _curves(
            found,
            names,
            "Adjoint: the end's gradient as earlier steps meet it",
            "norm over that of the end",
            log_y=True,
        ),
        "Near 1 the end can be steered from there; far below it cannot be reached, far above it hangs by a thread. "
        "Of autoregressive and masked models the gradient at each step's choice of words is shown, through surrogates, "
        "as their own steps pass none at all, over that of their last third. "
        "Try: fine-tuning by gradients where the curve stays within 0.1 to 10, else by rewards or by more data.",
    )
    keys = [
        "adjoint_early_over_late",
        "adjoint_least",
        "adjoint_largest",
        "controls_without_gradient",
        "word_controls_without_gradient",
    ]
    keys += [f"{key}_{way}" for way in ("straight_through", "relaxed") for key in keys[:4]]
    _table(page, found, keys, "The adjoint in figures. Absent is not 0: no path of operations leads there.")


def _disturbed(page: Page, found: Diagnosis) -> None:
    page.section("What a disturbance does")
    times = found.settings.disturbed_at
    captions = {
        "recovered@": (
            "Exchanged words that end as they would have",
            "share",
            "0 is irreversible: what was written wrong stays wrong. Try: a decoder that takes words back (remask, or "
            "deferred with rounds), or a flow.",
        ),
        "spread@": (
            "Other words that end differently",
            "share",
            "How far an error spreads. Try: blocks or a window, so that fewer words hang on each.",
        ),
        "faithfulness_lost@": (
            "Faithfulness lost to the disturbance",
            "loss, 0 to 1",
            "The same exchange costs most where everything after it is built upon it. Try: correct early, or rerank.",
        ),
        "push_recovered@": (
            "Recovery of a pushed plan: feedback against replay (0)",
            "1 − gain",
            "1 is full recovery, 0 is what replayed controls give, below 0 the push was amplified. Try: fewer steps "
            "held between looks at the state, a higher noise floor.",
        ),
    }
    for name, (title, y_label, meaning) in captions.items():
        series, bands = {}, {}
        for model in found.models:
            figures = [model.measured.figures.get(f"{name}{t:g}") for t in times]
            there = [figure for figure in figures if figure is not None and figure.finite]
            if len(there) == len(times):
                series[model.name] = (times, [figure.mean for figure in there])
                bands[model.name] = ([figure.band[0] for figure in there], [figure.band[1] for figure in there])
        if series:
            page.figure(
                lines(series, title=title, x_label="time of the disturbance", y_label=y_label, bands=bands), meaning
            )
    keys = ["repaired", "collateral", "collateral_alone", "errors_left"]
    keys += ["faithfulness_lost@repair", "likelihood_lost@repair"]
    _table(
        page,
        found,
        keys,
        f"Self-correction: {found.settings.disturbed_share:.0%} of a finished text's words exchanged, the text put "
        f"back to time {found.settings.renoised_to:g} and written on. Errors left above 1 mean that it got worse. "
        "Try: a later time, which keeps more of the text.",
    )


def _steered(page: Page, found: Diagnosis) -> None:
    page.section("How far it can be steered")
    if found.keyword is None:
        page.text("No word offered itself as a goal; name one with --keyword.")
        return
    cost = next((name for name in ("likelihood_lost", "faithfulness_lost", "edited") if _has(found, name)), "edited")
    units = {"likelihood_lost": "nats a token", "faithfulness_lost": "0 to 1", "edited": "share of the words"}
    series, labels, rows = {}, {}, []
    for model in found.models:
        for way in dict.fromkeys(part.way for part in model.steered):
            parts = [part for part in model.steered if part.way == way or part.strength == 0]
            name = f"{model.name}, {way}"
            series[name] = ([p.figures[cost].mean for p in parts], [p.figures["met"].mean for p in parts])
            labels[name] = [f"{part.strength:g}" for part in parts]
        for part in model.steered:
            cells = [_shown(part.figures[key]) if key in part.figures else "–" for key in _COSTS]
            rows.append([model.name, part.way if part.strength else "off", f"{part.strength:g}", *cells])
    page.figure(
        scatter(
            series,
            title=f"Goal: the text says “{found.keyword}”",
            x_label=f"cost: {cost.replace('_', ' ')}, {units[cost]}",
            y_label="share of the texts that say it",
            joined=True,
            labels=labels,
        ),
        "High on the left is what one wants: the goal met at no cost; numbers are strengths. Try: the weakest strength "
        "that meets the goal, or train with the word in the prompt.",
    )
    page.table(
        ["model", "guided", "strength", *_COSTS.values()],
        rows,
        "Guidance at sampling time; tuned: adjoint matching, its strength is the reward's scale.",
    )


_COSTS = {
    "met": "goal met",
    "edited": "words edited",
    "faithfulness_lost": "faithfulness lost",
    "likelihood_lost": "likelihood lost, nats a token",
}


def _has(found: Diagnosis, name: str) -> bool:
    """Whether every model has the figure in all its parts."""
    parts = [part for model in found.models for part in model.steered]
    return bool(parts) and all(name in part.figures and part.figures[name].finite for part in parts)


def _figures(page: Page, found: Diagnosis) -> None:
    page.section("All figures")
    page.text("Mean and its 95% interval over prompts; docs/diagnostics.md defines each for each family.")
    known = sorted({name for model in found.models for name in model.measured.figures}, key=_order)
    _table(page, found, known, "Every figure that was measured.")


def _order(name: str) -> tuple[int, str]:
    bases = list(FIGURES)
    base = name.split("@")[0]
    for suffix in ("_straight_through", "_relaxed"):
        base = base.removesuffix(suffix)
    return (bases.index(base) if base in bases else len(bases)), name


def _table(page: Page, found: Diagnosis, names: Sequence[str], caption: str) -> None:
    rows = []
    for name in names:
        figures = [model.measured.figures.get(name) for model in found.models]
        if any(figure is not None for figure in figures):
            base = _order(name)[0]
            unit = list(FIGURES.values())[base] if base < len(FIGURES) else ""
            rows.append([name.replace("_", " "), unit, *(_shown(f) if f else "–" for f in figures)])
    if rows:
        page.table(["figure", "unit", *(model.name for model in found.models)], rows, caption)


def _shown(figure: Figure) -> str:
    if not figure.finite:
        return "absent"
    interval, left_out = "", len(figure.values) - len(figure.finite)
    if len(figure.finite) > 1:
        found = bootstrap_mean(torch.tensor(figure.finite), generator=make_generator(0), resamples=2000)
        interval = f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{figure.mean:.3g}{interval}" + (f" ({left_out} absent)" if left_out else "")
