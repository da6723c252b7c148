"""Attention plus Fourier: content picks from anywhere, low modes carry what is shared by all."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from manta.operators.attention import AttentionConfig, SelfAttention, SoftmaxConfig
from manta.operators.context import HEADS, Cache, Operator, OperatorContext
from manta.operators.fourier import FourierConfig, SpectralConvolution


@dataclass(frozen=True, kw_only=True)
class AttentionFourierConfig(SoftmaxConfig):
    """The sum of softmax self-attention and a Fourier convolution."""

    kind: Literal["attention_fourier"] = "attention_fourier"
    """Which operator this is."""

    modes: int = 16
    """Fourier modes, the constant one included."""

    groups: int = 8
    """Channel groups with a Fourier kernel of their own; divides the width."""

    period: float = 256.0
    """Longest lag the Fourier kernel resolves when causal, in units of position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fourier()

    def _fourier(self) -> FourierConfig:
        return FourierConfig(modes=self.modes, groups=self.groups, period=self.period)

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "AttentionFourier":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        attention = AttentionConfig(heads=self.heads, **self.projections)
        return AttentionFourier(
            attention.build(dim, heads=heads, causal=causal), self._fourier().build(dim, causal=causal)
        )


class AttentionFourier(Operator):
    """``(K z)(i) = (K_attention z)(i) + (K_Fourier z)(i)``; the parts have their own values and output projections.

    Args:
        attention: the part whose kernel depends on the state.
        fourier: the part whose kernel depends on the lag and the time; causal if and only if the other is.
    """

    def __init__(self, attention: SelfAttention, fourier: SpectralConvolution) -> None:
        super().__init__()
        assert attention.causal == fourier.causal, "both parts must be causal, or neither"
        self.attention = attention
        self.fourier = fourier
        self.causal = attention.causal

    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """The sum of both parts, each of which keeps its own in the cache."""
        return self.attention(x, context, cache) + self.fourier(x, context, cache)

    def flops(self, n: int, d: int) -> int:
        """The sum of both parts' costs."""
        return self.attention.flops(n, d) + self.fourier.flops(n, d)
