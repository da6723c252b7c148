"""Nets with maps of integers: which maps, which are told the time, and which are behind a modulation that is folded."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.clock import clocked, start_clock
from manta.nets.integer_tensor import IntegerTensor
from manta.nets.integers import (
    IntegerConv2d,
    IntegerEmbedding,
    IntegerLinear,
    IntegerSpec,
    Numbers,
    Tables,
    integer_maps,
)
from manta.nets.modulated import TaskMap

MODULATED = {"operator": (0, 1), "mlp": (3, 4)}
"""Of a block's part, which of its six factors are shift and scale of what it reads."""


def with_integers(net: nn.Module, specs: dict[str, IntegerSpec]) -> nn.Module:
    """Put maps of integers, all zero yet, in the place of those of a net, which is changed.

    Args:
        net: any; where times are told to a part of it, that part says so by `told_time`.
        specs: how each map is quantised, by its name; tables that classes are told by, and what tasks change of a map,
            among them.

    Raises:
        ConfigError: there is no such map.
    """
    for name, spec in specs.items():
        above, _, last = name.rpartition(".")
        try:
            owner = net.get_submodule(above)
            part = getattr(owner, last)
        except AttributeError:
            raise ConfigError(f"the net has no part {name[:80]}") from None
        if isinstance(owner, TaskMap) and last in owner.scaled and (spec.bits, spec.inputs) == (8, "float"):
            delattr(owner, last)  # no parameter any more
            setattr(owner, last, IntegerTensor(tuple(part.shape), owner.scaled[last]))
        else:
            setattr(owner, last, _in_place_of(part, name, spec, net))
    _tell_times(net)
    _fold(net)
    return net


def _in_place_of(part: Any, name: str, spec: IntegerSpec, net: nn.Module) -> nn.Module:
    if isinstance(part, nn.Linear):
        return IntegerLinear(part.in_features, part.out_features, spec, bias=part.bias is not None)
    if isinstance(part, nn.Conv2d) and (part.groups == 1 or spec.inputs == "float"):
        return IntegerConv2d(part, spec)
    if isinstance(part, nn.Embedding) and (spec.bits, spec.inputs) == (8, "dynamic"):
        table = IntegerEmbedding(part.num_embeddings, part.embedding_dim)
        for each in net.modules():
            if getattr(each, "_shared", (None,))[0] is part:
                each._shared = (table,)  # pyright: ignore[reportArgumentType]
        return table
    raise ConfigError(f"{name[:80]} is no map that can be quantised so")


def _tell_times(net: nn.Module) -> None:
    for _, part in clocked(net):
        maps = [each for _, each in integer_maps(part)]
        if any(each.spec.groups > 1 for each in maps):
            clock, _ = start_clock(part)
            for each in maps:
                each.clock = clock
    for name, each in integer_maps(net):
        if each.spec.groups > 1 and each.clock is None:
            raise ConfigError(f"{name[:80]} has groups of times, and is told none")


def _fold(net: nn.Module) -> None:
    left = {name for name, each in integer_maps(net) if each.spec.folded}
    for block_name, block in net.named_modules():
        inside = {name for name in left if name.startswith(f"{block_name}.")}
        entries = getattr(block, "entries", None)
        if not inside or entries is None:
            continue
        maps = {part: net.get_submodule(f"{block_name}.{entry}") for part, entry in entries.items()}
        chosen = {part: each for part, each in maps.items() if isinstance(each, IntegerLinear) and each.spec.folded}
        block.factors = Fold(chosen, next(iter(chosen.values())).shape[1])  # pyright: ignore
        left -= {f"{block_name}.{entries[part]}" for part in chosen}
    if left:
        raise ConfigError(f"{min(left)[:80]} is folded, and no modulated norm leads to it")


class Fold(nn.Module):
    """Changes a block's modulation, so that what its maps of integers read comes out shifted and in their steps.

    ``α̂ = α / (s · a_g)``,  ``β̂ = (β − z_g) / (s · a_g)``

    Args:
        maps: by the part of the block that reads them, see `MODULATED`; their inputs are static, and folded.
        dim: width of the block.
    """

    def __init__(self, maps: dict[str, IntegerLinear], dim: int) -> None:
        super().__init__()
        self._maps, self.dim = maps, dim  # in a dict, so that they stay their own block's
        self._worked_out: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._of: list[Tables] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what was worked out, which is not to be copied."""
        return {**self.__dict__, "_worked_out": {}, "_of": []}

    def forward(self, factors: Float[Tensor, "b n f"]) -> Float[Tensor, "b n f"]:
        """The six factors as they are to be."""
        groups = [integer.groups(factors.shape[0] * factors.shape[1]) for integer in self._maps.values()]
        scale, offset = self._told(groups)
        if scale.ndim == 2:
            scale, offset = (told.view(*factors.shape[:2], -1) for told in (scale, offset))
        return torch.addcmul(offset.to(factors.dtype), factors, scale.to(factors.dtype))

    def _told(self, groups: list[int | Tensor]) -> tuple[Float[Tensor, "*r f"], Float[Tensor, "*r f"]]:
        """Factors and offsets of the six, of all rows or of each; those of all are kept."""
        tables = [integer.tables() for integer in self._maps.values()]
        if any(isinstance(group, Tensor) for group in groups):
            return self._beside([table.of(group) for table, group in zip(tables, groups, strict=True)])
        if len(self._of) != len(tables) or any(a is not b for a, b in zip(tables, self._of, strict=True)):
            self._of, self._worked_out = tables, {}
        key = tuple(int(group) for group in groups)
        if key not in self._worked_out:
            with torch.inference_mode(False), torch.no_grad():  # a derivative may be asked for later
                numbers = [table.of(group) for table, group in zip(tables, key, strict=True)]
                self._worked_out[key] = self._beside(numbers)
        return self._worked_out[key]

    def _beside(self, numbers: list[Numbers]) -> tuple[Float[Tensor, "*r f"], Float[Tensor, "*r f"]]:
        like = numbers[0].inverse.new_ones(self.dim)
        scale, offset = [like] * 6, [like * 0] * 6
        for part, of in zip(self._maps, numbers, strict=True):
            shift, factor = MODULATED[part]
            scale[shift] = scale[factor] = of.inverse.expand(*of.inverse.shape[:-1], self.dim)
            offset[shift] = offset[shift] if of.offset is None else of.offset
        wide = torch.broadcast_shapes(*(each.shape for each in (*scale, *offset)))
        whole = [torch.cat([each.expand(wide) for each in six], -1) for six in (scale, offset)]
        return whole[0], whole[1]
