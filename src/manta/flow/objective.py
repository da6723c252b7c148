"""What the policy is taught: velocity matching in a frozen space, token cross-entropy in a learned one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.flow.path import LinearPath
from manta.flow.solvers import Field
from manta.flow.time_density import TimeDensity
from manta.step import is_shared
from manta.types import Estimate, Loss

Rows = Callable[[Any, Tensor], Any]
"""`select(cond, rows) -> cond` of those rows of the batch."""
TerminalCost = Callable[[Estimate, Tensor], Tensor]
"""`terminal(estimate, t) -> cost`, a scalar, of what the field answered at the times "b"."""


@dataclass(frozen=True, kw_only=True)
class FlowObjectiveConfig:
    """Weights and probabilities of the flow's objectives."""

    weight_cap: float = 20.0
    """Largest weight of the squared clean-state error, which is 1 / (1 - t)^2 below it (velocity matching)."""
    self_cond_probability: float = 0.5
    """Share of rows that are given their own first estimate, in [0, 1]. Chen et al. 2022 (arXiv 2208.04202)."""
    self_cond_noise: float = 0.2
    """The estimate fed back is disturbed by noise of a standard deviation uniform in [0, this], in latent units."""
    start_share: float = 0.15
    """Share of rows at t = 0 exactly, where every text begins."""
    end_share: float = 0.15
    """Share of rows at t = 1, where the flow is over and the policy reads what it was carried to."""

    def __post_init__(self) -> None:
        if self.weight_cap < 1:
            raise ConfigError(f"weight_cap must be 1 or more (the weight at t = 0), got {self.weight_cap}")
        if min(self.start_share, self.end_share) < 0 or self.start_share + self.end_share >= 1:
            raise ConfigError("start_share and end_share must be 0 or more and add up to less than 1")
        if not 0 <= self.self_cond_probability <= 1 or self.self_cond_noise < 0:
            raise ConfigError(
                "self_cond_probability must be in [0, 1] and self_cond_noise 0 or more, "
                f"got {self.self_cond_probability}, {self.self_cond_noise}"
            )


@dataclass(frozen=True)
class _Noised:
    """A batch on the path."""

    t_rows: Tensor
    """Time of each row's unknown positions, "b"."""
    t: Tensor
    """Time of each position, "b n": 1 where known."""
    times: Tensor
    """What the field is told: `t_rows` where no position is known, which is cheaper, else `t`."""
    state: Tensor
    """State on the path, "b n c"."""
    scored: Tensor
    """True where a loss is due, "b n": real and not known."""


