"""Maps of integers fitted to what maps of floating-point numbers have read."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.clock import clocked, within
from manta.nets.integer_nets import with_integers
from manta.nets.integer_tensor import IntegerTensor
from manta.nets.integers import UNSIGNED, Inputs, IntegerSpec, pack
from manta.nets.modulated import TaskMap
from manta.nets.products import LARGEST
from manta.quantisation.grouping import channel_sizes, edges_between, groups_of, merged_times
from manta.quantisation.observing import Observed
from manta.quantisation.rounding import compensated_integers, nearest_integers, weight_scales

LEAST_SHARE = 0.002
"""Maps with a smaller share of a net's weights stay as they are."""
AUTO_GROUPS = (1, 2, 4, 8)
"""Numbers of groups that are tried."""
POWERS = (0.0, 0.5, 1.0)
"""Of the sizes of channels, what inputs are divided by: not at all, by their root, or by all of it."""
CLIPS = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Of the largest input, ends of the range that are tried."""
WORTH = 0.97
"""More groups, or factors of channels, are taken where the error falls below this share of what it is without."""
CONSTANT = 1e-6
"""Outputs whose variance is a smaller share of their mean square are taken for always the same."""
TRIED = 1024
"""Most rows on which what is tried is compared."""


@dataclass(frozen=True, kw_only=True)
class Quantising:
    """How a net is quantised."""

    bits: Literal[4, 8] = 8
    """Of the weights; tables of tokens, depthwise convolutions and what tasks change of a map have 8 in any case."""
    once: Literal[4, 8] = 8
    """Bits of the weights of maps that see one row a request, such as those of times."""
    inputs: Inputs = "static"
    """Of the maps, see `IntegerSpec`."""
    groups: int | Literal["auto"] = 1
    """Groups of times of a map that is told the time; `auto`: as many as it is worth to it, up to 8."""
    shift: bool = True
    """Shift static inputs channel by channel; of a convolution all alike."""
    spread: float | Literal["auto"] = "auto"
    """Power of the sizes of channels that static inputs are divided by; `auto`: whichever has the least error."""
    clip: bool = True
    """Let the largest inputs be cut off where that lessens the error."""
    fold: bool = True
    """Change the modulation instead of the inputs, where a map is behind a modulated norm."""
    compensated: bool | None = None
    """Weights make up for each other's rounding errors; None: those of 4 bits do."""


@dataclass(frozen=True)
class Fitted:
    """A map of integers, as fitted."""

    spec: IntegerSpec
    tensors: dict[str, Tensor]
    """Its state."""
    error: float | None = None
    """Of its outputs on rows that were kept, relative to their variance; None where none were."""
    naive: float | None = None
    """The same of one step for all, no shift and no factors, and weights rounded to the nearest."""
    by_group: tuple[float, ...] = ()
    """Its error in each group."""


def fitted(net: nn.Module, seen: Mapping[str, Observed], how: Quantising) -> dict[str, Fitted]:
    """Fit a map of integers to each map of a net, and to the table that its words are told by.

    Of convolutions that are not between all channels, and of what tasks change of a map, the weights alone are rounded.

    Args:
        net: of floating-point numbers.
        seen: what its maps read, from `observed`.
        how: bits and the rest.

    Returns:
        By the name of the map.

    Raises:
        ConfigError: nothing can be quantised.
    """
    told = tuple(within(name) for name, _ in clocked(net))
    foldable = set(_foldable(net)) if how.fold else set()
    found = {}
    for name, part in _maps(net):
        if isinstance(part, nn.Embedding):
            found[name] = _table(part)
            continue
        if isinstance(part, TaskMap):
            found |= {f"{name}.{own}": _rounded(part, own) for own in part.scaled}
            continue
        looked = seen.get(name)
        if how.inputs == "float" or not _between_all(part):
            found[name] = _of_rows(part, looked, replace(how, bits=8, inputs="float"))
        elif looked is None or looked.most_places <= 1:
            found[name] = _of_rows(part, looked, replace(how, bits=8 if looked is None else how.once, inputs="dynamic"))
        elif how.inputs == "dynamic":
            found[name] = _of_rows(part, looked, how)
        else:
            found[name] = _static(part, looked, how, timed=name.startswith(told), folded=name in foldable)
    if not found:
        raise ConfigError("the net has no map that could be quantised")
    return found


