"""Growth of an operator's cost with the length: counted operations beside measured seconds."""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.bench.timing import Row, interleaved
from manta.operators import KINDS, Cache, Operator, OperatorContext, line
from manta.report import Page, lines
from manta.runtime import keep_memory, make_generator

M = TypeVar("M", bound=nn.Module)


RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Where Linux tells a process of its memory."""
FORWARD, GRADIENT, NEXT = "forward", "with gradient", "one element more"
"""What is computed: the output; the output and the gradients of state and weights; or, left to right, what an element
behind the row receives, the row being kept."""
ONE_BY_ONE = ("attention", "windowed", "linear", "dijiang")
"""Operators that are made to be read one element after the other; others compute more of the row anew."""
STEPS = 8
"""Elements behind a row that are timed together, as one is too short to be timed."""
PATIENCE = 1.5
"""Seconds of a call are at most so much more than growth by the square of the length foretells."""


def operator_costs(
    lengths: Sequence[int],
    *,
    dim: int = 192,
    batch: int = 4,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    most_seconds: float = 60.0,
) -> list[Row]:
    """Seconds, memory and floating-point operations of every operator at every length, forward and with gradient.

    Beside them stand, for `ONE_BY_ONE`, the seconds of one element more, left to right, behind a row that is kept, and
    the memory that keeping it takes.

    Args:
        lengths: elements of a row, each at least 1.
        dim: width of the state.
        batch: rows.
        repeats: rounds of `interleaved`, in which the operators take turns; the median counts.
        device: where to compute.
        most_seconds: an operator that would take longer for one call, going by its last length and the square of the
            growth, is left out from there on.

    Returns:
        One row for each operator, pass and length: `milliseconds` and `mflop` of the whole batch, `gflop_per_second`
        and `mebibytes` of the most memory beside state and weights, where the system tells it. Operations are those of
        a forward pass's matrix products, as `Operator.flops` counts them; with gradient there are about three times as
        many, and the rate is left out.
    """
    operators = {kind: randomised(config().build(dim)).to(device) for kind, config in KINDS.items()}
    causal = {
        kind: randomised(KINDS[kind]().build(dim, causal=True)).to(device) for kind in ONE_BY_ONE if kind in KINDS
    }
    keep_memory()  # as training and writing do
    last: dict[tuple[str, str], tuple[int, float]] = {}
    rows = []
    for length in sorted(lengths):
        state = torch.randn(batch, length, dim, generator=make_generator(length)).to(device)
        time = torch.full((batch, length), 0.5, device=device)
        for name, run in ((FORWARD, _forward), (GRADIENT, _gradient)):
            calls: dict[str, Callable[[], object]] = {}
            for kind, operator in operators.items():
                before, spent = last.get((kind, name), (length, 0.0))
                if PATIENCE * spent * (length / before) ** 2 <= most_seconds:
                    calls[kind] = partial(run, operator, state, OperatorContext(line(length, time.device), time=time))
            if not calls:
                continue
            peaks = {kind: peak_mebibytes(call, torch.device(device)) for kind, call in calls.items()}
            for kind, times in interleaved(calls, repeats).items():
                seconds, flops = median(times), batch * operators[kind].flops(length, dim)
                last[kind, name] = (length, seconds)
                row = {"operator": kind, "pass": name, "length": length, "milliseconds": 1000 * seconds}
                row |= {"mflop": flops / 1e6} if name == FORWARD else {}
                row |= {"gflop_per_second": flops / seconds / 1e9} if name == FORWARD else {}
                rows.append(row if peaks[kind] is None else {**row, "mebibytes": peaks[kind]})
        behind: dict[str, Behind] = {}
        for kind, operator in causal.items():
            before, spent = last.get((kind, FORWARD), (length, 0.0))
            if PATIENCE * spent * (length / before) ** 2 <= most_seconds and before == length:
                behind[kind] = Behind(operator, state)
        for kind, times in (interleaved(behind, repeats) if behind else {}).items():
            row = {"operator": kind, "pass": NEXT, "length": length}
            rows.append(row | {"milliseconds": 1000 * median(times) / STEPS, "mebibytes": behind[kind].mebibytes})
    return rows


class Behind:
    """Elements behind a row, one after the other; each call goes on with `STEPS` of them, and begins anew in time.

    Args:
        operator: causal.
        state: the row, which is read and kept at once.
    """

    def __init__(self, operator: Operator, state: Float[Tensor, "b n d"]) -> None:
        self.operator, self.state, self.cache = operator, state, Cache()
        self.length = self.at = state.shape[1]
        room = self.length + 64 * STEPS
        self.row = OperatorContext(line(room, state.device), time=torch.full((len(state), room), 0.5).to(state))
        with torch.no_grad():
            operator(state, self.row.span(0, self.length), self.cache)

    @property
    def mebibytes(self) -> float:
        """What keeping the row takes."""
        return self.cache.num_bytes / 2**20

    @torch.no_grad()
    def __call__(self) -> None:
        """Read some elements more."""
        assert self.at + STEPS <= self.row.length, "rounds enough for any benchmark"
        for _ in range(STEPS):
            self.operator(self.state[:, :1], self.row.span(self.at, self.at + 1), self.cache)
            self.at += 1


def peak_mebibytes(call: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that a call holds beyond what was held before; None where the system does not tell.

    On CPU it is what Linux has counted of the process, after the allocator has given back what it can: small calls show
    little, and what it keeps is not seen again.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not (RESET.exists() and STATUS.exists()):
        return None
    try:
        if hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
            trim.malloc_trim(0)
        RESET.write_text("5")  # the highest mark of the resident set begins anew
    except OSError:
        return None
    before = _kibibytes("VmRSS")
    call()
    return max(0, _kibibytes("VmHWM") - before) / 2**10


def _kibibytes(name: str) -> int:
    rows = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(rows[name].split()[0])


def crossings(rows: Sequence[Row], rival: str = "attention") -> list[Row]:
    """From which measured length on each operator takes less time than a rival, at all lengths that both have.

    Args:
        rows: of `operator_costs`.
        rival: an operator.

    Returns:
        One row for each other operator and pass: the length, None where it is not faster at the longest; and how many
        times faster it is at the longest length that both have.
    """
    found = []
    seconds = {(row["operator"], row["pass"], row["length"]): row["milliseconds"] for row in rows}
    for kind, name in dict.fromkeys((kind, name) for kind, name, _ in seconds if kind != rival):
        both = sorted(n for k, p, n in seconds if (k, p) == (kind, name) and (rival, name, n) in seconds)
        ratios = {n: seconds[rival, name, n] / seconds[kind, name, n] for n in both}
        slower = [n for n in both if ratios[n] <= 1]
        ahead = [n for n in both if not slower or n > slower[-1]]
        row: Row = {"operator": kind, "pass": name, "faster_from": ahead[0] if ahead else None}
        found.append(row | ({"at": both[-1], "times_faster": ratios[both[-1]]} if both else {}))
    return found


def growth(rows: Sequence[Row]) -> list[Row]:
    """How cost grows from the first length to the last: the exponent p of cost ∝ lengthᵖ.

    Args:
        rows: of `operator_costs`.

    Returns:
        One row for each operator and pass that has two lengths or more: the exponents of its seconds and, forward, of
        its operations.
    """
    found = []
    for kind, name in dict.fromkeys((row["operator"], row["pass"]) for row in rows):
        mine = [row for row in rows if (row["operator"], row["pass"]) == (kind, name)]
        first, last = (of(mine, key=lambda row: row["length"]) for of in (min, max))
        if first["length"] == last["length"]:
            continue
        span = math.log(last["length"] / first["length"])
        exponents = {
            f"exponent_of_{what}": math.log(last[key] / first[key]) / span
            for what, key in (("seconds", "milliseconds"), ("operations", "mflop"))
            if key in first
        }
        found.append({"operator": kind, "pass": name, "from": first["length"], "to": last["length"], **exponents})
    return found


def operators_page(rows: Sequence[Row], machine: Row) -> str:
    """Seconds and memory against length, as one self-contained page.

    Args:
        rows: of `operator_costs`.
        machine: where they were measured.

    Raises:
        UsageError: matplotlib is not installed.
    """
    page = Page("Operators against length")
    page.text("Measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()) + ".")
    for name in (FORWARD, GRADIENT, NEXT):
        mine = [row for row in rows if row["pass"] == name]
        page.section(name.capitalize())
        for key, unit, factor in (
            ("milliseconds", "seconds", 1e-3),
            ("mebibytes", "MiB beside state and weights", 1.0),
        ):
            series: dict[str, tuple[list[float], list[float]]] = {}
            for row in mine:
                if row.get(key) is not None:
                    x, y = series.setdefault(row["operator"], ([], []))
                    x.append(float(row["length"]))
                    y.append(factor * row[key])
            if series:
                title, label = f"{unit}, {name}", "elements of a row"
                drawn = lines(series, title=title, x_label=label, y_label=unit, log_x=True, log_y=True)
                page.figure(drawn, "Both axes are logarithmic: a straight line is a power of the length.")
        ahead = [row for row in crossings(mine) if row.get("at")]
        page.table(
            ["operator", "less time than attention from", "times faster", "at"],
            [
                [
                    row["operator"],
                    "–" if row["faster_from"] is None else f"{row['faster_from']:,}",
                    f"{row['times_faster']:.2f}",
                    f"{row['at']:,}",
                ]
                for row in ahead
            ],
            "An operator that would have taken too long for one call was left out from that length on.",
        )
    return page.html()


@torch.no_grad()
def _forward(operator: Operator, state: Tensor, context: OperatorContext) -> Tensor:
    return operator(state, context)


def _gradient(operator: Operator, state: Tensor, context: OperatorContext) -> object:
    state = state.detach().requires_grad_()
    output = operator(state, context)
    return torch.autograd.grad(output, [state, *operator.parameters()], output.detach(), allow_unused=True)


def randomised(module: M) -> M:
    """The module with noise on its weights: fresh ones hold zeros, so that it would compute nothing of note."""
    generator = make_generator(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module
