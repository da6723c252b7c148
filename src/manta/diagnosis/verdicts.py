"""What the figures say of three claims about generators, each as measured: it holds, fails, or is not decided here.

A claim compares models on the same prompts, so differences are paired and their intervals are bootstrapped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from manta.diagnosis.results import Figure
from manta.diagnosis.run import Diagnosis, ModelDiagnosis
from manta.metrics import Interval, bootstrap_difference
from manta.runtime import make_generator

BAND = (0.1, 10.0)
"""Within it an adjoint neither vanishes nor explodes: a tenth to ten times its size at the end."""

HALF_TRUE = 0.5
"""Faithfulness from which on a text has something to lose: one that is false from the start loses nothing."""


@dataclass(frozen=True)
class Verdict:
    """One claim about one flow, against one other model or by itself."""

    claim: str
    """singularity, adjoint or irreversibility."""
    subject: str
    """The models compared."""
    status: str
    """`holds`, `fails`, `undecided` (the interval of the difference leaves both open) or `not measured`."""
    evidence: str
    """The figures, in words."""


def verdicts(found: Diagnosis) -> list[Verdict]:
    """All verdicts: each flow against each other model, and flows of other noise floors or spaces among themselves."""
    flows = [model for model in found.models if model.family == "manta"]
    others = [model for model in found.models if model.family != "manta"]
    given = []
    for flow in flows:
        given += [_sudden(flow, other) for other in others]
        given.append(_adjoint(flow))
        given += [_recovers(flow, other, found.settings.disturbed_at) for other in others]
    given += [_decisions(other) for other in others]
    given += _stiffness(flows)
    if not flows:
        given.append(Verdict("all", "-", "not measured", "No flow is among the models: the claims are about flows."))
    elif not others:
        line = "No autoregressive or masked model is among the models, so nothing is compared with one."
        given.append(Verdict("all", "-", "not measured", line))
    return given


def difference(first: Figure, second: Figure) -> Interval | None:
    """Mean of the paired differences with its 95% interval; None below two pairs of numbers."""
    pairs = [pair for pair in zip(first.values, second.values, strict=True) if all(map(math.isfinite, pair))]
    if len(pairs) < 2:
        return None
    left, right = torch.tensor(pairs, dtype=torch.float64).T
    return bootstrap_difference(left, right, generator=make_generator(0), resamples=2000)


def _compared(gap: Interval | None, better: int) -> str:
    """The status of a claim that a difference has the sign `better`."""
    if gap is None:
        return "not measured"
    low, high = (gap.low, gap.high) if better > 0 else (-gap.high, -gap.low)
    return "holds" if low > 0 else "fails" if high <= 0 else "undecided"


def _sudden(flow: ModelDiagnosis, other: ModelDiagnosis) -> Verdict:
    name = "simplex_concentration"
    mine, theirs = flow.measured.figures[name], other.measured.figures[name]
    gap = difference(mine, theirs)
    line = (
        f"The largest step holds {mine.mean:.0%} of a word's way in {flow.name} and {theirs.mean:.0%} in {other.name}"
        f"{_interval(gap)}."
    )
    if other.family == "ar":
        line += " By construction: a left-to-right model believes nothing of a word before it writes it."
    if other.family == "block":
        line += " In part by construction: a block-causal model believes nothing of a word before its block is begun."
    return Verdict("singularity", f"{flow.name} against {other.name}", _compared(gap, -1), line)


def _adjoint(flow: ModelDiagnosis) -> Verdict:
    least, largest = (flow.measured.figures[f"adjoint_{end}"] for end in ("least", "largest"))
    pairs = list(zip(least.values, largest.values, strict=True))
    inside = [BAND[0] <= low and high <= BAND[1] for low, high in pairs if math.isfinite(low + high)]
    share = sum(inside) / len(inside) if inside else math.nan
    status = "not measured" if not inside else "holds" if share >= 0.9 else "fails" if share <= 0.5 else "undecided"
    line = (
        f"Of the gradient at the end, {least.mean:.2g} (least) to {largest.mean:.2g} (largest) times is met earlier; "
        f"{share:.0%} of the prompts stay within {BAND[0]:g} to {BAND[1]:g}. This is the plan's gradient alone: the "
        "words are settled by hard commitments, which pass none."
    )
    return Verdict("adjoint", flow.name, status, line)


def _decisions(other: ModelDiagnosis) -> Verdict:
    """What the claim says of the others: as they are run their adjoint is absent; and what surrogates bring back."""
    figures = other.measured.figures
    absent = figures["controls_without_gradient"].mean
    ways = ("straight_through", "relaxed")
    ratios = {way: median(figures[f"adjoint_early_over_late_{way}"].finite or [math.nan]) for way in ways}
    kept = [way.replace("_", "-") for way, ratio in ratios.items() if BAND[0] <= ratio <= BAND[1]]
    outcome = f"no vanishing with {' or '.join(kept)}" if kept else "it vanishes"
    line = (
        f"As it is run, {absent:.0%} of the decisions have no gradient: it is absent, not 0. Through surrogates the "
        f"early decisions get {ratios['straight_through']:.2g} (straight-through) and {ratios['relaxed']:.2g} "
        f"(relaxed) times the gradient of the late ones, in the median: {outcome}."
    )
    return Verdict("adjoint", f"{other.name}: absent as run", "holds" if absent > 0.99 else "fails", line)


def _recovers(flow: ModelDiagnosis, other: ModelDiagnosis, times: Sequence[float]) -> Verdict:
    """Both halves of the claim: exchanged words are put right, and a text that was true loses less of its truth."""
    parts, statuses = [], []
    for name, better, label in (("recovered@", 1, "words put right"), ("faithfulness_lost@", -1, "faithfulness lost")):
        if any(f"{name}{times[0]:g}" not in model.measured.figures for model in (flow, other)):
            continue
        mine, theirs = (_over_times(model, name, times) for model in (flow, other))
        if better < 0:
            mine, theirs = (_of_true_texts(lost, flow, other) for lost in (mine, theirs))
        gap = difference(mine, theirs)
        if gap is None:
            parts.append(f"{label}: not compared, as too few prompts have it in both models")
            continue
        statuses.append(_compared(gap, better))
        parts.append(f"{label}: {mine.mean:.2f} against {theirs.mean:.2f}{_interval(gap)}")
    status = "not measured" if not statuses else "fails" if "fails" in statuses else "undecided"
    status = "holds" if set(statuses) == {"holds"} else status
    subject = f"{flow.name} against {other.name}"
    return Verdict("irreversibility", subject, status, f"Mean over the times of disturbance, {'; '.join(parts)}.")


def _of_true_texts(lost: Figure, *models: ModelDiagnosis) -> Figure:
    """A loss of faithfulness where every model's own text had something to lose, nan elsewhere."""
    worth = zip(*(model.measured.figures["faithfulness"].values for model in models), strict=True)
    pairs = zip(lost.values, worth, strict=True)
    return Figure(tuple(value if min(clean) >= HALF_TRUE else math.nan for value, clean in pairs))


