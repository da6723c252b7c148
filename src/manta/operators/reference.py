"""Every operator again as explicit sums over elements: slow, plain, and what the fast forms are tested against."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.operators.attention import SelfAttention, Turn
from manta.operators.combined import AttentionFourier
from manta.operators.context import Operator, OperatorContext
from manta.operators.cross_attention import CrossAttention
from manta.operators.dijiang import DijiangAttention
from manta.operators.downsampled import LARGEST, DownsampledAttention
from manta.operators.fourier import TIME_FEATURES, SpectralConvolution
from manta.operators.linear import KernelAttention
from manta.operators.normalise import EPS
from manta.operators.pyramid import PyramidConvolution
from manta.operators.windowed import WindowedAttention


def reference(operator: Operator, x: Float[Tensor, "b n d"], context: OperatorContext) -> Float[Tensor, "b n d"]:
    """``(K z)(i) = Σ_j κ(z_i, z_j, i − j, t) W z_j``, one row, one i and one j at a time; zero at masked elements.

    Args:
        operator: any built operator, whose weights are used.
        x: the state.
        context: as for the operator itself.

    Raises:
        TypeError: no reference is written for this operator.
    """
    if isinstance(operator, AttentionFourier):
        return reference(operator.attention, x, context) + reference(operator.fourier, x, context)
    row_of = next((ROWS[kind] for kind in type(operator).__mro__ if kind in ROWS), None)
    if row_of is None:
        raise TypeError(f"no reference is written for {type(operator).__name__}; add one to ROWS")
    return torch.stack([_scattered(row_of, operator, x, context, row) for row in range(x.shape[0])])


def cross_attention_reference(
    module: CrossAttention,
    x: Float[Tensor, "b n d"],
    memory: Float[Tensor, "b m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Attention to a memory, one query and one key at a time; the arguments are those of ``CrossAttention``."""
    rows = []
    for row in range(x.shape[0]):
        read = memory[row] if mask is None else memory[row][mask[row]]
        key, value = (_heads(part, module.heads) for part in module.key_value(read).chunk(2, -1))
        query = _heads(module.query(x[row]), module.heads)
        heads = [
            _softmax_sum([module.gain[h] * _similarity(_unit(q), _unit(k)) for k in key[h]], list(value[h]), q)
            for h in range(module.heads)
            for q in query[h]
        ]
        rows.append(module.out(torch.stack(heads).unflatten(0, (module.heads, -1)).transpose(0, 1).flatten(1)))
    return torch.stack(rows)


def _scattered(row_of: Callable, operator: Operator, x: Tensor, context: OperatorContext, row: int) -> Tensor:
    """A row's output, computed from its real elements alone and written back where they stand."""
    n = x.shape[1]
    real = list(range(n)) if context.mask is None else context.mask[row].nonzero().flatten().tolist()
    output = torch.zeros_like(x[row])
    if not real:
        return output
    coordinates = context.coordinates.expand(x.shape[0], n, context.axes)[row][real].to(x.dtype)
    times = None if context.time is None else context.time[row][real]
    return output.index_put((torch.tensor(real),), row_of(operator, x[row][real], coordinates, times))


def _attention_row(operator: SelfAttention, x: Tensor, coordinates: Tensor, _: Tensor | None) -> Tensor:
    sizes = [heads * operator.head_dim for heads in (operator.heads, operator.kv_heads, operator.kv_heads)]
    query, key, value = (part.unflatten(-1, (-1, operator.head_dim)) for part in operator.qkv(x).split(sizes, -1))
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    if operator.normalised:
        query, key = (torch.stack([torch.stack([_unit(y) for y in head]) for head in part]) for part in (query, key))
    radius = operator.radius if isinstance(operator, WindowedAttention) else math.inf
    elements = []
    for i in range(len(x)):
        last = i if operator.causal else len(x) - 1
        seen = [j for j in range(last + 1) if max(abs(coordinates[i] - coordinates[j])) <= radius]
        heads = []
        for h in range(operator.heads):
            group = h * operator.kv_heads // operator.heads
            turned = _partly_turned(query[h, i], coordinates[i], operator.turn)
            keys = [_partly_turned(key[group, j], coordinates[j], operator.turn) for j in seen]
            scores = [operator.gain[h] * _similarity(turned, k) for k in keys]
            heads.append(_softmax_sum(scores, [value[group, j] for j in seen], query[h, i]))
        elements.append(torch.cat(heads))
    return operator.out(torch.stack(elements))


