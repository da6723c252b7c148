"""What is told of a quantised model: a card, and a page with the error of every map and what it read at which time."""

from collections.abc import Sequence

import torch

from manta.families.asked import follows
from manta.quantisation import Observed
from manta.recipes.quantising import Quantisation
from manta.report import Page
from manta.report.plots import lines

MADE = {"image": "draw in 8 calls", "joint": "draw in 8 calls", "restorer": "restore"}
"""What models of images do, by their family."""
DRAWN = 6
"""Maps whose inputs are drawn over time: those that change most."""


def sizes(before: int, after: int) -> str:
    """Bytes of the weights, beside what they take in float32."""
    return f"{after / 1e6:.2f} MB, {after / before:.3f} of the {before / 1e6:.2f} MB of its weights in float32"


def summary(found: Quantisation, before: int, after: int) -> list[str]:
    """What it saves and costs, in lines.

    Args:
        found: the model and its figures.
        before: bytes of its weights in float32.
        after: bytes of the file that holds them now.
    """
    compared, maps = found.compared, found.maps.values()
    four = sum(each.spec.bits == 4 for each in maps)
    grouped = [each.spec.groups for each in maps if each.spec.groups > 1]
    told = [
        f"{len(found.maps)} maps, {four} of them of 4 bits; {len(grouped)} with groups of times"
        + (f" ({min(grouped)} to {max(grouped)})" if grouped else ""),
        sizes(before, after),
    ]
    if compared.task:
        told.append(f"{compared.task}: {compared.before:.4f} before, {compared.after:.4f} now")
    if compared.reading is not None:
        read, now = compared.reading
        told.append(f"nats a word of held-out texts left to right: {read:.4f} before, {now:.4f} now")
    told += [f"{name}: {before:.4f} before, {now:.4f} now" for name, (before, now) in compared.others.items()]
    told.append(
        f"what both {made} is {compared.same:.1f} of 255 apart (root mean square)"
        if (made := MADE.get(found.model.family))
        else f"what both write in {how_written(found)}: {compared.same:.0%} the same"
    )
    if compared.described is not None:
        told.append(f"images that both describe alike in 8 calls: {compared.described:.0%}")
    told.append(
        f"seconds for them on this machine: {compared.seconds_before:.2f} before, {compared.seconds_after:.2f} now"
    )
    return told


def how_written(found: Quantisation) -> str:
    """How the texts that are compared were written."""
    return "8 calls" if follows(found.model.family, "num_steps") else "a call a word"


def card(found: Quantisation, old: str, before: int, after: int) -> str:
    """The card of the model that was quantised, and what has changed.

    Args:
        found: the model and its figures.
        old: card of the model before.
        before: see `summary`.
        after: see `summary`.
    """
    lines = "\n".join(f"- {line}" for line in summary(found, before, after))
    plan = found.plan
    inputs = "weights alone" if plan.bits == "w8" else f"{plan.inputs} inputs, groups {plan.groups}"
    budgets = "" if found.model.family == "restorer" else f" at {', '.join(map(str, plan.calls))} calls"
    return (
        f"{old.rstrip()}\n\n## Quantised\n\nBy `manta quantize` to `{plan.bits}` ({inputs}), watched on {plan.num} of "
        f"`{found.data}`{budgets}.\n\n{lines}\n"
    )


def page(found: Quantisation, before: int, after: int) -> str:
    """The page, as HTML.

    Args:
        found: the model and its figures.
        before: see `summary`.
        after: see `summary`.
    """
    told = Page("A quantised model")
    told.section("What it saves and costs")
    for line in summary(found, before, after):
        told.text(line[0].upper() + line[1:] + ".")
    told.section("The error of every map")
    told.text(
        "Mean square error of a map's outputs over their variance, on rows that the model has read. Naive is one step "
        "for all, no shift, no factors, and weights rounded to the nearest."
    )
    told.table(
        ("map", "bits", "inputs", "groups", "shift", "factors", "folded", "error", "naive"),
        [
            (
                name, str(each.spec.bits), each.spec.inputs, str(each.spec.groups), _yes(each.spec.shift),
                _yes(each.spec.spread), _yes(each.spec.folded), _figure(each.error), _figure(each.naive),
            )
            for name, each in found.maps.items()
        ],
    )  # fmt: skip
    grouped = {name: each for name, each in found.maps.items() if each.spec.groups > 1}
    if grouped:
        most = max(each.spec.groups for each in grouped.values())
        rows = {name: [_figure(error) for error in each.by_group] for name, each in grouped.items()}
        told.table(
            ("map", *(f"group {number + 1}" for number in range(most))),
            [(name, *row, *[""] * (most - len(row))) for name, row in rows.items()],
            caption="The same in each group of times, from noise to data.",
        )
    _draw(told, found)
    return told.html()


def _draw(told: Page, found: Quantisation) -> None:
    """What the maps that change most read over time."""
    moving = {name: seen for name, seen in found.seen.items() if len(seen.times) > 2}
    if not moving:
        return
    told.section("What maps read over time")
    told.text(
        "The largest range of a channel at each time, and the middle of the channel that moves most. A step that is "
        "right at one time is too wide or too narrow at another, which is why times have groups."
    )
    chosen = sorted(moving, key=lambda name: -_change(moving[name]))[:DRAWN]
    for title, read in (("Largest range of a channel", _ranges), ("Middle of the channel that moves most", _middles)):
        series = {name: (moving[name].times, read(moving[name])) for name in chosen}
        told.figure(lines(series, title=title, x_label="time, 0 noise, 1 data", y_label="value"), title)  # pyright: ignore


def _ends(seen: Observed) -> tuple[torch.Tensor, torch.Tensor]:
    moments = [seen.moments[time] for time in seen.times]
    return torch.stack([moment.low for moment in moments]), torch.stack([moment.high for moment in moments])


def _ranges(seen: Observed) -> Sequence[float]:
    low, high = _ends(seen)
    return (high - low).amax(1).tolist()


def _middles(seen: Observed) -> Sequence[float]:
    low, high = _ends(seen)
    middle = (low + high) / 2
    return middle[:, int((middle.amax(0) - middle.amin(0)).argmax())].tolist()


def _change(seen: Observed) -> float:
    """Of ranges over time, the largest over the least."""
    ranges = _ranges(seen)
    return max(ranges) / max(min(ranges), 1e-9)


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
