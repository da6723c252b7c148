"""Maps of integers in the place of those of floating-point numbers: eight or four bits a weight.

    x̂ = (x − z_g) / (s · a_g),   q = round(x̂) between −127 and 127
    y = (q Wᵀ) ⊙ (a_g · w) + b_g

The weights W are integers with a scale w of each output, in which the factors s of the inputs are folded; the shift z,
the step a and the bias b = bias + W z belong to a group g of neighbouring flow times. Where the inputs come from a
modulated norm, the modulation itself is changed instead (`nets.integer_nets.Fold`), so that x̂ costs nothing.

Source: "Post-Training Quantization for Diffusion Transformer via Hierarchical Timestep Grouping", arXiv 2503.06930.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64, UInt8
from torch import Tensor, nn
from torch.autograd import forward_ad

from manta.errors import ConfigError
from manta.nets.clock import Clock
from manta.nets.derived import Derived
from manta.nets.integer_tensor import IntegerTensor
from manta.nets.products import LARGEST, IntegerMatrix

MOST_GROUPS = 256
UNSIGNED = 128
"""What stands for zero among unsigned integers of eight bits."""
Inputs = Literal["static", "dynamic", "float"]


@dataclass(frozen=True, kw_only=True)
class IntegerSpec:
    """How a map is quantised."""

    bits: Literal[4, 8] = 8
    """Of a weight."""
    inputs: Inputs = "static"
    """`static`: rounded by steps found before; `dynamic`: by the largest of each row; `float`: as they are."""
    groups: int = 1
    """Groups of neighbouring times, each with a shift and a step of its own; only of static inputs."""
    shift: bool = False
    """Static inputs are shifted, channel by channel."""
    spread: bool = False
    """Static inputs are divided by a factor a channel, which the weights take."""
    folded: bool = False
    """Shift, factors and step are in the modulation of the block that the map is in."""

    def __post_init__(self) -> None:
        if not 1 <= self.groups <= MOST_GROUPS:
            raise ConfigError(f"groups should lie between 1 and {MOST_GROUPS}, received {self.groups}")
        if self.inputs != "static" and (self.groups > 1 or self.shift or self.spread or self.folded):
            raise ConfigError(f"{self.inputs} inputs have one group, and are neither shifted, spread nor folded")


@dataclass(frozen=True)
class Numbers:
    """What is added and multiplied: of one group, or, with an axis before all others, of each."""

    inverse: Tensor
    """1 / (s · a), "i", or "1" where channels are alike."""
    offset: Tensor | None
    """−z / (s · a), "i"."""
    scale: Tensor
    """Of the outputs, "o"."""
    bias: Tensor | None
    """Of the outputs, "o"."""

    def __getitem__(self, group: Any) -> "Numbers":
        offset = None if self.offset is None else self.offset[group]
        bias = None if self.bias is None else self.bias[group]
        return Numbers(self.inverse[group], offset, self.scale[group], bias)


@dataclass(frozen=True)
class Tables:
    """What a map needs in a call, worked out once from what is stored."""

    matrix: IntegerMatrix
    every: Numbers
    """Of all groups."""
    groups: tuple[Numbers, ...]
    """Of each group."""
    edges: tuple[float, ...]

    def of(self, group: int | Tensor) -> Numbers:
        """Of the group of all rows, or of the groups of each."""
        return self.groups[group] if isinstance(group, int) else self.every[group]


class IntegerMap(Derived):
    """What maps of integers have in common.

    Args:
        weight: shape of the weights, outputs first.
        spec: how they are quantised.
        bias: whether there is one; a shift brings one.
    """

    derived = ("_tables",)
    weight: Tensor
    weight_scale: Tensor
    step: Tensor
    bias: Tensor | None
    shift: Tensor | None
    spread: Tensor | None
    edges: Tensor | None

    def __init__(self, weight: tuple[int, ...], spec: IntegerSpec, bias: bool) -> None:
        super().__init__()
        outer, inner = weight[0], weight[1]
        self.shape, self.spec = weight, spec
        self.clock: Clock | None = None
        values = torch.zeros(weight, dtype=torch.int8)
        self.register_buffer("weight", values if spec.bits == 8 else pack(values.flatten(1)))
        self.register_buffer("weight_scale", torch.ones(outer))
        self.register_buffer("bias", torch.zeros(spec.groups * outer) if bias or spec.shift else None)
        if spec.inputs == "static":
            self.register_buffer("step", torch.ones(spec.groups))
        self.register_buffer("shift", torch.zeros(spec.groups * inner) if spec.shift else None)
        self.register_buffer("spread", torch.ones(inner) if spec.spread else None)
        self.register_buffer("edges", torch.zeros(spec.groups - 1) if spec.groups > 1 else None)
        self._tables: Tables | None = None

    def check(self) -> None:
        """See that what is stored can be of such a map.

        Raises:
            ConfigError: it cannot.
        """
        if any(not bool(part.isfinite().all()) for part in self.buffers()):
            raise ConfigError("a map of integers has numbers that are not finite")
        if self.spec.inputs == "static" and not bool((self.step > 0).all()):
            raise ConfigError("steps of a map of integers should be above 0")
        if self.edges is not None and not bool((self.edges.diff() >= 0).all()):
            raise ConfigError("times of a map of integers should ascend")
        if self.spread is not None and not bool((self.spread > 0).all()):
            raise ConfigError("factors of a map of integers should be above 0")

    @property
    def values(self) -> Int8[Tensor, "o i *rest"]:
        """The weights, unpacked."""
        inner = self.weight[0].numel() if self.spec.bits == 8 else torch.Size(self.shape[1:]).numel()
        return self.weight if self.spec.bits == 8 else unpack(self.weight, inner).view(self.shape)

    @property
    def matrix(self) -> Float[Tensor, "o i *rest"]:
        """The weights as floating-point numbers, of inputs that are neither shifted nor spread."""
        over = (-1, *[1] * (len(self.shape) - 1))
        found = self.values.float() * self.weight_scale.view(over)
        return found if self.spread is None else found / self.spread.view(1, -1, *over[2:])

    def changed(self, change: Float[Tensor, "o i *rest"]) -> "IntegerMap":
        """The same map with a change of its weights, in eight bits.

        Args:
            change: of the weights as `matrix` has them.
        """
        found = deepcopy(self)
        over = (-1, *[1] * (len(self.shape) - 1))
        wide = self.matrix + change
        wide = wide if self.spread is None else wide * self.spread.view(1, -1, *over[2:])
        found.weight_scale = wide.flatten(1).abs().amax(1).clamp_min(1e-12) / LARGEST
        found.weight = (wide / found.weight_scale.view(over)).round().to(torch.int8)
        found.spec = replace(self.spec, bits=8)
        if self.shift is not None and self.bias is not None:
            found.bias = self.bias + (self.shift.view(self.spec.groups, -1) @ change.mT).flatten()
        return found

    def rescaled(self, scale: Float[Tensor, " o"], shift: Float[Tensor, " o"]) -> "IntegerMap":
        """The same map with its outputs multiplied and shifted, at no cost.

        Args:
            scale: of each output.
            shift: of each output, added after it.
        """
        found, groups = deepcopy(self), self.spec.groups
        found.weight_scale = self.weight_scale * scale
        bias = scale.new_zeros(groups * len(scale)) if self.bias is None else self.bias
        found.bias = (bias.view(groups, -1) * scale + shift).flatten()
        return found

    def tables(self) -> Tables:
        """See `Tables`."""
        if self._tables is None:
            with torch.inference_mode(False), torch.no_grad():  # a derivative may be asked for later
                self._tables = self._worked_out()
        return self._tables

    def _worked_out(self) -> "Tables":
        scale, bias = self.weight_scale[None], None if self.bias is None else self.bias.view(self.spec.groups, -1)
        inverse, offset = torch.ones(1, 1, device=scale.device), None
        if self.spec.inputs == "static":
            scale = self.step[:, None] * scale
            inverse = 1 / self.step[:, None]
            inverse = inverse if self.spread is None else inverse / self.spread
            offset = None if self.shift is None else -self.shift.view(self.spec.groups, -1) * inverse
        edges = () if self.edges is None else tuple(self.edges.tolist())
        every = Numbers(inverse, offset, scale, bias)
        groups = tuple(every[group] for group in range(self.spec.groups))
        return Tables(IntegerMatrix(self.values.flatten(1).clone()), every, groups, edges)

    def groups(self, rows: int) -> int | Int64[Tensor, "{rows}"]:
        """The group of a call's rows, or of each."""
        if self.edges is None:
            return 0
        clock = self.clock
        assert clock is not None, "a map with groups is in a net that is told the time"
        if clock.one is not None:
            edges = self.tables().edges
            return sum(edge <= clock.one for edge in edges)
        return clock.groups(self.edges, rows)


