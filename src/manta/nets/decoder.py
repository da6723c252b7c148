"""Blocks of decoder-only models that others publish: Llama's, and GPT-NeoX's, whose two branches read one state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from manta.nets.trunk import Trunk
from manta.operators.context import Cache, Operator, OperatorConfig, OperatorContext
from manta.operators.cross_attention import ProjectedMemory

Norm = Literal["rms", "layer"]


@dataclass(frozen=True, kw_only=True)
class DecoderStyle:
    """What tells one kind of decoder from another."""

    norm: Norm = "rms"
    """Root-mean-square normalisation with a gain, or layer normalisation with gain and bias."""
    eps: float = 1e-6
    """Added to the mean square, or the variance, by the norms."""
    parallel: bool = False
    """Operator and pointwise network read the same state, and both are added to it."""
    gated: bool = True
    """``W_d (silu(W_g x) ⊙ W_u x)``; else ``W_d gelu(W_u x)``."""
    mlp_bias: bool = False
    """The pointwise network has biases."""


class Pointwise(nn.Module):
    """The pointwise network of a decoder's block, gated or not.

    Args:
        dim: width.
        hidden: width inside.
        style: of the decoder.
    """

    def __init__(self, dim: int, hidden: int, style: DecoderStyle) -> None:
        super().__init__()
        self.hidden = hidden
        self.gate = nn.Linear(dim, hidden, bias=style.mlp_bias) if style.gated else None
        self.up = nn.Linear(dim, hidden, bias=style.mlp_bias)
        self.down = nn.Linear(hidden, dim, bias=style.mlp_bias)

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Apply the network to each element."""
        up = self.up(x)
        return self.down(F.gelu(up) if self.gate is None else F.silu(self.gate(x)) * up)


class DecoderBlock(nn.Module):
    """A block of a decoder-only model.

    ``x ← x + operator(norm(x))``, then ``x ← x + mlp(norm(x))``; or, parallel,
    ``x ← x + operator(norm₁(x)) + mlp(norm₂(x))``

    Args:
        dim: width.
        hidden: width inside the pointwise network.
        operator: how elements act on each other.
        style: of the decoder.

    Source: Touvron et al., "LLaMA", arXiv 2302.13971; Black et al., "GPT-NeoX-20B", arXiv 2204.06745.
    """

    gathers: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, dim: int, hidden: int, operator: Operator, style: DecoderStyle) -> None:
        super().__init__()
        self.parallel = style.parallel
        self.operator_norm = norm_of(dim, style)
        self.operator = operator
        self.exchanged = nn.Identity()
        """The state once the operator's output is added to it: for hooks."""
        self.mlp_norm = norm_of(dim, style)
        self.mlp = Pointwise(dim, hidden, style)

    @property
    def scale(self) -> Float[Tensor, " d"]:
        """Size of each channel that the operator reads, root mean square."""
        gain, bias = self.operator_norm.weight, getattr(self.operator_norm, "bias", None)
        return (gain.square() if bias is None else gain.square() + bias.square()).sqrt()

    def forward(
        self, x: Float[Tensor, "b n d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b n d"]:
        """The state after this block: of whole rows, or of the context's span."""
        received = self.operator(self.operator_norm(x), context, cache)
        passed = self.exchanged(x + received)
        if self.parallel:  # added up in the order in which such models are published
            return self.mlp(self.mlp_norm(x)) + received + x
        return passed + self.mlp(self.mlp_norm(passed))


class DecoderTrunk(Trunk):
    """Causal blocks, one after the other, and a final norm; no memory and no time.

    Args:
        dim: width of the residual stream.
        depth: number of blocks, ≥ 1.
        operators: how elements act on each other, block by block; repeated where there are fewer than blocks.
        heads: of an operator whose configuration does not set its own.
        hidden: width inside the blocks' pointwise networks.
        style: of the decoder.
    """

    def __init__(
        self, dim: int, depth: int, operators: Sequence[OperatorConfig], *, heads: int, hidden: int, style: DecoderStyle
    ) -> None:
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList()
        for index in range(depth):
            operator = operators[index % len(operators)].build(dim, heads=heads, causal=True)
            self.blocks.append(DecoderBlock(dim, hidden, operator, style))
        self.norm = norm_of(dim, style)

    def project(self, memory: Tensor, mask: Tensor | None = None) -> tuple[ProjectedMemory, ...]:
        """Nothing: the blocks read no memory."""
        return ()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: OperatorContext,
        *,
        memory: tuple[ProjectedMemory, ...] | None = None,
        modulation: Tensor | None = None,
        cache: tuple[Cache, ...] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """See `Trunk`; there is nothing to read in `memory`, and no modulation."""
        assert not memory and modulation is None, "a decoder reads its row alone"
        for index, block in enumerate(self.blocks):
            x = block(x, context, None if cache is None else cache[index])
        return self.norm(x)


def norm_of(dim: int, style: DecoderStyle) -> nn.RMSNorm | nn.LayerNorm:
    """The norm of a decoder, for states of some width."""
    return nn.RMSNorm(dim, eps=style.eps) if style.norm == "rms" else nn.LayerNorm(dim, eps=style.eps)
