"""Global convolution through a few low Fourier modes, computed by matrix products on rows of any length."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.operators.attention import check_positive
from manta.operators.context import HEADS, Cache, Operator, OperatorContext

TIME_FEATURES = 4


@dataclass(frozen=True, kw_only=True)
class FourierConfig:
    """Convolution with a learned kernel of low Fourier modes."""

    kind: Literal["fourier"] = "fourier"
    """Which operator this is."""

    modes: int = 16
    """Number of modes, the constant one included; a row of n real elements uses the first n at most."""

    groups: int = 8
    """Channel groups with a kernel of their own; divides the width."""

    period: float = 256.0
    """Longest lag the kernel resolves when causal, in units of position; unused otherwise, where rows set the scale."""

    def __post_init__(self) -> None:
        check_positive("modes", self.modes)
        check_positive("groups", self.groups)
        if not self.period > 0:
            raise ConfigError(f"period must be more than 0, received {self.period}")

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "SpectralConvolution":
        """A freshly initialised operator, see ``OperatorConfig``, without heads; its output starts at zero."""
        return SpectralConvolution(dim, self.modes, self.groups, causal=causal, period=self.period)


class SpectralConvolution(Operator):
    """A translation-invariant global kernel with few parameters, as in a Fourier neural operator.

    ``y_i = W_o (1/n) Σ_j κ(u_i − u_j, t_i) W_v x_j``
    ``κ(u, t) = Σ_m (1 + h_m(t)) (a_m cos(π m u) + b_m sin(π m u))``

    with ``u_i = (i + ½) / n`` for the i-th of a row's n *real* elements, so a row is the same function whatever its
    padding. Lags lie in (−1, 1) and the modes have period 2, so the ends of a row do not touch. a and b are learned per
    mode and channel group; ``h_m(t) = Σ_k c_km cos(π k t)`` starts at zero and is left out when no time is given. Modes
    at or above the row's Nyquist limit (m ≥ n) are dropped.

    Rows have a single axis. The causal form cannot know the length, so it takes ``u = coordinate / period``, sums over
    j ≤ i and divides by their number; it builds the n × n kernel where the other only builds the 2·modes coefficients.

    Args:
        dim: width of the state.
        modes: number of modes.
        groups: channel groups with a kernel of their own.
        causal: let each position receive from itself and earlier ones only.
        period: longest lag resolved by the causal form, in units of position.

    Raises:
        ConfigError: the width does not split into groups.

    Source: Li et al., "Fourier Neural Operator", arXiv 2010.08895.
    """

    def __init__(self, dim: int, modes: int, groups: int, *, causal: bool = False, period: float = 256.0) -> None:
        super().__init__()
        if dim % groups:
            raise ConfigError(f"a width of {dim} does not split into {groups} groups; choose groups that divide it")
        self.modes = modes
        self.groups = groups
        self.causal = causal
        self.period = period
        self.value = nn.Linear(dim, dim, bias=False)
        self.spectrum = nn.Parameter(torch.randn(2, modes, groups))
        self.time_gain = nn.Parameter(torch.zeros(TIME_FEATURES, modes))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """The convolution of each row's real elements; zero at the others. What is convolved, ``W_v x``, is kept.

        Raises:
            ConfigError: the elements lie along several axes.
        """
        if context.axes > 1:
            raise ConfigError(f"a Fourier convolution follows one axis, received {context.axes}; choose attention")
        v = self.value(x)
        if cache is not None:
            v = cache.renew("convolved", v, context, context.stop if self.causal else context.length)
        dtype = torch.promote_types(x.dtype, torch.float32)
        real = context.of_row(("real", dtype), lambda: real_elements(context, dtype))
        return self.out(self._causal(v, real, context) if self.causal else self._global(v, real, context))

    def _global(self, v: Tensor, real: Tensor, context: OperatorContext) -> Tensor:
        """Legend: m modes, twice over in "2m" for cosine and sine; g groups of c channels."""

        def of_row() -> tuple[Tensor, Tensor]:
            count = real.sum(1).clamp(min=1)[:, None, None]
            coordinate = (real.cumsum(1) - 0.5)[..., None] / count
            kept = torch.arange(self.modes, device=v.device) < count
            basis = fourier_basis(coordinate, self.modes) * (real[..., None] * kept).repeat(1, 1, 2)
            return basis, (basis / count).to(v.dtype).mT

        basis, mean = context.of_row(("modes", self.modes, v.dtype), of_row)
        coefficients = mean @ v
        cosine, sine = coefficients.unflatten(-1, (self.groups, -1)).chunk(2, dim=1)
        a, b = self.spectrum.to(v.dtype)[..., None]
        mixed = torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=1).flatten(-2)
        here = basis[:, context.start : context.stop] * self._time_factor(context)
        return product(here.to(v.dtype), mixed)

    def _causal(self, v: Tensor, real: Tensor, context: OperatorContext) -> Tensor:
        def of_row() -> tuple[Tensor, Tensor]:
            coordinate = context.coordinates.to(real.dtype) / self.period
            basis = fourier_basis(coordinate if coordinate.ndim == 3 else coordinate[None], self.modes)
            return basis, real.cumsum(1).clamp(min=1)[:, None, :, None]

        basis, count = context.of_row(("lags", self.modes, self.period, real.dtype), of_row)
        span = slice(context.start, context.stop)
        right = basis[:, None, : context.stop]
        cosine, sine = (basis[:, span] * self._time_factor(context))[:, None].chunk(2, dim=-1)
        a, b = self.spectrum.mT[:, :, None]
        left = torch.cat([a * cosine + b * sine, a * sine - b * cosine], dim=-1)
        kernel = product(left.to(v.dtype), right.to(v.dtype).mT).tril(context.start)
        kernel = kernel * (real[:, None, None, : context.stop] / count[:, :, span])
        y = product(kernel.to(v.dtype), v.unflatten(-1, (self.groups, -1)).transpose(1, 2))
        return (y.transpose(1, 2) * real[:, span, None, None].to(v.dtype)).flatten(-2)

    def _time_factor(self, context: OperatorContext) -> Tensor | float:
        """``1 + h_m(t_i)`` for cosine and sine, "b k 2m"."""
        if context.time is None:
            return 1.0
        time = context.time[:, context.start : context.stop, None]
        orders = torch.arange(1, TIME_FEATURES + 1, device=time.device, dtype=time.dtype)
        features = (math.pi * orders * time).cos()
        return 1 + (features.to(self.time_gain.dtype) @ self.time_gain).repeat(1, 1, 2)

    def flops(self, n: int, d: int) -> int:
        """Projections, the kernel's products, and the time factor's, which is counted as if a time were given."""
        shared = 4 * n * d * d + 2 * n * TIME_FEATURES * self.modes
        if self.causal:
            return shared + 2 * n * n * (2 * self.modes * self.groups + d)
        return shared + 8 * n * self.modes * d


def product(left: Float[Tensor, "*#rows n m"], right: Float[Tensor, "*#rows m c"]) -> Float[Tensor, "*rows n c"]:
    """The matrix product, written out for a single row on CPU.

    As one, that would add up in an order that depends on where the row lies in memory, see ``attend``.
    """
    tracked = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    if left.shape[-2] == 1 and left.device.type == "cpu" and not tracked:
        return (left.mT * right).sum(-2, keepdim=True)
    return left @ right


def real_elements(context: OperatorContext, dtype: torch.dtype) -> Float[Tensor, "#b n"]:
    """One at real elements, zero at others."""
    if context.mask is None:
        return torch.ones(1, context.length, dtype=dtype, device=context.coordinates.device)
    return context.mask.to(dtype)


def fourier_basis(coordinate: Float[Tensor, "b n 1"], modes: int) -> Float[Tensor, "b n 2*{modes}"]:
    """``cos(π m u)`` for m = 0 … modes − 1, then ``sin(π m u)``."""
    orders = torch.arange(modes, device=coordinate.device, dtype=coordinate.dtype)
    angles = math.pi * orders * coordinate
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