def quantised(net: nn.Module, found: Mapping[str, Fitted]) -> nn.Module:
    """A copy of a net with its maps as fitted."""
    new = with_integers(deepcopy(net), {name: each.spec for name, each in found.items()})
    for name, each in found.items():
        new.get_submodule(name).load_state_dict(each.tensors)
    return new.eval()


def _maps(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d | nn.Embedding | TaskMap]]:
    """Names and maps that are large enough; tables that words are told by, and maps that tasks change."""
    least = LEAST_SHARE * sum(p.numel() for p in net.parameters())
    tables = {id(each._shared[0]) for each in net.modules() if hasattr(each, "_shared")}  # pyright: ignore
    for name, part in net.named_modules():
        if getattr(part, "stacked_maps", False):
            raise ConfigError(f"{name} has maps of which several are one in use; merge them first")
        if isinstance(part, nn.Embedding):
            if id(part) in tables:
                yield name, part
        elif isinstance(part, TaskMap):
            if sum(own.numel() for own in part.own) >= least:
                yield name, part
        elif isinstance(part, nn.Linear | nn.Conv2d) and part.weight.numel() >= least:
            yield name, part


def _between_all(part: nn.Linear | nn.Conv2d) -> bool:
    return isinstance(part, nn.Linear) or part.groups == 1


def _foldable(net: nn.Module) -> Iterator[str]:
    """Names of maps that are behind a modulated norm, alone."""
    for name, part in net.named_modules():
        for entry in getattr(part, "entries", {}).values():
            yield f"{name}.{entry}"


def _table(part: nn.Embedding) -> Fitted:
    weight = part.weight.detach().float().cpu()
    scale = weight_scales(weight, 8, torch.ones(weight.shape[1]))
    tensors = {"integers": nearest_integers(weight, scale, 8), "weight_scale": scale}
    return Fitted(IntegerSpec(inputs="dynamic"), tensors)


def _rounded(part: TaskMap, own: str) -> Fitted:
    """What tasks change of a map."""
    values = getattr(part, own).detach().float().cpu()
    new = IntegerTensor(tuple(values.shape), part.scaled[own])
    new.fill(values)
    return Fitted(IntegerSpec(inputs="float"), new.state_dict())


def _of_rows(part: nn.Linear | nn.Conv2d, looked: Observed | None, how: Quantising) -> Fitted:
    """Inputs that are rounded row by row, or not at all."""
    weight, bias = _weight(part), _bias(part)
    rows = None if looked is None else torch.cat([looked.moments[time].sample for time in looked.times])[:TRIED]
    moments = torch.ones(weight.shape[1]) if rows is None else rows.square().mean(0)
    scale = weight_scales(weight, how.bits, moments)
    if rows is not None and _compensates(how):
        integers = compensated_integers(weight, scale, how.bits, rows.mT @ rows / len(rows))
    else:
        integers = nearest_integers(weight, scale, how.bits)
    error = None
    if rows is not None:
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / LARGEST
        inputs = rows if how.inputs == "float" else (rows / step).round() * step
        wanted = rows @ weight.mT
        error = _relative(inputs @ (integers * scale[:, None]).mT, wanted, wanted)
    spec = IntegerSpec(bits=how.bits, inputs=how.inputs)
    tensors = {"weight": _stored(integers, part, how.bits), "weight_scale": scale}
    if bias is not None:
        tensors["bias"] = bias
    return Fitted(spec, tensors, error)


@dataclass(frozen=True)
class _Rows:
    """Rows that a map has read, with what is known of all that it read."""

    rows: Float[Tensor, "r k"]
    time: Int64[Tensor, "r"]
    """Number of each row's time."""
    low: Float[Tensor, "t i"]
    high: Float[Tensor, "t i"]
    times: list[float | None]
    repeats: int
    """Inputs of a channel: places of a kernel, or 1."""

    def per_input(self, channels: Float[Tensor, "*g i"]) -> Float[Tensor, "*g k"]:
        """Numbers of channels as numbers of inputs."""
        return channels.repeat_interleave(self.repeats, -1)


