"""What the batches of one step of training share, so that it changes nothing which process computes which of them.

Several batches make one step where gradients are accumulated, on one process or on many. Each has a stream of random
numbers of its own then. What decides which nets are called is drawn from a stream that they share, since processes
that hold a net together have to call it together; and what is measured on the way (`observe`) is taken in once all of
them are done, in their order, so that none sees what another of the same step has told.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from manta.runtime import make_generator


@runtime_checkable
class Observer(Protocol):
    """What learns from the batches beside the weights: a running mean, a controller."""

    @property
    def take(self) -> Callable[..., None]:
        """Take in what one batch has told."""
        ...


class SharedStep:
    """One batch of a step that has several.

    Args:
        common: stream of random numbers that is the same for all batches of the step.
    """

    def __init__(self, common: torch.Generator) -> None:
        self.common = common
        self.told: list[tuple[Observer, tuple[Any, ...]]] = []
        """What was observed, in order."""


_open: ContextVar[SharedStep | None] = ContextVar("step", default=None)


@contextmanager
def shared_step(common: torch.Generator) -> Iterator[SharedStep]:
    """Compute one batch of a step that has several.

    Args:
        common: see `SharedStep`.
    """
    step = SharedStep(common)
    token = _open.set(step)
    try:
        yield step
    finally:
        _open.reset(token)


def is_shared() -> bool:
    """Whether the batch that is computed is one of several of its step."""
    return _open.get() is not None


def deciding(generator: torch.Generator) -> torch.Generator:
    """Where to draw what decides which nets are called: the step's stream, or the batch's own if it is alone.

    Args:
        generator: of the batch.
    """
    step = _open.get()
    return generator if step is None else step.common


def observe(observer: Observer, *values: Any) -> None:
    """Have something learn from a batch: now, or at the end of its step if that has several batches.

    Args:
        observer: what learns.
        values: for its `take`.
    """
    step = _open.get()
    if step is None:
        observer.take(*values)
    else:
        step.told.append((observer, values))


def stream(seed: int, *place: int) -> torch.Generator:
    """A stream of random numbers for a place in a run, such as a step and the number of a batch in it.

    Args:
        seed: of the stage, at least 0.
        place: at least 0 each.
    """
    # Its length is told, too: a sequence of seeds takes zeros at the end for none.
    drawn = np.random.SeedSequence(seed, spawn_key=(len(place), *place)).generate_state(1, np.uint64)[0]
    return make_generator(int(drawn >> np.uint64(1)))
