"""A left-to-right model behind its cache of keys and values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from manta.autoregressive import Told
from manta.families.batching import ROWS, padded_width, repeated_rows
from manta.families.prompted import Memory
from manta.nets.layout import columnwise
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line

if TYPE_CHECKING:
    from manta.families.autoregressive import AutoregressiveModel


class CachedReader:
    """A model behind its cache: reads some places of every row, see `autoregressive.Reader`.

    On CPU what it tells of a place is the same to the last bit however many places and rows are read beside it, if the
    model's operator answers alone. Other operators are read a place a call, all rows at the same place.

    Args:
        model: the model.
        memory: encoded prompts, of a padded width.
        room: places that are read at most, those that fill a call up included.
    """

    def __init__(self, model: "AutoregressiveModel", memory: Memory, room: int) -> None:
        trunk: Trunk = model.trunk
        self.model, self.rows = model, len(memory.states)
        on_cpu = memory.states.device.type == "cpu"
        self.multiple = multiple_of(model)
        """Rows times places of a call are a multiple of it."""
        self.trunk = columnwise(trunk) if on_cpu and memory.states.dtype is torch.float32 else trunk
        if self.multiple == 1:
            memory = Memory(repeated_rows(memory.states), repeated_rows(memory.mask))
        places = line(padded_width(room), memory.states.device)
        self.context = OperatorContext(places, causal=True, alone=on_cpu and trunk.answers_alone)
        self.memory, self.cache = self.trunk.project(memory.states, memory.mask), self.trunk.new_cache()

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        """See `autoregressive.Reader`."""
        rows = torch.tensor(tokens, device=self.context.coordinates.device)
        if self.multiple == 1:
            rows, starts = repeated_rows(rows), [*starts, *[starts[-1]] * (-len(starts) % ROWS)]
        x = self.model.embed(rows, starts[0] if len(set(starts)) == 1 else starts)
        span = self.context.spans(starts, rows.shape[1])
        hidden = self.trunk(x, span, memory=self.memory, cache=self.cache)
        return Told(self.model.head(hidden)[: self.rows], hidden[: self.rows])

    def select(self, rows: Sequence[int]) -> None:
        """See `autoregressive.filling.Selecting`: of rows with one prompt, or with prompts that go with them."""
        more = -len(rows) % ROWS if self.multiple == 1 else 0  # rows that were repeated
        index = torch.tensor([*rows, *[rows[-1]] * more], device=self.context.coordinates.device)
        for kept in self.cache:
            kept.select(index)


def multiple_of(model: "AutoregressiveModel") -> int:
    """What rows times places of a call that reads a model are a multiple of, so that each is what it is alone."""
    trunk: Trunk = model.trunk
    return ROWS if model.embedding.weight.device.type == "cpu" and trunk.answers_alone else 1
