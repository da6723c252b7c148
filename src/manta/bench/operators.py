"""Growth of an operator's cost with the length: counted operations beside measured seconds."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from manta.bench.timing import Row, interleaved
from manta.operators import KINDS, Operator, OperatorContext, line
from manta.runtime import make_generator

M = TypeVar("M", bound=nn.Module)


def operator_costs(
    lengths: Sequence[int], *, dim: int = 192, batch: int = 4, repeats: int = 5, device: torch.device | str = "cpu"
) -> list[Row]:
    """Forward seconds and floating-point operations of every operator at every length.

    Args:
        lengths: elements of a row, each at least 1.
        dim: width of the state.
        batch: rows.
        repeats: rounds of `interleaved`, in which the operators take turns; the median counts.
        device: where to compute.

    Returns:
        One row for each operator and length: `milliseconds` and `mflop` of the whole batch, and `gflop_per_second`.
        Operations are those of matrix products, as `Operator.flops` counts them.
    """
    operators = {kind: randomised(config().build(dim)).to(device) for kind, config in KINDS.items()}
    rows = []
    for length in lengths:
        state = torch.randn(batch, length, dim, generator=make_generator(length)).to(device)
        time = torch.full((batch, length), 0.5, device=device)
        context = OperatorContext(line(length, time.device), time=time)
        calls: Mapping[str, Callable[[], object]] = {
            kind: partial(_forward, operator, state, context) for kind, operator in operators.items()
        }
        for kind, times in interleaved(calls, repeats).items():
            seconds, flops = median(times), batch * operators[kind].flops(length, dim)
            row = {"operator": kind, "length": length, "milliseconds": 1000 * seconds, "mflop": flops / 1e6}
            rows.append({**row, "gflop_per_second": flops / seconds / 1e9})
    return rows


def growth(rows: Sequence[Row]) -> list[Row]:
    """How cost grows from the first length to the last: the exponent p of cost ∝ lengthᵖ.

    Args:
        rows: of `operator_costs`, at two lengths or more.

    Returns:
        One row for each operator: the exponents of its seconds and of its operations.
    """
    found = []
    for kind in dict.fromkeys(row["operator"] for row in rows):
        mine = sorted((row for row in rows if row["operator"] == kind), key=lambda row: row["length"])
        first, last = mine[0], mine[-1]
        span = math.log(last["length"] / first["length"])
        exponents = {
            f"exponent_of_{name}": math.log(last[key] / first[key]) / span
            for name, key in (("seconds", "milliseconds"), ("operations", "mflop"))
        }
        found.append({"operator": kind, "from": first["length"], "to": last["length"], **exponents})
    return found


@torch.no_grad()
def _forward(operator: Operator, state: Tensor, context: OperatorContext) -> Tensor:
    return operator(state, context)


def randomised(module: M) -> M:
    """The module with noise on its weights: fresh ones hold zeros, so that it would compute nothing of note."""
    generator = make_generator(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module