def _pyramid_row(operator: PyramidConvolution, x: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
    h = operator.inner(x)
    halved = torch.stack([h[i : i + 2].mean(0) for i in range(0, len(h), 2)])
    fine = _near(h, operator.kernels[0])
    coarse = _near(halved, operator.kernels[1])
    doubled = []
    for i in range(len(x)):
        own, beside = i // 2, i // 2 + (1 if i % 2 else -1)
        doubled.append(0.75 * coarse[own] + 0.25 * coarse[beside] if 0 <= beside < len(coarse) else coarse[own])
    return operator.out(torch.cat([fine, torch.stack(doubled)], -1)) + operator.mean(x.mean(0))


def _near(h: Tensor, kernels: Tensor) -> Tensor:
    reach = kernels.shape[-1] // 2
    sums = []
    for i in range(len(h)):
        there = range(max(0, i - reach), min(len(h), i + reach + 1))
        sums.append(torch.stack([kernels[:, j - i + reach] * h[j] for j in there]).sum(0))
    value, gate = torch.stack(sums).chunk(2, -1)
    return value * gate / math.sqrt(value.shape[-1])


def _downsampled_row(operator: DownsampledAttention, x: Tensor, coordinates: Tensor, _: Tensor | None) -> Tensor:
    width = operator.mixing.shape[-1]
    first = width - 1 if operator.causal else width // 2
    mixed = []
    for i in range(len(x)):
        there = [(place, j) for place in range(width) if 0 <= (j := i - first + place) < len(x)]
        mixed.append(x[i] + torch.stack([operator.mixing[:, place] * x[j] for place, j in there]).sum(0))
    query, key, value = (_heads(part, operator.heads) for part in operator.qkv(torch.stack(mixed)).chunk(3, -1))
    elements = []
    for i in range(len(x)):
        seen = [j for j in range(i + 1 if operator.causal else len(x)) if (i - j) % operator.rate == 0]
        heads = []
        for h in range(operator.heads):
            turned = _turned(query[h, i] / query[h, i].norm(), coordinates[i], operator.rotary_base)
            keys = [_turned(key[h, j] / key[h, j].norm(), coordinates[j], operator.rotary_base) for j in seen]
            temperature = operator.log_temperature[h].exp().clamp_max(LARGEST)
            heads.append(_softmax_sum([temperature * (turned * k).sum() for k in keys], [value[h, j] for j in seen], x))
        elements.append(torch.cat(heads))
    return operator.out(torch.stack(elements))


def _kernel_row(operator: KernelAttention, x: Tensor, coordinates: Tensor, _: Tensor | None) -> Tensor:
    query, key, value = (_heads(part, operator.heads) for part in operator.qkv(x).chunk(3, -1))
    decay = (-operator.log_rate.exp()).exp()
    received = torch.zeros_like(value)
    for h in range(operator.heads):
        scale = operator.gain[h] * operator.head_dim**-0.25
        turned = [
            [_partly_turned(_unit(part[h, i]), coordinates[i], operator.turn) * scale for i in range(len(x))]
            for part in (query, key)
        ]
        for i in range(len(x)):
            last = i if operator.causal else len(x) - 1
            weights = [
                (_features(operator, h, turned[0][i]) * _features(operator, h, turned[1][j])).sum()
                * decay[h] ** (coordinates[i, 0] - coordinates[j, 0]).abs()
                for j in range(last + 1)
            ]
            told = torch.stack([weight * value[h, j] for j, weight in enumerate(weights)]).sum(0)
            received = received.index_put(
                (torch.tensor(h), torch.tensor(i)), told / torch.stack(weights).sum() if operator.divided else told
            )
    if not isinstance(operator, DijiangAttention):
        return operator.out(received.transpose(0, 1).flatten(1))
    unit = torch.stack([torch.stack([_unit(y) for y in head]) for head in received])
    gate = operator.gate(x)
    return operator.out(gate * gate.sigmoid() * unit.transpose(0, 1).flatten(1))


def _features(operator: KernelAttention, head: int, x: Tensor) -> Tensor:
    if not isinstance(operator, DijiangAttention):
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())
    exponents = [(direction * x).sum() - (x * x).sum() / 2 for direction in operator.directions]
    return operator.weight[head] * torch.stack(exponents).exp() / math.sqrt(len(x))