def _over_times(model: ModelDiagnosis, name: str, times: Sequence[float]) -> Figure:
    """Mean over the times of disturbance, those without a value left out."""
    columns = [model.measured.figures[f"{name}{t:g}"].values for t in times]
    rows = [[value for value in row if math.isfinite(value)] for row in zip(*columns, strict=True)]
    return Figure(tuple(sum(row) / len(row) if row else math.nan for row in rows))


def _stiffness(flows: Sequence[ModelDiagnosis]) -> list[Verdict]:
    """Whether stiffness falls as the noise floor of latents rises, floor by floor, and from embeddings to latents."""
    latents = sorted((flow for flow in flows if "noise_floor" in flow.about), key=lambda f: f.about["noise_floor"])
    embeddings = [flow for flow in flows if flow.about.get("space") == "embeddings"]
    given = [
        _less_stiff(higher, lower, "noise floors")
        for lower, higher in pairwise(latents)
        if lower.about["noise_floor"] < higher.about["noise_floor"]
    ]
    return [*given, *(_less_stiff(flow, other, "spaces") for other in embeddings for flow in latents)]


def _less_stiff(tamer: ModelDiagnosis, stiffer: ModelDiagnosis, what: str) -> Verdict:
    mine, theirs = tamer.measured.figures["peak_strain"], stiffer.measured.figures["peak_strain"]
    gap = difference(mine, theirs)
    line = f"Peak strain is {theirs.mean:.3g} in {_place(stiffer)} and {mine.mean:.3g} in {_place(tamer)}"
    subject = f"{what}: {tamer.name} against {stiffer.name}"
    return Verdict("singularity", subject, _compared(gap, -1), f"{line}{_interval(gap)}.")


def _place(flow: ModelDiagnosis) -> str:
    floor = flow.about.get("noise_floor")
    return str(flow.about.get("space")) + ("" if floor is None else f" with a noise floor of {floor:g}")


def _interval(gap: Interval | None) -> str:
    return "" if gap is None else f" (difference {gap.value:+.2f}, 95% interval {gap.low:+.2f} to {gap.high:+.2f})"
