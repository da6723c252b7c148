"""A net from what a folder holds of it: whatever its shape asks for is compared before any memory is taken."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import nn

from manta.config import shortened, to_dict
from manta.errors import ConfigError

MAX_SIZE: Final = 10_000_000
"""Largest number that a shape may hold."""

Net = TypeVar("Net", bound=nn.Module)


def built(net_class: Callable[[Any], Net], shape: Any, sizes: Mapping[str, Sequence[int]]) -> Net:
    """A net whose weights have the names and sizes that are stored; with weights of its own until they are loaded.

    Args:
        net_class: makes the net of a shape.
        shape: its configuration.
        sizes: of each stored weight, by name.

    Raises:
        ConfigError: they do not fit each other.
    """
    _check_numbers(to_dict(shape), most_blocks=len(sizes))
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in net_class(shape).state_dict().items()}
    stored = {name: tuple(size) for name, size in sizes.items()}
    wrong = sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
    if wrong:
        raise ConfigError(f"{wrong[0][:80]} ({len(wrong)} weights differ)")
    return net_class(shape)


def _check_numbers(shape: dict[str, Any], *, most_blocks: int) -> None:
    """Refuse sizes that no model has; every block has weights of its own, so there are no more blocks than these."""
    for name, value in shape.items():
        if isinstance(value, dict | list):
            inner = value if isinstance(value, dict) else dict(zip(map(str, range(len(value))), value, strict=True))
            _check_numbers(inner, most_blocks=most_blocks)
        elif isinstance(value, int) and abs(value) > (most_blocks if "depth" in name else MAX_SIZE):
            raise ConfigError(f"{name} is {shortened(value)}")
