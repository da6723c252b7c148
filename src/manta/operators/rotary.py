"""Rotary position embedding for real-valued coordinates, along one axis or several."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from manta.errors import ConfigError

BASE = 1000.0


class RotaryTables(NamedTuple):
    """Factors of a rotation, laid out for ``rotate``: ``cos`` twice over, and ``sin`` with the sign of its half."""

    cos: Float[Tensor, "*rows n h"]
    sin: Float[Tensor, "*rows n h"]


def rotary_tables(
    coordinates: Num[Tensor, "*rows n a"], head_dim: int, base: float = BASE, *, published: bool = False
) -> RotaryTables:
    """Cosines and sines of the angles by which each element's place turns a head's channels.

    Channel pair k turns by ``coordinate · base^(−2k / head_dim)`` radians along axis k mod a. So the pairs are dealt to
    the axes in turn, and each axis has fast and slow ones.

    Args:
        coordinates: along a axes, fractions allowed.
        head_dim: width of a head, even.
        base: ratio between the fastest and (almost) the slowest turn; 1000 suits rows of up to a few hundred elements.
        published: round as the published models of Llama's kind do, ``coordinate · (1 / base^(2k / head_dim))``.

    Raises:
        ConfigError: a head has fewer channel pairs than there are axes.

    Source: Su et al., "RoFormer", arXiv 2104.09864, in the form that pairs channel k with channel k + head_dim/2;
    several axes: Heo et al., "Rotary Position Embedding for Vision Transformer", arXiv 2403.13298.
    """
    pairs, axes = head_dim // 2, coordinates.shape[-1]
    if pairs < axes:
        raise ConfigError(f"a head of width {head_dim} cannot turn along {axes} axes; it takes a width of {2 * axes}")
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    exponent = torch.arange(0, head_dim, 2, device=coordinates.device, dtype=dtype) / head_dim
    axis = torch.arange(pairs, device=coordinates.device) % axes
    frequencies = 1.0 / base**exponent if published else base**-exponent
    angles = coordinates.to(dtype)[..., axis] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return RotaryTables(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def rotate(
    x: Float[Tensor, "*heads n h"], tables: RotaryTables, *, published: bool = False
) -> Float[Tensor, "*heads n h"]:
    """Turn each channel pair by its place's angle, so that ``<rotate(q, i), rotate(k, j)>`` depends on i − j only.

    Args:
        x: queries or keys; ``tables`` must broadcast against it.
        published: round each product, as the published models of Llama's kind do; else a product is added unrounded.
    """
    cos, sin = (table.to(x.dtype) for table in tables)
    if published:
        return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
