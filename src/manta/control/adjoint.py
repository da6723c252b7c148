"""The adjoint of a sampler: how much of a terminal cost's gradient reaches the earlier states and controls.

    lambda_N = grad cost(z_N),    lambda_k = (d z_{k+1} / d z_k)^T lambda_{k+1}

by reverse accumulation over the steps that were made, so it is the exact derivative of the sampler, not of the flow
that the sampler approximates (there: d lambda / dt = -J^T lambda). Chains of token commitments are in `chain.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import UsageError
from manta.flow.solvers import Field, Noise, Step, checked_grid, euler, solve
from manta.types import Estimate

TerminalCost = Callable[[Tensor], Tensor]
"""`cost(state) -> "b"`: the cost of each request's end, such as the negative log-likelihood of a readout."""


@dataclass(frozen=True)
class Adjoint:
    """Norms of the adjoint along the way. A norm of nan says *absent* (no path of operations leads there), not 0."""

    times: Float[Tensor, "points"]
    """Times of a flow, or k / N for a chain of N steps."""
    states: Float[Tensor, "probes points b n"]
    """`|lambda_k|` over the channels of each position; positions are all of the event's axes but the last."""
    controls: Float[Tensor, "probes steps b n"]
    """Norm of the gradient with respect to what each step decided at each position."""
    counted: Bool[Tensor, "b n"]
    """True at positions that enter the figures below: those that are not given."""
    start: Tensor
    """The gradient itself at the first state, "probes b *event"; nan where absent."""

    @property
    def profile(self) -> Float[Tensor, "points b"]:
        """`|lambda_k| / |lambda_N|` per request, root mean square over probes and positions; ends at 1.

        With unit probes it is the size of the derivative of the end with respect to the state at that time. nan where
        the gradient is absent at all positions, or for a request whose cost has none at the end.
        """
        squares = self.states.square().masked_fill(~self.counted, torch.nan)
        norms = squares.nansum(dim=(0, 3)).sqrt().masked_fill(self.absent, torch.nan)
        return norms / norms[-1]

    @property
    def absent(self) -> Bool[Tensor, "points b"]:
        """True where no position of the request has a gradient path from the end."""
        return (self.states.isnan() | ~self.counted).all(dim=3).all(dim=0)

    @property
    def vanishing(self) -> Float[Tensor, "b"]:
        """The smallest of the profile before the end: near 0, the end cannot be steered from there. nan if absent."""
        earlier = self.profile[:-1]
        smallest = earlier.nan_to_num(torch.inf, posinf=torch.inf).amin(0)
        return smallest.masked_fill(earlier.isnan().all(0), torch.nan)

    @property
    def exploding(self) -> Float[Tensor, "b"]:
        """The largest of the profile before the end: far above 1, small changes there decide the end. nan if absent."""
        earlier = self.profile[:-1]
        largest = earlier.nan_to_num(-torch.inf, posinf=torch.inf).amax(0)
        return largest.masked_fill(earlier.isnan().all(0), torch.nan)

    @property
    def share_without_gradient(self) -> Float[Tensor, "b"]:
        """Share of the controls (counted positions times steps) whose gradient is absent, or 0 in every probe."""
        reached = ((self.controls > 0) & self.counted).any(0).sum(dim=(0, 2))
        return 1 - reached / (self.counted.sum(1) * self.controls.shape[1])


