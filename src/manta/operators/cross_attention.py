"""Softmax attention from a state to a memory, whose keys and values can be computed once for many calls."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.operators.attention import attend, attend_each, head_width, mask_bias, score_scale
from manta.operators.normalise import rms_normalise


class ProjectedMemory(NamedTuple):
    """Keys and values of a memory as one ``CrossAttention`` sees it, made by its ``project``.

    Values of masked elements are zero (elements are zeroed before a projection that has no bias), so a row without any
    real element contributes exactly nothing.
    """

    key: Float[Tensor, "b h m c"]
    value: Float[Tensor, "b h m c"]
    bias: Float[Tensor, "b 1 1 m"] | None
    """Added to the scores: what hides the elements that are not real; None: all are."""


class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from the state and whose keys and values come from a memory.

    ``y_i = W_o Σ_j softmax_j(g · <q̂_i, k̂_j> / sqrt(head_dim)) v_j``

    It has no positions of its own: a memory that has an order carries it in its elements.

    Args:
        dim: width of state and memory.
        heads: number of heads.

    Raises:
        ConfigError: the width does not split into heads of even width.
    """

    gathers: ClassVar[tuple[str, ...]] = ("project",)
    """Methods beside `forward` that read its weights: who holds a share of them gathers the rest for such a call."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = head_width(dim, heads)
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.gain = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def project(self, memory: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None = None) -> ProjectedMemory:
        """Keys and values of a memory, which stay the same over all calls that read it.

        Args:
            memory: elements to read; m may be 0.
            mask: True where an element is real; None when all are.
        """
        b, m, _ = memory.shape
        if mask is not None:
            # Here, where the axis to broadcast over is long, this is several times cheaper than on the values.
            memory = memory * mask.unsqueeze(-1).to(memory.dtype)
        projected = self.key_value(memory).view(b, m, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).contiguous()
        key, value = projected.unbind(0)
        return ProjectedMemory(rms_normalise(key), value, None if mask is None else mask_bias(mask[:, None, None, :]))

    def forward(
        self,
        x: Float[Tensor, "sb n d"],
        memory: Float[Tensor, "b m d"] | ProjectedMemory,
        mask: Bool[Tensor, "b m"] | None = None,
        *,
        alone: bool = False,
    ) -> Float[Tensor, "sb n d"]:
        """What each element of the state reads from its row's memory; exactly zero where nothing can be read.

        Args:
            x: the state. It may have s times as many rows as the memory: s consecutive rows then read one memory row.
            memory: elements, or their projection by ``project``.
            mask: True where an element of the memory is real; only with an unprojected memory.
            alone: see ``OperatorContext.alone``; the memory's width should be a multiple of ``ALIKE``.
        """
        if not isinstance(memory, ProjectedMemory):
            memory = self.project(memory, mask)
        else:
            assert mask is None, "a projected memory brings its own mask"
        b = memory.key.shape[0]
        assert x.shape[0] % b == 0, f"{x.shape[0]} rows of state cannot share {b} rows of memory"
        q = rms_normalise(self.query(x).view(b, -1, self.heads, self.head_dim).transpose(1, 2).contiguous())
        read = attend_each if alone else attend
        y = read(q, memory.key, memory.value, score_scale(self.gain, self.head_dim), memory.bias)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def flops(self, n: int, m: int, d: int, *, projected: bool = False) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row.

        Args:
            n: length of the state.
            m: length of the memory.
            d: width.
            projected: True when the memory's keys and values were computed before.
        """
        return 4 * n * d * d + 4 * n * m * d + (0 if projected else 4 * m * d * d)