def velocity_matching(
    field: Field,
    clean: Float[Tensor, "b n c"],
    *,
    path: LinearPath,
    time_density: TimeDensity,
    generator: torch.Generator,
    config: FlowObjectiveConfig,
    mask: Bool[Tensor, "b n"] | None = None,
    known: Bool[Tensor, "b n"] | None = None,
    cond: Any = None,
    select: Rows | None = None,
    weight: float = 1.0,
    terminal: TerminalCost | None = None,
    posterior: tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]] | None = None,
    coupled: Float[Tensor, "b n c"] | None = None,
    observe: bool = True,
) -> Loss:
    """Velocity matching through the clean-state estimate, with a capped weight.

        |velocity_hat - velocity|^2 = |clean_hat - clean|^2 / (1 - t)^2 -> min(1 / (1 - t)^2, cap) |clean_hat - clean|^2

    averaged over the channels and the scored positions (real and not known) of the batch. Its minimiser is
    E[clean | state, known positions].

    Args:
        field: estimate of the clean state, `field(state, t, *, cond, self_cond)`; t is "b n" with `known`, else "b".
            Rows that are not given their own estimate receive a `self_cond` of zeros, which must mean the same as none.
        clean: samples of the encoder (not its means), standardised. A target is a constant: an encoder that is trained
            at the same time receives its gradient through the state only, as the field's other costs see it.
        path: the path from noise to `clean`.
        time_density: where times are drawn from; it observes the squared error per dimension of each row.
        generator: source of all randomness.
        config: cap and self-conditioning.
        mask: True at real positions; padding enters no loss. All are real if left out.
        known: True at given positions: they are clean at t = 1 and enter no loss.
        cond: handed to the field.
        select: `select(cond, rows)`; if given, the first estimates are made for the chosen rows only, which is cheaper.
        weight: factor of velocity matching beside the terminal cost.
        terminal: a cost that is added to the loss, such as the cross-entropy of the words read from the same call; it
            is given what the field answered and the time of each row.
        posterior: mean and standard deviation of the encoder's Gaussian that `clean` was drawn from. The target is
            then `E[clean | state, mean]` instead of the draw, see `posterior_target`: the minimiser is the same and
            the encoder's own noise leaves the gradient.
        coupled: noise that belongs to `clean`, NaN where it is to be drawn afresh; None: all of it is.
        observe: whether the time density takes in this batch; False to evaluate.

    Returns:
        `Loss` with parts `velocity` (the weighted loss) and `clean_error` (squared error per dimension, unweighted).

    Raises:
        UsageError: if no position is left to be scored.
    """
    # 1. Draw times and noise, and put the rows on the path.
    noised = _noised(clean, path, time_density, generator, config, mask, known, coupled)
    # 2. Some rows are fed the field's own first estimate, disturbed.
    fed_back = _first_estimates(field, noised, generator, config, cond, select)
    # 3. Ask the field, and weigh its error by the capped stiffness.
    estimate = Estimate.of(field(noised.state, noised.times, cond=cond, self_cond=fed_back))
    error = (estimate.clean - clean.detach()).square().mean(-1)
    stiffness = (1 - noised.t).square().clamp_min(1 / config.weight_cap).reciprocal()
    if posterior is None:
        total = _scored_mean(stiffness * error, noised.scored)
    else:
        target = posterior_target(noised.state, noised.t, *posterior).detach()
        total = _scored_mean(stiffness * (estimate.clean - target).square().mean(-1), noised.scored)
    # 4. The time density learns from the plain error; the words' cost is read from the same call.
    if observe:
        _observe(time_density, noised, error)
    parts = {"velocity": total.detach(), "clean_error": _scored_mean(error.detach(), noised.scored)}
    total = weight * total
    if terminal is not None:
        cost = terminal(estimate, noised.t_rows)
        total, parts["terminal"] = total + cost, cost.detach()
    return Loss(total=total, parts=parts)


def posterior_target(
    state: Float[Tensor, "b n c"],
    t: Float[Tensor, "b n"],
    mean: Float[Tensor, "b n c"],
    std: Float[Tensor, "b n c"],
) -> Float[Tensor, "b n c"]:
    """The clean state's mean given the state and the Gaussian it was drawn from.

        E[clean | state, mean] = mean + std^2 t / (std^2 t^2 + (1 - t)^2) (state - t mean)

    By the tower rule E[clean | state] is the mean of this over texts, so regressing on it instead of on the draw
    (Rao-Blackwell) leaves the minimiser where it is and takes the encoder's noise out of the target. It is the mean at
    t = 0 and the draw itself at t = 1.
    """
    t = t[..., None]
    variance = std.square()
    gain = variance * t / (variance * t.square() + (1 - t).square()).clamp_min(1e-12)
    return mean + gain * (state - t * mean)


def terminal_cross_entropy(
    logits_field: Callable[..., Tensor],
    classes: Int64[Tensor, "b n"],
    embedding: Float[Tensor, "v c"],
    *,
    path: LinearPath,
    time_density: TimeDensity,
    generator: torch.Generator,
    config: FlowObjectiveConfig,
    mask: Bool[Tensor, "b n"] | None = None,
    known: Bool[Tensor, "b n"] | None = None,
    cond: Any = None,
    select: Rows | None = None,
    observe: bool = True,
) -> Loss:
    """Cross-entropy as the terminal cost, for embeddings that are learned with the policy.

        clean_hat = softmax(logits) E,        loss = -log softmax(logits)[class]

    Matching a clean state that is itself learned would collapse it; cross-entropy does not. Gradients reach the
    embedding through the state and the logits. The time density observes the cross-entropy of each row, in nats a
    token, so its implied likelihood is not defined here.

    Args:
        logits_field: `field(state, t, *, cond, self_cond) -> logits "b n v"`; t as in `velocity_matching`.
        classes: the right class of each position, such as a token.
        embedding: normalised embedding table E.
        path, time_density, generator, config, mask, known, cond, select, observe: as in `velocity_matching`;
            `config.weight_cap` is not used.

    Returns:
        `Loss` with part `cross_entropy`, in nats per scored token.

    Raises:
        UsageError: if no position is left to be scored.
    """

    def clean_field(state: Tensor, t: Tensor, *, cond: Any, self_cond: Tensor | None) -> Tensor:
        return expected_embedding(logits_field(state, t, cond=cond, self_cond=self_cond), embedding)

    noised = _noised(embedding[classes], path, time_density, generator, config, mask, known)
    fed_back = _first_estimates(clean_field, noised, generator, config, cond, select)
    logits = logits_field(noised.state, noised.times, cond=cond, self_cond=fed_back)
    cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), classes, reduction="none")
    total = _scored_mean(cost, noised.scored)
    if observe:
        _observe(time_density, noised, cost)
    return Loss(total=total, parts={"cross_entropy": total.detach()})


