"""Figures of items that are independent of one another, measured shard by shard: in turn, or wherever there is room."""

from collections.abc import Callable, Sequence
from typing import Any, Final

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Applies a function to every shard and returns what comes of each, in their order; both travel between processes."""
SHARD: Final = 250
"""Items of a shard."""


def in_turn(function: Callable[[Any], Any], shards: Sequence[Any]) -> list[Any]:
    """A `Spread` in this process."""
    return [function(shard) for shard in shards]


def shards_of(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Items cut into shards of `SHARD`, the last one perhaps shorter."""
    return [items[at : at + SHARD] for at in range(0, len(items), SHARD)]