def flow_adjoint(
    field: Field,
    state: Float[Tensor, "b *event"],
    grid: Float[Tensor, "points"] | Sequence[float],
    terminal: TerminalCost | Float[Tensor, "probes b *event"],
    *,
    step: Step = euler,
    noise: Noise | None = None,
    cond: Any = None,
    self_cond: Tensor | None = None,
    known: Bool[Tensor, "b n"] | None = None,
    through_self_cond: bool = False,
) -> Adjoint:
    """Measure the adjoint of a flow's sampler: one run forward, then one vector-Jacobian product per step and probe.

        for k = N-1 .. 0:    lambda_k = lambda_{k+1}^T d step(z_k) / d z_k

    Args:
        field, state, grid, step, noise, cond, self_cond, known: as in `solve`. Fresh noise is drawn once and repeated.
        terminal: a cost of the end, or probes in its place: `unit_probes` where no cost is singled out.
        through_self_cond: also follow the gradient through the estimate fed back, which makes it part of the state:
            (lambda, mu)_k = (lambda, mu)_{k+1}^T d(z_{k+1}, clean_{k+1}) / d(z_k, clean_k), mu_N = 0. Without it the
            estimates count as given, which is the convention of adjoint matching.

    Returns:
        The adjoint. Its controls are velocities added during a step, `dC / du_k = lambda_{k+1}` per unit of t. Norms
        leave known positions out, as nothing may move them.

    Raises:
        UsageError: if the field's estimate carries no gradient.

    Source: reverse accumulation; the recursion of adjoint matching (arXiv 2409.08861) for a deterministic path.
    """
    times, options = checked_grid(grid), {"step": step, "cond": cond, "known": known}
    states, fed, drawn = [state.detach()], [self_cond], []
    with torch.no_grad():
        for span in times.unfold(0, 2, 1):
            draws: list[Tensor] = []
            reached = next(solve(field, states[-1], span, noise=_keeping(noise, draws), self_cond=fed[-1], **options))
            states.append(reached.state)
            fed.append(reached.clean)
            drawn.append(draws)

    counted = torch.ones_like(positions(state)[..., 0], dtype=torch.bool)
    counted = counted if known is None else ~known
    free = counted[..., None].expand_as(positions(state)).reshape(state.shape)
    adjoint = terminal_gradient(terminal, states[-1]) * free
    fed_adjoint = torch.zeros_like(adjoint)
    norms = [position_norms(adjoint)]
    followed = field if through_self_cond else _given_estimates(field)
    for k in reversed(range(len(drawn))):
        now, estimate = states[k].requires_grad_(), fed[k]
        inputs = [now]
        if through_self_cond and estimate is not None:
            estimate = estimate.detach().requires_grad_()
            inputs.append(estimate)
        with torch.enable_grad():
            again = _repeating(drawn[k])
            reached = next(solve(followed, now, times[k : k + 2], noise=again, self_cond=estimate, **options))
        if not reached.clean.requires_grad:
            raise UsageError("the field's estimate carries no gradient; let it run with gradients and detach nothing")
        outputs = [reached.state, reached.clean][: 2 if through_self_cond else 1]
        pulled = [pull_back(outputs, inputs, pair[: len(outputs)]) for pair in zip(adjoint, fed_adjoint, strict=True)]
        adjoint = torch.stack([_or_zero(gradients[0], now) for gradients in pulled]) * free
        if len(inputs) > 1:
            fed_adjoint = torch.stack([_or_zero(gradients[1], now) for gradients in pulled])
        norms.append(position_norms(adjoint))
    profile = torch.stack(norms[::-1], dim=1)
    return Adjoint(times=times, states=profile, controls=profile[:, 1:], counted=counted, start=adjoint)


def unit_probes(
    state: Float[Tensor, "b *event"], num_probes: int, generator: torch.Generator
) -> Float[Tensor, "probes b *event"]:
    """Draw random directions of length 1 per request, to stand for the gradient of no cost in particular."""
    draws = torch.randn((num_probes, *state.shape), generator=generator, device=generator.device).to(state)
    return draws / draws.flatten(2).norm(dim=2).reshape(num_probes, -1, *(1,) * (state.ndim - 1))


def terminal_gradient(terminal: TerminalCost | Tensor, state: Tensor) -> Float[Tensor, "probes b *event"]:
    """Return `grad cost(state)` with an axis of one probe in front, or the probes that were given in its place.

    Raises:
        UsageError: if the cost is not one number per request that depends on the state, or the probes do not fit it.
    """
    if isinstance(terminal, Tensor):
        if terminal.shape[1:] != state.shape:
            raise UsageError(
                f"probes have the shape of the state {tuple(state.shape)} behind their own axis, "
                f"got {tuple(terminal.shape)}"
            )
        return terminal.detach().to(state)
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        cost = terminal(leaf)
    if cost.shape != state.shape[:1] or not cost.requires_grad:
        raise UsageError(
            "a terminal cost is one differentiable number per request (b), "
            f"got the shape {tuple(cost.shape)}{'' if cost.requires_grad else ' without a gradient'}"
        )
    return torch.autograd.grad(cost.sum(), leaf)[0][None]


def pull_back(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
    """Vector-Jacobian product of outputs with respect to leaves; None where no path of operations links them."""
    linked = [
        (output, cotangent) for output, cotangent in zip(outputs, cotangents, strict=True) if output.requires_grad
    ]
    if not linked:
        return [None] * len(inputs)
    reached, given = zip(*linked, strict=True)
    return list(torch.autograd.grad(reached, inputs, given, retain_graph=True, allow_unused=True))


def positions(values: Tensor) -> Tensor:
    """The values with all of the event's axes but the last as positions: "b *event" to "b n c"."""
    return values.reshape(len(values), -1, values.shape[-1])


def position_norms(adjoint: Tensor) -> Tensor:
    """Norm over the channels, "probes b n", of "probes b *event"."""
    return torch.stack([positions(probe).norm(dim=-1) for probe in adjoint])


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _keeping(noise: Noise | None, draws: list[Tensor]) -> Noise | None:
    """The noise, with every draw put into a list."""

    def kept(like: Tensor) -> Tensor:
        assert noise is not None
        draws.append(noise(like))
        return draws[-1]

    return None if noise is None else kept


def _repeating(draws: list[Tensor]) -> Noise:
    """The draws again, in their order."""
    waiting = iter(draws)
    return lambda like: next(waiting)


def _given_estimates(field: Field) -> Field:
    """The field with its self-conditioning held constant, also within a step of several calls."""

    def held(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Tensor | Estimate:
        return field(state, t, cond=cond, self_cond=None if self_cond is None else self_cond.detach())

    return held