def _fourier_row(operator: SpectralConvolution, x: Tensor, coordinates: Tensor, times: Tensor | None) -> Tensor:
    n = len(x)
    value = operator.value(x).unflatten(-1, (operator.groups, -1))
    cosine, sine = operator.spectrum
    modes = range(operator.modes if operator.causal else min(operator.modes, n))
    elements = []
    for i in range(n):
        received = torch.zeros_like(value[i])
        senders = range(i + 1) if operator.causal else range(n)
        for j in senders:
            lag = (coordinates[i, 0] - coordinates[j, 0]) / operator.period if operator.causal else (i - j) / n
            kernel = torch.zeros_like(cosine[0])
            for m in modes:
                angle = torch.as_tensor(math.pi * m * lag, dtype=x.dtype)
                factor = 1 if times is None else 1 + _time_gain(operator, m, times[i])
                kernel = kernel + factor * (cosine[m] * angle.cos() + sine[m] * angle.sin())
            received = received + kernel[:, None] * value[j]
        elements.append((received / len(senders)).flatten())
    return operator.out(torch.stack(elements))


def _time_gain(operator: SpectralConvolution, mode: int, time: Tensor) -> Tensor:
    terms = [operator.time_gain[k, mode] * (math.pi * (k + 1) * time).cos() for k in range(TIME_FEATURES)]
    return torch.stack(terms).sum()


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(0, 1)


def _unit(x: Tensor) -> Tensor:
    return x / ((x * x).sum() / len(x) + EPS).sqrt()


def _partly_turned(x: Tensor, place: Tensor, turn: Turn) -> Tensor:
    return torch.cat([_turned(x[: turn.width], place, turn.base), x[turn.width :]])


def _turned(x: Tensor, place: Tensor, base: float) -> Tensor:
    half = len(x) // 2
    turned = [torch.zeros(())] * len(x)
    for k in range(half):
        angle = place[k % len(place)] * base ** (-2 * k / len(x))
        turned[k] = x[k] * angle.cos() - x[k + half] * angle.sin()
        turned[k + half] = x[k] * angle.sin() + x[k + half] * angle.cos()
    return torch.stack(turned)


def _similarity(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum() / math.sqrt(len(query))


def _softmax_sum(scores: list[Tensor], values: list[Tensor], like: Tensor) -> Tensor:
    if not scores:
        return torch.zeros_like(like)
    weights = [score.exp() for score in scores]
    total = torch.stack(weights).sum()
    return torch.stack([weight / total * value for weight, value in zip(weights, values, strict=True)]).sum(0)


ROWS: Final[Mapping[type, Callable[..., Tensor]]] = {
    SelfAttention: _attention_row,
    SpectralConvolution: _fourier_row,
    KernelAttention: _kernel_row,
    PyramidConvolution: _pyramid_row,
    DownsampledAttention: _downsampled_row,
}
"""What computes a row of an operator, by its class or the nearest that it is derived from."""