@dataclass(frozen=True)
class _Inputs:
    """How static inputs are rounded."""

    begins: list[int]
    """First time of each group."""
    shift: Float[Tensor, "g i"] | None
    spread: Float[Tensor, " i"] | None
    step: Float[Tensor, " g"]
    zero: Float[Tensor, " g"]
    """Where zero lies among unsigned integers; `UNSIGNED` for symmetric ones."""

    def rounded(self, of: _Rows) -> tuple[Float[Tensor, "r k"], Float[Tensor, "r k"]]:
        """Inputs, shifted and divided by their factors, before and after they are rounded."""
        group = torch.tensor(groups_of(self.begins, len(of.times)))[of.time]
        x = of.rows if self.shift is None else of.rows - of.per_input(self.shift)[group]
        x = x if self.spread is None else x / of.per_input(self.spread)
        step, zero = self.step[group, None], self.zero[group, None]
        symmetric = zero == UNSIGNED
        low, high = torch.where(symmetric, -LARGEST, -zero), torch.where(symmetric, LARGEST, 255 - zero)
        return x, (x / step).round().clamp(low, high) * step


def _static(part: nn.Linear | nn.Conv2d, looked: Observed, how: Quantising, *, timed: bool, folded: bool) -> Fitted:
    """Inputs that are rounded by steps found here."""
    weight, bias, of = _weight(part), _bias(part), _gathered(part, looked)
    tried = _thinned(of)
    convolution = isinstance(part, nn.Conv2d)
    best, least = None, float("inf")
    for groups in _numbers(how, len(of.times) if timed and looked.timed else 1):
        for power in POWERS if how.spread == "auto" else (how.spread,):
            inputs = _inputs(of, weight, groups, power, how, convolution)
            error = _error(tried, inputs, weight, how.bits)
            if best is None or error < WORTH * least:
                best, least = inputs, error
    assert best is not None, "something is tried"
    plain = replace(how, shift=False, clip=False)
    naive = _error(tried, _inputs(of, weight, 1, 0.0, plain, convolution), weight, how.bits, plain=True)
    return _finished(part, of, best, weight, bias, how, naive, folded and not convolution)


def _numbers(how: Quantising, times: int) -> Sequence[int]:
    if how.groups != "auto":
        return (min(how.groups, times),)
    return [groups for groups in AUTO_GROUPS if groups <= times]


def _inputs(of: _Rows, weight: Tensor, groups: int, power: float, how: Quantising, convolution: bool) -> _Inputs:
    """Groups, shifts, factors and steps."""
    centre = (of.low + of.high) / 2
    begins = merged_times(centre, groups)
    group = torch.tensor(groups_of(begins, len(of.times)))
    shift = None
    low, high = of.low, of.high
    if how.shift and not convolution:
        shift = torch.stack([centre[group == g].mean(0) for g in range(len(begins))])
        low, high = low - shift[group], high - shift[group]
    sizes = torch.maximum(low.abs(), high.abs())
    spread = channel_sizes(sizes) ** power if power else None
    if spread is not None:
        low, high = low / spread, high / spread
    ends = []
    for g in range(len(begins)):
        bottom, top = float(low[group == g].min()), float(high[group == g].max())
        if convolution and how.shift:
            bottom, top = min(bottom, 0.0), max(top, 0.0)
            step = max(top - bottom, 1e-12) / 255
            ends.append((step, round(-bottom / step)))
        else:
            ends.append((max(-bottom, top, 1e-12) / LARGEST, UNSIGNED))
    step, zero = (torch.tensor(part, dtype=torch.float32) for part in zip(*ends, strict=True))
    found = _Inputs(begins, shift, spread, step, zero)
    return _clipped(of, found, weight) if how.clip else found


def _clipped(of: _Rows, inputs: _Inputs, weight: Tensor) -> _Inputs:
    """With the steps of each group that have the least error; inputs count by the size of their weights."""
    matter = weight.square().sum(0)
    matter = matter if inputs.spread is None else matter * of.per_input(inputs.spread).square()
    group = torch.tensor(groups_of(inputs.begins, len(of.times)))[of.time]
    step, least = inputs.step.clone(), torch.full_like(inputs.step, torch.inf)
    for share in CLIPS:
        exact, rounded = replace(inputs, step=inputs.step * share).rounded(of)
        each = ((rounded - exact).square() * matter).sum(1)
        error = torch.zeros_like(step).index_add(0, group, each)
        step = torch.where(error < WORTH * least, inputs.step * share, step)
        least = torch.minimum(error, least)
    return replace(inputs, step=step)


def _error(of: _Rows, inputs: _Inputs, weight: Tensor, bits: int, *, plain: bool = False) -> float:
    """Of the outputs, with weights rounded to the nearest."""
    exact, rounded = inputs.rounded(of)
    spread = weight if inputs.spread is None else weight * of.per_input(inputs.spread)
    moments = torch.ones(spread.shape[1]) if plain else exact.square().mean(0)
    scale = spread.abs().amax(1).clamp_min(1e-12) / (2 ** (bits - 1) - 1) if plain else None
    scale = weight_scales(spread, bits, moments) if scale is None else scale
    integers = nearest_integers(spread, scale, bits) * scale[:, None]
    return _relative(rounded @ integers.mT, exact @ spread.mT, of.rows @ weight.mT)