def expected_embedding(
    logits: Float[Tensor, "b n v"], embedding: Float[Tensor, "v c"], temperature: float = 1.0
) -> Float[Tensor, "b n c"]:
    """Return the clean-state estimate `softmax(logits / temperature) E`; a temperature below 1 seeks the mode."""
    return torch.softmax(logits / temperature, dim=-1) @ embedding


def _noised(
    clean: Tensor,
    path: LinearPath,
    time_density: TimeDensity,
    generator: torch.Generator,
    config: FlowObjectiveConfig,
    mask: Tensor | None,
    known: Tensor | None,
    coupled: Tensor | None = None,
) -> _Noised:
    scored = torch.ones(clean.shape[:2], dtype=torch.bool, device=clean.device) if mask is None else mask
    t_rows = time_density.sample(len(clean), generator)
    draws = torch.rand(len(clean), generator=generator, device=generator.device).cpu()
    t_rows = t_rows.masked_fill(draws < config.start_share, 0.0).masked_fill(draws >= 1 - config.end_share, 1.0)
    t_rows = t_rows.to(clean)
    t, times = t_rows[:, None].expand(clean.shape[:2]), t_rows
    if known is not None:
        scored = scored & ~known
        t = times = t.masked_fill(known, 1.0)
    if not bool(scored.any()):
        raise UsageError("every position of the batch is padding or known, so there is nothing to learn from")
    noise = joined(_noise_like(clean, generator), coupled)
    return _Noised(t_rows=t_rows, t=t, times=times, state=path.sample(noise, clean, t), scored=scored)


def joined(fresh: Float[Tensor, "b n c"], coupled: Float[Tensor, "b n c"] | None) -> Float[Tensor, "b n c"]:
    """Noise that belongs to the data where there is some, fresh noise where it is NaN."""
    return fresh if coupled is None else torch.where(coupled.isnan(), fresh, coupled.to(fresh))


def _first_estimates(
    field: Field,
    noised: _Noised,
    generator: torch.Generator,
    config: FlowObjectiveConfig,
    cond: Any,
    select: Rows | None,
) -> Tensor | None:
    """Disturbed first estimates of the rows that are fed back, zeros in the others; None if no row is."""
    draws = torch.rand(2, len(noised.t), generator=generator, device=generator.device).to(noised.state)
    chosen = draws[0] < config.self_cond_probability
    disturbance = _noise_like(noised.state, generator)
    if not bool(chosen.any()) and (config.self_cond_probability == 0 or not is_shared()):
        return None
    every = torch.arange(len(chosen), device=chosen.device)
    rows = every if select is None else every[chosen] if bool(chosen.any()) else every[:1]  # all processes call it
    with torch.no_grad():
        row_cond = cond if select is None else select(cond, rows)
        clean = Estimate.of(field(noised.state[rows], noised.times[rows], cond=row_cond, self_cond=None)).clean
        spread = config.self_cond_noise * draws[1]
        disturbed = clean + (spread[:, None, None] * disturbance)[rows].to(clean)
    fed_back = torch.zeros_like(noised.state).index_copy(0, rows, disturbed.to(noised.state))
    return fed_back * chosen[:, None, None]


def _noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _scored_mean(values: Tensor, scored: Tensor) -> Tensor:
    return torch.where(scored, values, 0).sum() / scored.sum()


def _observe(time_density: TimeDensity, noised: _Noised, error: Tensor) -> None:
    """Give the time density each row's mean error over its scored positions."""
    num_scored = noised.scored.sum(1)
    row_error = torch.where(noised.scored, error.detach(), 0).sum(1) / num_scored.clamp_min(1)
    time_density.observe(noised.t_rows[num_scored > 0], row_error[num_scored > 0])
