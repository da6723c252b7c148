"""Figures of items that are independent of one another, measured by many processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from manta.cluster.local import connected
from manta.metrics.spread import Spread


@contextmanager
def spreading(address: str | None = None, *, workers: int | None = None) -> Iterator[Spread]:
    """A `Spread` over the processes of a cluster.

    Args:
        address: see `connected`.
        workers: see `connected`.

    Raises:
        UsageError: see `connected`.
    """
    with connected(address, workers=workers) as ray:

        def spread(function: Callable[[Any], Any], shards: Sequence[Any]) -> list[Any]:
            measure = ray.remote(num_cpus=1)(_measured)
            try:
                return ray.get([measure.remote(function, shard) for shard in shards])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error

        yield spread


def _measured(function: Callable[[Any], Any], shard: Any) -> Any:
    return function(shard)
