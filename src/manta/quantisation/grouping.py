"""Groups of neighbouring times: what is shifted alike."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

DECAY = 0.99
"""Of what earlier times count among the sizes of channels."""


def merged_times(centres: Float[Tensor, "t i"], groups: int) -> list[int]:
    """Where groups of times begin: neighbours that are nearest are put together, again and again.

    Args:
        centres: of each time, in order.
        groups: how many there are to be.

    Returns:
        The first time of each group, ascending from 0.

    Source: arXiv 2503.06930.
    """
    members = [[index] for index in range(len(centres))]
    while len(members) > max(1, groups):
        means = torch.stack([centres[group].mean(0) for group in members])
        nearest = int((means[1:] - means[:-1]).square().sum(1).argmin())
        members[nearest : nearest + 2] = [members[nearest] + members[nearest + 1]]
    return [group[0] for group in members]


def edges_between(times: Sequence[float], begins: Sequence[int]) -> list[float]:
    """Times at which each group but the first begins: half-way from the last of the one before.

    Args:
        times: ascending.
        begins: from `merged_times`.
    """
    return [(times[begin - 1] + times[begin]) / 2 for begin in begins[1:]]


def groups_of(begins: Sequence[int], times: int) -> list[int]:
    """The group of each of so many times."""
    return [sum(begin <= index for begin in begins) - 1 for index in range(times)]


def channel_sizes(sizes: Float[Tensor, "t i"], decay: float = DECAY) -> Float[Tensor, " i"]:
    """The size of each channel over all times, the largest one 1.

    ``e ← decay · e + (1 − decay) · m_t`` from noise to data, and ``s = e / max(e)``

    Args:
        sizes: largest of each channel at each time, in order.
        decay: of what was there before.

    Source: arXiv 2503.06930.
    """
    kept = sizes[0]
    for size in sizes[1:]:
        kept = decay * kept + (1 - decay) * size
    return (kept / kept.max().clamp_min(1e-30)).clamp_min(1e-5)