def _finished(
    part: nn.Linear | nn.Conv2d,
    of: _Rows,
    inputs: _Inputs,
    weight: Tensor,
    bias: Tensor | None,
    how: Quantising,
    naive: float,
    folded: bool,
) -> Fitted:
    """The map with the inputs that were chosen."""
    exact, rounded = inputs.rounded(of)
    spread = weight if inputs.spread is None else weight * of.per_input(inputs.spread)
    scale = weight_scales(spread, how.bits, exact.square().mean(0))
    if _compensates(how):
        integers = compensated_integers(spread, scale, how.bits, rounded.mT @ rounded / len(rounded))
    else:
        integers = nearest_integers(spread, scale, how.bits)
    group = torch.tensor(groups_of(inputs.begins, len(of.times)))[of.time]
    wanted, found = exact @ spread.mT, rounded @ (integers * scale[:, None]).mT
    spec = IntegerSpec(
        bits=how.bits, groups=len(inputs.begins), shift=inputs.shift is not None, spread=inputs.spread is not None,
        folded=folded,
    )  # fmt: skip
    tensors = {"weight": _stored(integers, part, how.bits), "weight_scale": scale, "step": inputs.step}
    if bias is not None or inputs.shift is not None:
        # What the shift takes away, and what is missing on the mean, come back with the bias.
        missing = torch.stack([_mean(wanted - found, group == g) for g in range(spec.groups)])
        whole = missing if inputs.shift is None else missing + of.per_input(inputs.shift) @ weight.mT
        tensors["bias"] = (whole if bias is None else whole + bias).flatten()
        found = found + missing[group]
    if inputs.shift is not None:
        tensors["shift"] = inputs.shift.flatten()
    if inputs.spread is not None:
        tensors["spread"] = inputs.spread
    if spec.groups > 1:
        tensors["edges"] = torch.tensor(edges_between(of.times, inputs.begins))  # pyright: ignore[reportArgumentType]
    if isinstance(part, nn.Conv2d):
        tensors["zero"] = inputs.zero
    outputs = of.rows @ weight.mT
    errors = tuple(_relative(found[group == g], wanted[group == g], outputs) for g in range(spec.groups))
    return Fitted(spec, tensors, _relative(found, wanted, outputs), naive, errors)


def _gathered(part: nn.Linear | nn.Conv2d, looked: Observed) -> _Rows:
    times = looked.times
    moments = [looked.moments[time] for time in times]
    samples = [moment.sample for moment in moments]
    time = torch.cat([torch.full((len(sample),), index) for index, sample in enumerate(samples)])
    low, high = torch.stack([m.low for m in moments]), torch.stack([m.high for m in moments])
    return _Rows(torch.cat(samples), time, low, high, times, samples[0].shape[1] // low.shape[1])


def _thinned(of: _Rows) -> _Rows:
    """Every so many of the rows."""
    every = -(-len(of.rows) // TRIED)
    return replace(of, rows=of.rows[::every], time=of.time[::every])


def _mean(rows: Tensor, where: Tensor) -> Tensor:
    return rows[where].mean(0) if bool(where.any()) else rows.mean(0)


def _relative(found: Tensor, wanted: Tensor, outputs: Tensor) -> float:
    """Mean square of a difference over the variance of all outputs: shifts take away from what is wanted. Outputs that
    are always the same have no variance, and their mean square counts."""
    if not len(wanted):
        return 0.0
    whole, variance = outputs.square().mean(), (outputs - outputs.mean(0)).square().mean()
    variance = variance if float(variance) > CONSTANT * float(whole) else whole
    return float((found - wanted).square().mean() / variance.clamp_min(1e-20))


def _compensates(how: Quantising) -> bool:
    return how.bits == 4 if how.compensated is None else how.compensated


def _weight(part: Any) -> Tensor:
    return part.weight.detach().float().cpu().flatten(1)


def _bias(part: Any) -> Tensor | None:
    return None if part.bias is None else part.bias.detach().float().cpu()


def _stored(integers: Tensor, part: nn.Linear | nn.Conv2d, bits: int) -> Tensor:
    return pack(integers) if bits == 4 else integers.view(part.weight.shape)
