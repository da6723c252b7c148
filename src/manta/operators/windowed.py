"""Attention that cannot reach beyond a window: the negative control for "global"."""

from dataclasses import dataclass
from typing import Any, Literal

from manta.operators.attention import SelfAttention, SoftmaxConfig, check_positive
from manta.operators.context import HEADS, OperatorContext


@dataclass(frozen=True, kw_only=True)
class WindowedConfig(SoftmaxConfig):
    """Softmax self-attention within a fixed reach."""

    kind: Literal["windowed"] = "windowed"
    """Which operator this is."""

    radius: int = 2
    """Farthest place that can be seen on either side, along every axis, in units of position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "WindowedAttention":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        heads = heads if self.heads is None else self.heads
        return WindowedAttention(dim, heads, self.radius, causal=causal, **self.projections)


class WindowedAttention(SelfAttention):
    """Self-attention with ``κ = 0`` wherever ``|i − j| > radius`` along any axis, i and j being coordinates.

    It exists to be compared with the global operators at equal parameters, so it computes all pairs and masks the far
    ones; it saves no time.

    Args:
        radius: farthest place that can be seen on either side, in units of position.

    Other arguments and errors are those of ``SelfAttention``.
    """

    def __init__(self, dim: int, heads: int, radius: int, *, causal: bool = False, **projections: Any) -> None:
        super().__init__(dim, heads, causal=causal, **projections)
        self.radius = radius

    def _reach(self, context: OperatorContext) -> tuple[int | float, bool]:
        return self.radius, self.causal or context.causal
