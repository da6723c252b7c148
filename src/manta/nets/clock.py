"""The time of a call, told to parts of a net that are not given it."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Clock:
    """The time of a call of a net, told to the maps in it."""

    def __init__(self) -> None:
        self._told = threading.local()  # calls of several threads have times of their own

    def __reduce__(self) -> tuple[type["Clock"], tuple[()]]:
        """A copy has been told nothing."""
        return Clock, ()

    def tell(self, time: Tensor | None) -> None:
        """Say it for the call to come; None after it."""
        self._told.time, self._told.one = time, None
        if time is not None and bool((time == time.flatten()[0]).all()):
            self._told.one = float(time.flatten()[0])

    @property
    def time(self) -> Float[Tensor, "b"] | Float[Tensor, "b m"] | None:
        """Of each row, or element; None between calls."""
        return getattr(self._told, "time", None)

    @property
    def one(self) -> float | None:
        """The time of all rows; None where they differ, or between calls."""
        return getattr(self._told, "one", None)

    def groups(self, edges: Float[Tensor, " g"], rows: int) -> Int64[Tensor, "{rows}"]:
        """The group of each row.

        Args:
            edges: times at which a group ends and the next one begins, ascending.
            rows: how many there are; those of one time lie side by side.
        """
        time = self.time
        assert time is not None, "a map with groups is called in the net that its times are told to"
        groups = torch.bucketize(time.flatten().to(edges), edges, right=True)
        assert rows % len(groups) == 0, "times are told of whole rows"
        return groups.repeat_interleave(rows // len(groups))


def clocked(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and parts of a net that are told the time, as the second argument of each call."""
    return ((name, part) for name, part in net.named_modules() if getattr(part, "told_time", False))


def within(name: str) -> str:
    """What names of what is in a part begin with."""
    return f"{name}." if name else ""


def start_clock(part: Any) -> tuple[Clock, list[Any]]:
    """A clock that shows the time of each call of a part; and the hooks that keep it."""
    part.clock = Clock()
    return part.clock, [
        part.register_forward_pre_hook(_begin_call),
        part.register_forward_hook(_end_call, always_call=True),
    ]


def _begin_call(part: Any, args: tuple[Any, ...]) -> None:
    part.clock.tell(args[1])


def _end_call(part: Any, *_: Any) -> None:
    part.clock.tell(None)
