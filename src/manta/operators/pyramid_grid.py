"""Pyramid convolution over a grid: what is near along both axes at two scales, and the mean of all."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.operators.context import Cache, Operator, OperatorContext

SCALES = 2
"""Scales of the pyramid: 1 and 1/2."""


class Pyramid(Operator):
    """What pyramids along any number of axes have in common: their weights.

    Args:
        dim: width of the state.
        kernel: elements of a kernel along each axis, odd.
        axes: of the kernels.

    Raises:
        ConfigError: the width does not split into quarters.
    """

    causal = False

    def __init__(self, dim: int, kernel: int, axes: int) -> None:
        super().__init__()
        if dim % (2 * SCALES):
            raise ConfigError(f"a width of {dim} does not split into quarters; choose a width divisible by 4")
        self.kernel = kernel
        self.inner = nn.Linear(dim, dim // 2, bias=False)
        sides = (kernel,) * axes
        self.kernels = nn.Parameter(torch.empty(SCALES, dim // 2, *sides).uniform_(-1, 1) * kernel ** (-axes / 2))
        self.mean = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim // 2, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mean.weight)


class PyramidGrid(Pyramid):
    """`PyramidConvolution` over a grid, all of whose elements are real.

    ``y = W_o [↑ρ(K_s * ↓W_h x)]_s + W_m mean(x)``,  ``ρ(a, b) = a ∘ b / sqrt(d/4)``

    ↓ takes the mean of 2 × 2 elements, of fewer at the lower and the right edge, and ↑ interpolates linearly.

    Args:
        dim: width of the state.
        kernel: elements of a kernel's side, odd.

    Raises:
        ConfigError: the width does not split into quarters.

    Source: Huang et al., arXiv 2504.21292; the gate in the paper's form.
    """

    cacheable = False

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, kernel, axes=2)

    def forward(
        self, x: Float[Tensor, "b n d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b n d"]:
        """What is near each element of the whole grid.

        Raises:
            ConfigError: the context tells no grid, or elements that are not real.
        """
        if context.grid is None or context.mask is not None or context.start or context.stop != context.length:
            raise ConfigError("this convolution follows a whole grid, all of it real; choose attention")
        h = self.inner(x).transpose(1, 2).unflatten(2, context.grid)
        halved = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
        below = F.interpolate(self._level(halved, 1), size=context.grid, mode="bilinear", align_corners=False)
        levels = torch.cat([self._level(h, 0), below], 1).flatten(2).transpose(1, 2)
        return self.out(levels) + self.mean(x.mean(1, keepdim=True))

    def _level(self, h: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b e h w"]:
        """The gated convolution at one scale, of half the channels."""
        kernels = self.kernels[scale].unsqueeze(1).to(h.dtype)
        value, gate = F.conv2d(h, kernels, padding=self.kernel // 2, groups=h.shape[1]).chunk(2, 1)
        return value * gate * value.shape[1] ** -0.5

    def flops(self, n: int, d: int) -> int:
        """Projections; the convolutions are elementwise work."""
        return 2 * n * d * d + 2 * d * d