class IntegerLinear(IntegerMap):
    """A linear map of integers, see the head of this module.

    Args:
        inner: inputs.
        outer: outputs.
        spec: how it is quantised.
        bias: whether it has one.
    """

    def __init__(self, inner: int, outer: int, spec: IntegerSpec, *, bias: bool) -> None:
        super().__init__((outer, inner), spec, bias)

    def forward(self, x: Float[Tensor, "*shape i"]) -> Float[Tensor, "*shape o"]:
        """The map of each row, in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        if self.spec.inputs == "float":
            y = F.linear(rows, self.values.to(rows.dtype)) * self.weight_scale.to(rows.dtype)
            y = y if self.bias is None else y + self.bias.to(rows.dtype)
        elif differentiated():
            y = self._followed(rows.float())
        elif self.spec.inputs == "dynamic":
            y = self._dynamic(rows.float())
        else:
            y = self._static(rows.float())
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def _static(self, rows: Float[Tensor, "r i"]) -> Float[Tensor, "r o"]:
        tables, group = self.tables(), self.groups(len(rows))
        numbers = tables.of(group)
        q = rounded(self._steps(rows, numbers), used_up=not self.spec.folded)
        if isinstance(group, int):
            return tables.matrix.times(q, numbers.scale, numbers.bias)
        y = tables.matrix.sums(q) * numbers.scale
        return y if numbers.bias is None else y.add_(numbers.bias)

    def _steps(self, rows: Tensor, numbers: Numbers) -> Tensor:
        """x̂."""
        if self.spec.folded:
            return rows
        if numbers.offset is None:
            return rows * numbers.inverse
        return torch.addcmul(numbers.offset, rows, numbers.inverse)

    def _dynamic(self, rows: Float[Tensor, "r i"]) -> Float[Tensor, "r o"]:
        tables, step = self.tables(), largest(rows) / LARGEST
        numbers = tables.of(0)
        y = tables.matrix.times(rounded(rows / step, used_up=True), numbers.scale).mul_(step)
        return y if numbers.bias is None else y.add_(numbers.bias)

    def _followed(self, rows: Float[Tensor, "r i"]) -> Float[Tensor, "r o"]:
        """The same by operations that can be differentiated; rounding is passed by as if it were not there."""
        tables, weight = self.tables(), self.values.float()
        if self.spec.inputs == "dynamic":
            step = (largest(rows) / LARGEST).detach()
            numbers = tables.of(0)
            y = F.linear(passed(rows / step), weight) * numbers.scale * step
        else:
            numbers = tables.of(self.groups(len(rows)))
            y = F.linear(passed(self._steps(rows, numbers)), weight) * numbers.scale
        return y if numbers.bias is None else y + numbers.bias


class IntegerConv2d(IntegerMap):
    """A convolution of integers; one scale, and where zero lies, for all inputs of a group.

    Args:
        base: the convolution whose place it takes; its weights are not read.
        spec: how it is quantised; a shift is one number for all channels, as what is beyond the edges is zero.
    """

    def __init__(self, base: nn.Conv2d, spec: IntegerSpec) -> None:
        if spec.shift or spec.folded:
            raise ConfigError("inputs of a convolution are neither shifted by channel nor folded")
        if base.groups > 1 and spec.inputs != "float":
            raise ConfigError("a convolution that is not between all channels has inputs of floating-point numbers")
        super().__init__(tuple(base.weight.shape), spec, base.bias is not None)
        self.strided = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "groups")}
        if spec.inputs == "static":
            self.register_buffer("zero", torch.full((spec.groups,), float(UNSIGNED)))
        self._packed: Tensor | None = None

    derived = ("_tables", "_packed")
    zero: Tensor

    def check(self) -> None:
        """See `IntegerMap`."""
        super().check()
        if self.spec.inputs == "static" and not bool(((self.zero >= 0) & (self.zero <= 255)).all()):
            raise ConfigError("where zero lies should be from 0 to 255")

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """The convolution of each row, in the dtype of `x`."""
        if self.strided["groups"] != 1:  # has few weights, so that these are scaled, and not the outputs
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.conv2d(x, self.matrix.to(x.dtype), bias, **cast(Any, self.strided))
        if self.spec.inputs == "float":
            y = self._convolved(x, self.values.to(x.dtype)) * self.weight_scale.to(x.dtype)[:, None, None]
            return y if self.bias is None else y + self.bias.to(x.dtype)[:, None, None]
        rows, group = x.float(), self.groups(len(x)) if self.spec.inputs == "static" else 0
        if isinstance(group, int):
            return self._of_group(rows, group).to(x.dtype)
        parts = {one: self._of_group(rows[group == one], one) for one in group.unique().tolist()}
        y = rows.new_empty(len(rows), *next(iter(parts.values())).shape[1:])
        for one, part in parts.items():
            y = y.index_put(((group == one).nonzero()[:, 0],), part)
        return y.to(x.dtype)

    def _of_group(self, x: Float[Tensor, "b i h w"], group: int) -> Float[Tensor, "b o h2 w2"]:
        numbers = self.tables().of(group)
        bias = numbers.bias
        if self.spec.inputs == "dynamic":
            step = (largest(x.flatten(1)) / LARGEST).detach()[..., None, None]
            scaled, zero = x / step, UNSIGNED
        else:
            step, zero = None, int(self.zero[group])
            inverse = numbers.inverse
            scaled = x * (inverse[:, None, None] if len(inverse) > 1 else inverse)
        if differentiated() or step is not None or not x.is_cpu or not has_fused_convolutions():
            low, high = -zero, 255 - zero
            y = self._convolved(passed(scaled, low, high), self.values.float()) * numbers.scale[:, None, None]
            y = y if step is None else y * step
            return y if bias is None else y + bias[:, None, None]
        unsigned = scaled.round_().add_(zero).clamp_(0, 255).to(torch.uint8)
        return self._fused(unsigned, zero, numbers.scale, bias)

    def _fused(self, unsigned: UInt8[Tensor, "b i h w"], zero: int, scale: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, dilation = (list(cast(Any, self.strided[name])) for name in ("stride", "padding", "dilation"))
        if self._packed is None:
            where = (stride, padding, dilation)
            self._packed = torch.ops.onednn.qconv_prepack(self.values, self.weight_scale, 1.0, UNSIGNED, *where, 1)
        none = torch.zeros_like(scale, dtype=torch.int32)
        found = torch.ops.onednn.qconv_pointwise(
            unsigned, 1.0, zero, self._packed, scale, none, bias, stride, padding, dilation, 1, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        return found.contiguous()

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, **cast(Any, self.strided))


class IntegerEmbedding(Derived):
    """A table of integers, a scale a row: of what classes are embedded by, and told by.

    Args:
        num_embeddings: rows.
        embedding_dim: of each.
    """

    derived = ("_matrix",)
    weight_scale: Tensor
    integers: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.register_buffer("integers", torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(num_embeddings))
        self._matrix: IntegerMatrix | None = None

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        """The whole table as floating-point numbers."""
        return self.integers.float() * self.weight_scale[:, None]

    def forward(self, index: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Rows of the table."""
        return self.integers[index].float() * self.weight_scale[index][..., None]

    def logits(self, hidden: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape v"]:
        """Products with all rows, each hidden vector rounded by its own largest number; in the dtype of `hidden`."""
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        step = (largest(rows) / LARGEST).detach()
        if differentiated():
            y = F.linear(passed(rows / step), self.integers.float()) * self.weight_scale * step
        else:
            if self._matrix is None:
                self._matrix = IntegerMatrix(self.integers)
            y = self._matrix.times(rounded(rows / step, used_up=True), self.weight_scale).mul_(step)
        return y.to(hidden.dtype).view(*hidden.shape[:-1], -1)


def count_parameters(net: nn.Module) -> int:
    """Numbers that a net has learned: its parameters, and the weights of its maps, tables and tensors of integers."""
    integers = (part for part in net.modules() if isinstance(part, IntegerMap | IntegerEmbedding | IntegerTensor))
    sizes = (math.prod(part.shape) if isinstance(part, IntegerMap) else part.integers.numel() for part in integers)
    return sum(p.numel() for p in net.parameters()) + sum(sizes)


@lru_cache
def has_fused_convolutions() -> bool:
    """Whether oneDNN convolves integers exactly here: older machines add up in 16 bits, which may overflow."""
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return False
    base = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        probe = IntegerConv2d(base, IntegerSpec())
        probe.weight.fill_(LARGEST)
        unsigned = torch.full((1, 16, 4, 4), 255, dtype=torch.uint8)
        try:
            found = probe._fused(unsigned, 0, probe.weight_scale, None)
        except RuntimeError:  # a build without it
            return False
        return torch.equal(found, F.conv2d(unsigned.float(), probe.weight.float(), padding=1))


def differentiated() -> bool:
    """Whether a derivative may be asked for, backward or forward."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def rounded(x: Float[Tensor, "*shape"], *, used_up: bool = False) -> Int8[Tensor, "*shape"]:
    """The nearest integers from −127 to 127; `used_up`: nobody reads `x` again, so its memory serves."""
    return (x.round_() if used_up else x.round()).clamp_(-LARGEST, LARGEST).to(torch.int8)


def passed(x: Float[Tensor, "*shape"], low: int = -LARGEST, high: int = LARGEST) -> Float[Tensor, "*shape"]:
    """The nearest integers within bounds, with the derivative of `x` itself."""
    return x + (x.round().clamp(low, high) - x).detach()


def largest(rows: Float[Tensor, "r i"]) -> Float[Tensor, "r 1"]:
    """The largest size of each row, never zero."""
    return rows.abs().amax(1, keepdim=True).clamp_min(1e-30)


def pack(values: Int8[Tensor, "o i"]) -> UInt8[Tensor, "o k"]:
    """Integers from −8 to 7, two to a byte: the first in the lower half."""
    unsigned = F.pad(values, (0, values.shape[1] % 2)).view(torch.uint8) & 15
    return unsigned[:, ::2] | (unsigned[:, 1::2] << 4)


def unpack(packed: UInt8[Tensor, "o k"], inner: int) -> Int8[Tensor, "o {inner}"]:
    """The inverse of `pack`.

    Args:
        packed: two integers a byte.
        inner: how many each row has.
    """
    halves = torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :inner]
    return (halves.view(torch.int8) ^ 8) - 8


def integer_maps(net: nn.Module) -> Iterator[tuple[str, IntegerMap]]:
    """Names and maps of integers in a net."""
    return ((name, part) for name, part in net.named_modules() if isinstance(part, IntegerMap))
