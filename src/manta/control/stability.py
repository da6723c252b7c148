"""What becomes of a disturbance: of the state of a flow, of the symbols of a chain, and of the errors in a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.control.adjoint import unit_probes
from manta.errors import UsageError
from manta.flow.closed_loop import Disturbance, disturbance_errors, record, replay
from manta.flow.solvers import Field

Readout = Callable[[Tensor], Tensor]
"""`readout(latents "b n c") -> symbols "b n"`."""


@dataclass(frozen=True)
class Response:
    """How a sampler answered to one disturbance, per request, with feedback and with the recorded control."""

    t: float
    """Time that was asked for; it acted at the grid point nearest to it."""
    feedback_gain: Float[Tensor, "b"]
    """Amplification: distance of the disturbed end from the undisturbed one over the size of the disturbance."""
    replay_gain: Float[Tensor, "b"]
    """The same in open loop: 1, as recorded controls answer to nothing."""
    feedback_flips: Float[Tensor, "b"] | None
    """Share of positions whose symbol changed, in [0, 1]; None without a readout."""
    replay_flips: Float[Tensor, "b"] | None
    """The same in open loop."""

    @property
    def recovery(self) -> Float[Tensor, "b"]:
        """`1 - feedback_gain`: 1 is full recovery, 0 none, and below 0 the disturbance was amplified."""
        return 1 - self.feedback_gain


def perturb(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    size: float,
    generator: torch.Generator,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    readout: Readout | None = None,
    mask: Bool[Tensor, "b n"] | None = None,
    **options: Any,
) -> list[Response]:
    """Push the state in a random direction on its way, and compare the end with that of the undisturbed run.

        gain = |z_N(z_k + delta) - z_N(z_k)| / |delta|

    For small sizes it is the size of the flow map's derivative along delta. A request whose gain is near or above 1
    may have changed its goal, which is no failure of feedback: look at the flips, or at the states.

    Args:
        field, state, grid, options: as in `solve`, with a deterministic step. Known positions are not pushed.
        size: length of the push per request, in units of the state.
        generator: source of the direction, one per request, the same at all times.
        times: when to push, each in a run of its own.
        readout: turns the ends into symbols, to count flips.
        mask: True at positions whose flips count; all if left out.

    Returns:
        A response per time.

    Raises:
        UsageError: if the size is not above 0.
    """
    if not size > 0:
        raise UsageError(f"a push has a size above 0, got {size}")
    known = options.get("known")
    free = torch.ones_like(state) if known is None else (~known)[..., None].to(state).expand_as(state)
    push = unit_probes(state, 1, generator)[0] * free
    length = push.flatten(1).norm(dim=1)
    push = size * push / length.reshape(-1, *(1,) * (state.ndim - 1))
    return respond(field, state, grid, push, times=times, readout=readout, mask=mask, **options)


def respond(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    push: Float[Tensor, "b *event"],
    *,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    readout: Readout | None = None,
    mask: Bool[Tensor, "b n"] | None = None,
    **options: Any,
) -> list[Response]:
    """Push the state as given; otherwise as `perturb`, which draws the push.

    Args:
        field, state, grid, times, readout, mask, options: as in `perturb`.
        push: what is added to the state, of any length above 0; 0 at known positions.

    Returns:
        A response per time.
    """
    symbols, length = None, push.flatten(1).norm(dim=1)
    with torch.no_grad():
        if readout is not None:
            *_, undisturbed = replay(record(field, state, grid, **options), state)
            symbols = readout(undisturbed.state)
        errors = disturbance_errors(field, state, grid, [Disturbance(t=t, delta=push) for t in times], **options)
    responses = []
    for error in errors:
        with torch.no_grad():
            ends = [] if readout is None else [readout(end) for end in (error.feedback_state, error.replay_state)]
        flips = [None, None] if symbols is None else [flip_rate(symbols, end, mask) for end in ends]
        responses.append(
            Response(
                t=error.t,
                feedback_gain=error.feedback / length,
                replay_gain=error.replay / length,
                feedback_flips=flips[0],
                replay_flips=flips[1],
            )
        )
    return responses


def flip_rate(
    before: Int64[Tensor, "b n"], after: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b"]:
    """Return the share of positions whose symbol differs, in [0, 1]; nan for a request with no position to count.

    Args:
        before, after: symbols to compare.
        mask: True at positions that count; all if left out.
    """
    return _share(before != after, torch.ones_like(before, dtype=torch.bool) if mask is None else mask)


@dataclass(frozen=True)
class ChainResponse:
    """How a chain of commitments answered to changed symbols, per request."""

    gain: Float[Tensor, "b"]
    """Amplification: symbols that differ at the end over symbols that were changed (Hamming distances)."""
    recovered: Float[Tensor, "b"]
    """Share of the changed symbols whose position ends as it would have."""
    spread: Float[Tensor, "b"]
    """Share of the other positions that end differently."""
    replay_gain: Float[Tensor, "b"]
    """The gain in open loop: the changes at positions that the undisturbed run writes again are lost, no others."""


def chain_response(
    continue_from: Callable[[Tensor], Tensor],
    symbols: Int64[Tensor, "b n"],
    disturbed: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None = None,
) -> ChainResponse:
    """Continue a chain of commitments from its symbols and from disturbed ones, and compare the ends.

    A decoder that never revises keeps every change (`recovered` 0) and may pass it on (`spread`).

    Args:
        continue_from: the rest of the chain, `continue_from(symbols) -> symbols`; deterministic, or with the same draws
            in both calls.
        symbols: the chain's symbols at some step, those not yet committed included.
        disturbed: the same with some symbols changed, from `corrupt`.
        mask: True at positions that count; all if left out.

    Returns:
        The response; nan where no symbol was changed, or (spread) every one was.
    """
    counted = torch.ones_like(symbols, dtype=torch.bool) if mask is None else mask
    end, disturbed_end = continue_from(symbols), continue_from(disturbed)
    changed, differs = (symbols != disturbed) & counted, (end != disturbed_end) & counted
    opened = torch.where(symbols == end, disturbed, end)
    return ChainResponse(
        gain=differs.sum(1) / _count(changed),
        recovered=_share(~differs, changed),
        spread=_share(differs, counted & ~changed),
        replay_gain=((opened != end) & counted).sum(1) / _count(changed),
    )


def corrupt(
    symbols: Int64[Tensor, "b n"],
    share: float,
    choices: Int64[Tensor, "choices"],
    generator: torch.Generator,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Int64[Tensor, "b n"]:
    """Replace a share of the symbols by other ones, drawn uniformly from the choices.

    Args:
        symbols: symbols to corrupt.
        share: share of each request's positions, in [0, 1], rounded to the nearest number of symbols.
        choices: at least two different symbols to draw replacements from.
        generator: source of the positions and of the replacements, on the CPU.
        mask: True at positions that may be changed; all if left out.

    Returns:
        Symbols of which exactly that share differs.

    Raises:
        UsageError: if the share is outside [0, 1], or there is only one symbol to choose from.
    """
    if not 0 <= share <= 1 or len(choices.unique()) < 2:
        raise UsageError(
            f"corrupting takes a share in [0, 1] and two choices or more, got {share} and {choices.tolist()}"
        )
    open_to_change = torch.ones_like(symbols, dtype=torch.bool) if mask is None else mask
    order = torch.rand(symbols.shape, generator=generator).to(symbols.device).masked_fill(~open_to_change, 2)
    rank = order.argsort(1).argsort(1)
    hit = (rank < (share * open_to_change.sum(1, keepdim=True)).round()) & open_to_change
    choices = choices.unique().to(symbols.device)
    # Where the symbol is one of the choices, the draw is among the others: those above it move down by one.
    place = torch.searchsorted(choices, symbols).clamp_max(len(choices) - 1)
    among = choices[place] == symbols
    draw = torch.rand(symbols.shape, generator=generator).to(symbols.device)
    index = (draw * (len(choices) - among.long())).long()
    index = index + (among & (index >= place)).long()
    return torch.where(hit, choices[index], symbols)


@dataclass(frozen=True)
class Correction:
    """Books of a correction, counts of symbols per request. Sum them over requests before taking pooled shares."""

    wrong: Int64[Tensor, "b"]
    """Wrong before."""
    repaired: Int64[Tensor, "b"]
    """Wrong before and right after."""
    replaced: Int64[Tensor, "b"]
    """Wrong before and wrong after, with another symbol."""
    right: Int64[Tensor, "b"]
    """Right before."""
    harmed: Int64[Tensor, "b"]
    """Right before and wrong after: collateral."""

    @property
    def repaired_share(self) -> Float[Tensor, "b"]:
        """`repaired / wrong`, in [0, 1]; nan where nothing was wrong."""
        return self.repaired / _positive(self.wrong)

    @property
    def collateral_share(self) -> Float[Tensor, "b"]:
        """`harmed / right`, in [0, 1]: the price of the repairs; nan where nothing was right."""
        return self.harmed / _positive(self.right)

    @property
    def remaining(self) -> Float[Tensor, "b"]:
        """Errors after over errors before, `(wrong - repaired + harmed) / wrong`: above 1 the text got worse."""
        return (self.wrong - self.repaired + self.harmed) / _positive(self.wrong)


def correction(
    truth: Int64[Tensor, "b n"],
    corrupted: Int64[Tensor, "b n"],
    repaired: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None = None,
) -> Correction:
    """Keep the books of a self-correction: what was repaired against what was harmed on the way.

    Args:
        truth: the text as it should be.
        corrupted: the text that entered the correction.
        repaired: the text that left it.
        mask: True at positions that count; all if left out.
    """
    counted = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask
    wrong, wrong_after = (corrupted != truth) & counted, (repaired != truth) & counted
    return Correction(
        wrong=wrong.sum(1),
        repaired=(wrong & ~wrong_after).sum(1),
        replaced=(wrong & wrong_after & (repaired != corrupted)).sum(1),
        right=(counted & ~wrong).sum(1),
        harmed=(wrong_after & ~wrong).sum(1),
    )


def _share(chosen: Tensor, among: Tensor) -> Tensor:
    return (chosen & among).sum(1) / _count(among)


def _count(chosen: Tensor) -> Tensor:
    return _positive(chosen.sum(1))


def _positive(count: Tensor) -> Tensor:
    """The count as a divisor: nan where it is 0, so that a share of nothing is not a number."""
    return count.to(torch.get_default_dtype()).masked_fill(count == 0, torch.nan)
