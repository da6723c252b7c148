"""Residual blocks: an operator, a reading of memory and a pointwise network, each behind a norm."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.operators.context import HEADS, Cache, Operator, OperatorContext
from manta.operators.cross_attention import CrossAttention, ProjectedMemory
from manta.operators.normalise import rms_normalise

MODULATIONS = 6


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain per channel.

    ``y = gain · x / sqrt(mean(x²) + 1e-6)``

    The result has the dtype of ``x``, also under autocast.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Normalise the last axis."""
        return rms_normalise(x) * self.gain.to(x.dtype)


class SwiGLU(nn.Module):
    """Gated pointwise network.

    ``y = W_o (silu(W_g x) ⊙ W_u x)``

    Args:
        dim: width.
        hidden: width inside; 0 takes 8/3 of ``dim``, rounded up to a multiple of 32, which costs as much as the
            usual ungated network of four times the width. The output starts at zero.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """

    def __init__(self, dim: int, hidden: int = 0) -> None:
        super().__init__()
        hidden = hidden or -(-dim * 8 // 96) * 32
        self.hidden = hidden
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Apply the network to each element."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """One residual block.

    ``x ← x + γ₁ ⊙ operator(α₁ ⊙ norm(x) + β₁)``
    ``x ← x + cross_attention(norm(x), memory)``
    ``x ← x + γ₂ ⊙ swiglu(α₂ ⊙ norm(x) + β₂)``

    The norms have no gain of their own: each is followed by a projection, or by α, that can express it. With
    ``modulation`` the six factors are a shared tensor, computed once a call from the time, plus this block's table,
    which starts at shifts β = 0 and factors α = γ = 1. Without it they are those constants. All branches start at
    zero, so a fresh block is the identity. The residual stream keeps the dtype in which it comes in.

    Args:
        dim: width.
        operator: how elements act on each other, built for this width.
        cross: read a memory.
        modulation: take modulation.
        heads: heads of the reading of memory.
        hidden: width inside the pointwise network, see ``SwiGLU``.

    Source: adaLN-single: Chen et al., "PixArt-α", arXiv 2310.00426.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(
        self,
        dim: int,
        operator: Operator,
        *,
        cross: bool = False,
        modulation: bool = False,
        heads: int = HEADS,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.exchanged = nn.Identity()
        """The state once the operator's output is added to it: for hooks."""
        self.cross = CrossAttention(dim, heads) if cross else None
        self.mlp = SwiGLU(dim, hidden)
        table = torch.tensor([0.0, 1.0, 1.0]).repeat(2).repeat_interleave(dim)
        self.table = nn.Parameter(table) if modulation else None
        self.factors = nn.Identity()
        """The six factors of a call: for what changes them."""

    @property
    def entries(self) -> dict[str, str]:
        """Of each part behind a modulated norm, the name of the one map that reads it, where there is one."""
        if self.table is None:
            return {}
        entry = self.operator.entry
        return {**({} if entry is None else {"operator": f"operator.{entry}"}), "mlp": "mlp.gate_up"}

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: OperatorContext,
        *,
        memory: Float[Tensor, "mb m d"] | ProjectedMemory | None = None,
        memory_mask: Bool[Tensor, "mb m"] | None = None,
        modulation: Float[Tensor, "#b #n 6*d"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The state after this block: of whole rows, or of the context's span.

        Args:
            x: the state.
            context: coordinates, mask and time for the operator, and the span.
            memory: what to read, or its projection by this block's ``cross.project``; given if and only if the block
                was built with ``cross``. Several consecutive rows of the state may share one of the memory.
            memory_mask: True where the memory is real; only with an unprojected memory.
            modulation: β₁, α₁, γ₁, β₂, α₂, γ₂ relative to the table, one for a row or each element, or for all rows;
                given if and only if the block was built with ``modulation``.
            cache: what the operator keeps between calls.
        """
        assert (memory is None) == (self.cross is None), "a memory goes with a block built with cross=True"
        assert (modulation is None) == (self.table is None), "modulation goes with a block built with modulation=True"
        factors: tuple[Tensor | None, ...] = (None,) * MODULATIONS
        if modulation is not None and self.table is not None:
            whole = self.factors(modulation + self.table.to(modulation.dtype))
            factors = whole.to(x.dtype).chunk(MODULATIONS, -1)
        shift_operator, scale_operator, gate_operator, shift_mlp, scale_mlp, gate_mlp = factors

        received = self.operator(_modulated_norm(x, shift_operator, scale_operator), context, cache)
        x = self.exchanged(_residual(x, received, gate_operator))
        if self.cross is not None and memory is not None:
            x = _residual(x, self.cross(rms_normalise(x), memory, memory_mask, alone=context.alone), None)
        return _residual(x, self.mlp(_modulated_norm(x, shift_mlp, scale_mlp)), gate_mlp)


def _modulated_norm(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    normalised = rms_normalise(x)
    return normalised if shift is None or scale is None else torch.addcmul(shift, normalised, scale)


def _residual(x: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    update = update.to(x.dtype)
    return x + update if gate is None else torch.addcmul(x, update, gate)
