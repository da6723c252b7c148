"""DiJiang: linear attention by features of the discrete cosine transform."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

from manta.operators.attention import HeadsConfig, check_positive
from manta.operators.context import HEADS
from manta.operators.linear import KernelAttention
from manta.operators.normalise import rms_normalise

Radius = Literal["icdf", "chi"]
LARGEST = 30.0
"""Largest exponent of a feature, which keeps a gain that has run away finite."""


@dataclass(frozen=True, kw_only=True)
class DijiangConfig(HeadsConfig):
    """Linear attention by weighted quasi-Monte-Carlo features of the discrete cosine transform."""

    kind: Literal["dijiang"] = "dijiang"
    """Which operator this is."""

    radius: Radius = "icdf"
    """How far the features' directions reach: `icdf` as in the paper, normal quantiles; `chi` as long as normal vectors
    are, which makes the features those of softmax attention in the mean."""

    chunk: int = 64
    """Elements of a chunk: rows up to this long are computed in the open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("chunk", self.chunk)

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> "DijiangAttention":
        """A freshly initialised operator, see ``OperatorConfig``; its output starts at zero."""
        heads = heads if self.heads is None else self.heads
        return DijiangAttention(dim, heads, radius=self.radius, causal=causal, chunk=self.chunk, **self.projections)


class DijiangAttention(KernelAttention):
    """Features of weighted quasi-Monte-Carlo on the directions of a cosine transform, per head.

    ``φ(x) = D ⊙ exp(T C x − |x|²/2) / sqrt(m)``

    C is the orthonormal DCT-II and T a diagonal of radii, drawn when the operator is built, one from each of m equal
    parts of their distribution, and never trained; D is learned. There are as many features as a head has channels.
    What is received is not divided by the weights' sum but normalised per head, and gated: ``W_o (silu(W_g x) ⊙ y)``.

    With ``chi`` radii, and signs drawn for the channels, ``<φ(q), φ(k)>`` is ``exp(<q, k>)`` in the mean over draws, as
    far as a signed row of C is like a direction drawn from the sphere. With the paper's radii it is not.

    The released code differs: features are a softmax over T Cᵀ x, and decay, trained place by place, stands for D.

    Args:
        radius: how T is drawn.

    Other arguments and errors are those of ``KernelAttention``.

    Source: Chen et al., "DiJiang: Efficient Large Language Models through Compact Kernelization", arXiv 2403.19928.
    """

    divided = False
    directions: Float[Tensor, "m c"]
    """T C."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        radius: Radius = "icdf",
        causal: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, causal=causal, **options)
        self.register_buffer("directions", directions(self.head_dim, radius).float())
        self.weight = nn.Parameter(torch.ones(heads, self.head_dim))
        self.gate = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.gate.weight, gain=2**-2.5)

    def features(self, x: Float[Tensor, "*rows h n c"]) -> Float[Tensor, "*rows h n c"]:
        """At least 0 as long as D is."""
        exponent = x @ self.directions.to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2
        weight = self.weight.to(x.dtype)[:, None] * self.head_dim**-0.5
        return weight * exponent.clamp_max(LARGEST).exp()

    def told(self, y: Float[Tensor, "b h n c"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalised per head, gated and mixed."""
        return self.out(F.silu(self.gate(x)) * rms_normalise(y).transpose(1, 2).flatten(-2))

    def feature_flops(self, n: int, d: int) -> int:
        """Transforms of queries and keys, and the gate."""
        return 4 * n * d * self.head_dim + 2 * n * d * d


def directions(size: int, radius: Radius) -> Float64[Tensor, "{size} {size}"]:
    """``T C``, drawn by torch's global generator; for `chi` the channels of C have signs drawn, too.

    Args:
        size: number of channels, and of features.
        radius: how T is drawn.
    """
    parts = (torch.arange(size, dtype=torch.float64) + torch.rand(size, dtype=torch.float64)) / size
    quantiles = parts[torch.randperm(size)].clamp(1e-6, 1 - 1e-6)
    if radius == "icdf":
        return torch.special.ndtri(quantiles)[:, None] * cosines(size)
    signs = torch.randint(0, 2, (size,)) * 2 - 1
    return chi_quantiles(quantiles, size)[:, None] * cosines(size) * signs


def chi_quantiles(chances: Float64[Tensor, "m"], freedom: int) -> Float64[Tensor, "m"]:
    """Lengths that a normal vector exceeds with chance 1 − p, by halving.

    Args:
        chances: p, above 0 and below 1.
        freedom: entries of the vector.
    """
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    low, high = torch.zeros_like(chances), torch.full_like(chances, 10 + 2 * math.sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(half, middle**2 / 2) < chances
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def cosines(size: int) -> Float64[Tensor, "{size} {size}"]:
    """The orthonormal DCT-II.

    ``C_kj = s_k cos(π (2j + 1) k / 2n)``,  ``s_0 = sqrt(1/n)``, else ``sqrt(2/n)``
    """
    places = torch.arange(size, dtype=torch.float64)
    table = torch.cos(math.pi * (2 * places + 1) * places[:, None] / (2 * size)) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table
