"""Pyramid convolution: what is near at several scales, and the mean of all, in place of attention."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from manta.errors import ConfigError
from manta.operators.attention import ALIKE, check_positive
from manta.operators.context import HEADS, Cache, OperatorContext
from manta.operators.depthwise import depthwise
from manta.operators.fourier import real_elements
from manta.operators.pyramid_grid import Pyramid, PyramidGrid


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """Depthwise convolution at two scales, gated, beside the mean of the row."""

    kind: Literal["pyramid_conv"] = "pyramid_conv"
    """Which operator this is."""

    kernel: int = 13
    """Elements of a kernel, odd; the half scale reaches twice as far."""

    axes: Literal[1, 2] = 1
    """Axes along which elements lie: 1 for a text; 2 for an image, whose nets set it."""

    def __post_init__(self) -> None:
        check_positive("kernel", self.kernel)
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, so that it has a middle, received {self.kernel}")

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "PyramidConvolution | PyramidGrid":
        """A freshly initialised operator, see ``OperatorConfig``, without heads; its output starts at zero.

        Raises:
            ConfigError: asked to be causal, or a width that does not split into quarters.
        """
        if causal:
            raise ConfigError(
                "pyramid_conv sees both sides of an element, so no left-to-right model can use it; choose attention, "
                "linear or dijiang"
            )
        return PyramidConvolution(dim, self.kernel) if self.axes == 1 else PyramidGrid(dim, self.kernel)


class PyramidConvolution(Pyramid):
    """Gated depthwise convolutions of a projection at scales 1 and 1/2, and a map of the mean.

    ``y = W_o [↑ρ(K_s * ↓W_h x)]_s + W_m mean(x)``,  ``ρ(a, b) = a ∘ b / sqrt(d/4)``

    ↓ takes the mean of pairs of real elements and ↑ interpolates between their middles; both, and the mean, leave out
    what is not real, so padding changes nothing. Places do not matter, only order does. What is near passes more
    levels, and so weighs more.

    Args:
        dim: width of the state.
        kernel: elements of a kernel, odd.

    Raises:
        ConfigError: the width does not split into quarters.

    Source: Huang et al., "Can We Achieve Efficient Diffusion without Self-Attention? Distilling Self-Attention into
        Convolutions", arXiv 2504.21292; the gate in the paper's form.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, kernel, axes=1)

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """What is near each real element; the state itself is kept, and the row computed anew for every span.

        Raises:
            ConfigError: the elements lie along several axes.
        """
        if context.axes > 1:
            raise ConfigError(f"this convolution follows one axis, received {context.axes}; choose attention")
        if cache is not None:
            x = cache.renew("state", x, context, context.length)
        real = context.of_row(("real", x.dtype), lambda: real_elements(context, x.dtype))[..., None]
        x = x * real
        # A running sum is the same however far a row is padded.
        middle = x.cumsum(1)[:, -1:] / real.sum(1, keepdim=True).clamp_min(1)
        h = self.inner(x)
        halved, half = _halved(h, real)
        levels = [self._level(h, 0), _doubled(self._level(halved, 1) * half, half, h.shape[1])]
        # Of a lone row a product adds up in an order that depends on the rows beside it; of so many it does not.
        y = self.out(torch.cat(levels, -1)) + self.mean(middle.expand(-1, ALIKE, -1))[:, :1]
        return y[:, context.start : context.stop]

    def _level(self, h: Float[Tensor, "b n c"], scale: int) -> Float[Tensor, "b n e"]:
        """The gated convolution at one scale, of half the channels."""
        value, gate = depthwise(h, self.kernels[scale], before=self.kernel // 2).chunk(2, -1)
        return value * gate * value.shape[-1] ** -0.5

    def flops(self, n: int, d: int) -> int:
        """Projections; the convolutions are elementwise work."""
        return 2 * n * d * d + 2 * ALIKE * d * d


def _halved(
    h: Float[Tensor, "b n c"], real: Float[Tensor, "#b n 1"]
) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "#b m 1"]]:
    """Means of pairs of real elements, and where there are any; h is zero elsewhere."""
    odd = h.shape[1] % 2
    pairs, counts = (F.pad(part, (0, 0, 0, odd)).unflatten(1, (-1, 2)).sum(2) for part in (h, real))
    return pairs / counts.clamp_min(1), (counts > 0).to(h.dtype)


def _doubled(h: Float[Tensor, "b m c"], real: Float[Tensor, "#b m 1"], length: int) -> Float[Tensor, "b n c"]:
    """Linear interpolation between the middles of pairs, three parts of the own one and one of the next."""
    own = h.repeat_interleave(2, 1)
    there = real.repeat_interleave(2, 1)
    beside, known = (torch.stack([_moved(part, 1), _moved(part, -1)], 2).flatten(1, 2) for part in (h, real))
    return ((3 * own + beside) / (3 * there + known).clamp_min(1))[:, :length]


def _moved(h: Tensor, by: int) -> Tensor:
    """The element before each one, or behind it for −1; zero where there is none."""
    return F.pad(h, (0, 0, 1, 0))[:, :-1] if by > 0 else F.pad(h, (0, 0, 0, 1))[:, 1:]
