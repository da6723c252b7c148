"""Stiffness of a flow: how fast its velocity field pulls neighbouring states apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from manta.errors import UsageError
from manta.flow.path import expand_time

VelocityProduct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StrainProfile:
    """Strain along a grid of times."""

    times: Float[Tensor, "points"]
    """Times at which it was measured."""
    mean: Float[Tensor, "points"]
    """Mean over the states at each time, in 1 / unit of t."""
    largest: Float[Tensor, "points"]
    """Largest over the states at each time."""

    @property
    def peak(self) -> float:
        """The largest strain over times and states: the stiffness of the flow."""
        return float(self.largest.max())

    @property
    def peak_time(self) -> float:
        """The time of the peak."""
        return float(self.times[self.largest.argmax()])


def strain(
    field: Callable[..., Tensor],
    state: Float[Tensor, "b *event"],
    t: Float[Tensor, "b"],
    *,
    generator: torch.Generator | None = None,
    start: Float[Tensor, "b *event"] | None = None,
    num_iterations: int = 100,
    tolerance: float = 1e-5,
) -> Float[Tensor, "b"]:
    """Return the largest eigenvalue of the symmetric part of the velocity's Jacobian, per request.

        strain = lambda_max((J + J^T) / 2),    J = d velocity / d state,    velocity = (clean_hat - state) / (1 - t)

    A small error of the state grows at most at this rate; negative means that all neighbours approach. Since
    (J + J^T) / 2 = (S - I) / (1 - t) with S the symmetric part of d clean_hat / d state, the power iteration runs on
    S. For the exact field S is a covariance, its largest eigenvalue is the largest in magnitude. A trained field may
    break that, so where the first pass does not settle on a positive eigenvalue a second pass runs on S + rho I, rho
    being the spectral radius that the first pass found, which makes the largest the dominant one.

    Args:
        field: `field(state, t) -> clean`, twice differentiable in reverse mode, requests independent of each other.
            Bind `cond` and `self_cond` beforehand; they are held fixed.
        state: states at which to measure; use float32 or better.
        t: their times, "b" in [0, 1).
        generator: source of the starting vectors, on the CPU, unless they are given.
        start: starting vectors; where they are 0 at positions that no other position's estimate depends on (padding),
            these stay out of the figure.
        num_iterations: most products per pass; each costs two reverse passes.
        tolerance: a pass ends when no request's estimate changes by more than this share of the radius.

    Returns:
        The strain "b", detached. A power iteration approaches it from below.

    Raises:
        UsageError: if a time is not in [0, 1), or there is neither a generator nor a start.

    Not to be confused with vorticity, the antisymmetric part, which lets errors grow only linearly.
    """
    if not bool(((t >= 0) & (t < 1)).all()):
        raise UsageError(f"strain is measured at times in [0, 1), got {t.tolist()}")
    if start is None and generator is None:
        raise UsageError("a power iteration starts somewhere; give a generator or a start")
    state = state.detach()
    times = expand_time(t, state).flatten()
    # Second derivatives exist for the plain attention kernel only.
    with sdpa_kernel(SDPBackend.MATH):
        product = _symmetric_product(lambda x: field(x, times), state)
        if start is None:
            assert generator is not None
            start = torch.randn(state.shape, generator=generator, device=generator.device).to(state)
        eigenvalue, radius, vector = _power_iteration(product, start, num_iterations, tolerance)
        settled = eigenvalue > 0.99 * radius
        if not bool(settled.all()):
            shape = (-1, *(1,) * (state.ndim - 1))
            shift = torch.where(settled, 0, 1.01 * radius)
            fresh = torch.where(settled.reshape(shape), vector, start)
            shifted, _, _ = _power_iteration(
                lambda v: product(v) + shift.reshape(shape) * v, fresh, num_iterations, tolerance
            )
            # What has settled keeps its figure, or it would depend on the requests beside it.
            eigenvalue = torch.where(settled, eigenvalue, torch.maximum(eigenvalue, shifted - shift))
    return (eigenvalue - 1) / (1 - times)


def peak_strain(
    field: Callable[..., Tensor],
    sampler: Callable[[Tensor], Tensor],
    grid: Float[Tensor, "points"] | Sequence[float],
    *,
    generator: torch.Generator,
    num_iterations: int = 100,
    tolerance: float = 1e-5,
) -> StrainProfile:
    """Measure the strain along a grid of times.

    Args:
        field: as in `strain`.
        sampler: `sampler(t) -> state "b ..."` draws states at time t (no axes), e.g. from the path through data.
        grid: times in [0, 1); a time of 1 at the end, as sampling grids have it, is left out.
        generator, num_iterations, tolerance: as in `strain`.

    Returns:
        The profile; its `peak` is the supremum over the times and states that were looked at.
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    times = times[:-1] if bool(times[-1] == 1) else times
    rows = []
    for t in times:
        state = sampler(t)
        repeated = t.to(state).expand(len(state))
        rows.append(
            strain(field, state, repeated, generator=generator, num_iterations=num_iterations, tolerance=tolerance)
        )
    return StrainProfile(
        times=times,
        mean=torch.stack([row.mean() for row in rows]).cpu(),
        largest=torch.stack([row.max() for row in rows]).cpu(),
    )


def _symmetric_product(function: Callable[[Tensor], Tensor], state: Tensor) -> VelocityProduct:
    """`v -> (D v + D^T v) / 2` for the derivative D of `function` at `state`.

    `D^T u` is linear in u, so its own derivative is D: both products are reverse passes through graphs that are built
    once, several times faster than a forward-mode derivative in every iteration.
    """
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        answer = function(leaf)
        if not answer.requires_grad:
            return torch.zeros_like
        cotangent = torch.zeros_like(answer, requires_grad=True)
        (pulled,) = torch.autograd.grad(answer, leaf, cotangent, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        (transposed,) = torch.autograd.grad(answer, leaf, vector, retain_graph=True)
        (forward,) = torch.autograd.grad(pulled, cotangent, vector, retain_graph=True)
        return (forward + transposed) / 2

    return product


def _power_iteration(
    product: VelocityProduct, start: Tensor, num_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rayleigh quotient "b", norm of the product "b" and vector, of the eigenvalue largest in magnitude."""
    vector = _normalised(start)
    eigenvalue = radius = torch.zeros(len(start), dtype=start.dtype, device=start.device)
    for _ in range(num_iterations):
        before = radius
        image = product(vector)
        eigenvalue = (vector * image).flatten(1).sum(1)
        radius = image.flatten(1).norm(dim=1)
        vector = _normalised(image)
        if bool(((radius - before).abs() <= tolerance * radius).all()):
            break
    return eigenvalue, radius, vector


def _normalised(vector: Tensor) -> Tensor:
    norm = vector.flatten(1).norm(dim=1)
    return vector / expand_time(norm.clamp_min(torch.finfo(vector.dtype).tiny), vector)
