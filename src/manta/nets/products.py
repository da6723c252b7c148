"""Products of integers: exact, and by whichever kernel of this machine is the quickest."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

LARGEST: Final = 127
"""Largest integer of eight bits that is used, so that its negative is there too."""
TRIES: Final = 3
"""Times that each kernel is measured for a shape, of which the quickest counts."""
EXACT: Final = 1024
"""Products of so many pairs of such integers add up exactly in float32."""

Kernel = Callable[["IntegerMatrix", Tensor, Tensor, Tensor | None], Tensor]

_quickest: dict[tuple[int, ...], Kernel] = {}
"""From threads, rows up to a power of two, and the shape of the matrix to what was measured to be quickest."""


class IntegerMatrix:
    """A matrix of eight-bit integers that others are multiplied with.

    Args:
        values: from −127 to 127, an output a row.
    """

    def __init__(self, values: Int8[Tensor, "o i"]) -> None:
        self.values = values.contiguous()
        self._packed: Tensor | None = None

    @property
    def packed(self) -> Tensor:
        """As oneDNN wants it."""
        packed = torch.ops.onednn.qlinear_prepack(self.values, None) if self._packed is None else self._packed
        self._packed = packed
        return packed

    def times(
        self,
        rows: Int8[Tensor, "r i"],
        scale: Float[Tensor, " o"],
        bias: Float[Tensor, " o"] | None = None,
    ) -> Float[Tensor, "r o"]:
        """``(rows valuesᵀ) ⊙ scale + bias``, the product in integers and exact.

        All kernels give the same to the last bit, alone and among other rows, so which of them is measured to be the
        quickest changes no result.

        Args:
            rows: of integers from −127 to 127.
            scale: of each output.
            bias: of each output.
        """
        if not len(rows):
            return scale.new_empty(0, len(self.values))
        if not rows.is_cpu or min(self.values.shape) < 2 or not has_fused_products():
            return _plain(self, rows, scale, bias)
        key = (torch.get_num_threads(), max(0, len(rows) - 1).bit_length(), *self.values.shape)
        if key not in _quickest:
            _quickest[key] = _measured(self, rows, scale, bias)
        return _quickest[key](self, rows, scale, bias)

    def sums(self, rows: Int8[Tensor, "r i"]) -> Int32[Tensor, "r o"]:
        """``rows valuesᵀ``, exact."""
        if rows.is_cpu:
            return torch.ops.aten._int_mm(rows, self.values.t())
        if rows.is_cuda and not any(size % 8 for size in self.values.shape):
            few = max(0, 32 - len(rows)) + -max(32, len(rows)) % 8  # its kernel takes more than 16 rows, in eights
            return torch.ops.aten._int_mm(torch.nn.functional.pad(rows, (0, 0, 0, few)), self.values.t())[: len(rows)]
        return exact_sums(rows, self.values)


def exact_sums(rows: Int8[Tensor, "r i"], values: Int8[Tensor, "o i"]) -> Int32[Tensor, "r o"]:
    """``rows valuesᵀ`` by products of floating-point numbers that hold the integers exactly, on any device."""
    parts = zip(rows.float().split(EXACT, 1), values.float().split(EXACT, 1), strict=True)
    return torch.stack([(left @ right.t()).to(torch.int32) for left, right in parts]).sum(0, dtype=torch.int32)


def has_integer_products(device: torch.device) -> bool:
    """Whether torch has a kernel for products of integers there; elsewhere `exact_sums` serves, which is no faster."""
    return device.type in ("cpu", "cuda")


def _plain(matrix: IntegerMatrix, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    scaled = matrix.sums(rows) * scale
    return scaled if bias is None else scaled.add_(bias)


def _fused(matrix: IntegerMatrix, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """One kernel of oneDNN for product, scale and bias; its rows are unsigned, and 128 stands for zero."""
    unsigned, none = rows.bitwise_xor(-128).view(torch.uint8), torch.zeros_like(scale, dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, matrix.packed, scale, none, bias, 1.0, 0, torch.float32, "none", [], ""
    )


@lru_cache
def has_fused_products() -> bool:
    """Whether oneDNN multiplies integers exactly here: older machines add up in 16 bits, which may overflow."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    values = torch.full((24, 64), LARGEST, dtype=torch.int8)
    values[::2] *= -1
    matrix, scale = IntegerMatrix(values), torch.linspace(0.001, 0.01, 24)
    try:
        for count in (1, 4, 64):
            for rows in (torch.full((count, 64), LARGEST, dtype=torch.int8), torch.full((count, 64), -LARGEST).char()):
                for bias in (None, scale):
                    if not torch.equal(_fused(matrix, rows, scale, bias), _plain(matrix, rows, scale, bias)):
                        return False
    except RuntimeError:  # a build without it
        return False
    return True


def _measured(matrix: IntegerMatrix, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Kernel:
    """The quickest kernel."""
    took: dict[Kernel, float] = dict.fromkeys((_plain, _fused), float("inf"))
    for _ in range(TRIES):
        for kernel in took:
            begun = time.perf_counter()
            kernel(matrix, rows, scale, bias)
            took[kernel] = min(took[kernel], time.perf_counter() - begun)
    return min(took, key=lambda kernel: took[kernel])
