"""What an operator is told besides the state, what it keeps between calls, and the contract every operator keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Num, Shaped
from torch import Tensor, nn

from manta.errors import UsageError

Fact = TypeVar("Fact")

HEADS = 4
"""Heads of an operator that neither its configuration nor its model tells any."""

LEAST_ROOM = 64
"""Elements for which a cache of a growing row has room from the start; it doubles when they are full."""


@dataclass(frozen=True)
class OperatorContext:
    """Where the elements of a row sit, which of them are real, at what time each of them is, and which are computed.

    A state holds all elements of its row, or those of a span, see `span`; all else is told of the whole row, n elements
    long. What follows from a context is worked out once for all operators that are given it.

    Args:
        coordinates: where each element is along a axes, 1 for a text and 2 for an image: "n a" when all rows agree and
            "b n a" otherwise; fractions are allowed. See `line`.
        mask: "b n", True where an element is real. None: all are. Nothing a real element receives may depend on the
            others, and what an operator returns for those is finite but without meaning.
        time: "b n", flow time in [0, 1] of each element (0 = noise, 1 = data), for operators whose kernel depends on
            it.
    """

    coordinates: Num[Tensor, "*rows n a"]
    mask: Bool[Tensor, "b n"] | None = None
    time: Float[Tensor, "b n"] | None = None
    start: int = 0
    """First element that the state holds."""
    end: int | None = None
    """The one after its last; None: the row's end."""
    at: Int64[Tensor, "b k"] | None = None
    """Elements that the state holds where rows hold different ones; None: those from `start` on."""
    causal: bool = False
    """Let each element receive from itself and earlier ones only, whatever the operator was built for: of operators
    that compare pairs (`follows_blocks`)."""
    blocks: Int64[Tensor, "n"] | None = None
    """Block of each element, ascending: an element receives from its own block and from those before; None: there are
    none. Of operators that compare pairs (`follows_blocks`)."""
    lasting: Bool[Tensor, "n"] | None = None
    """With blocks: True for elements that later blocks receive from; the others are a copy beside them, seen by
    nobody but their own block's copy. None: all last."""
    alone: bool = False
    """Ask that what an element of a span receives be, bit for bit, what it would if it were the only one, and whatever
    stands behind it: of operators that keep spans, on CPU, for causal decoding."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a grid whose elements stand row by row; None: they stand otherwise."""
    _of_row: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    _of_span: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.coordinates.ndim >= 2, f"coordinates are n a or b n a, received {tuple(self.coordinates.shape)}"
        assert self.mask is None or self.mask.dtype is torch.bool, f"a mask is boolean, received {self.mask.dtype}"
        assert self.grid is None or self.grid[0] * self.grid[1] == self.length, f"{self.grid} of {self.length} elements"
        assert 0 <= self.start < self.stop <= max(1, self.length), f"no span of {self.length}: {self.start}, {self.end}"

    @property
    def length(self) -> int:
        """Elements of the row."""
        return self.coordinates.shape[-2]

    @property
    def axes(self) -> int:
        """Axes along which the elements lie."""
        return self.coordinates.shape[-1]

    @property
    def stop(self) -> int:
        """The element after the last one that the state holds."""
        return self.length if self.end is None else self.end

    def span(self, start: int, stop: int) -> "OperatorContext":
        """The same row, of which a state holds the elements from `start` up to, not including, `stop`."""
        return replace(self, start=start, end=stop, at=None, _of_span={})

    def spans(self, starts: Sequence[int], count: int) -> "OperatorContext":
        """The same rows, of which a state holds `count` elements from each row's own start on."""
        if len(set(starts)) == 1:
            return self.span(starts[0], starts[0] + count)
        ahead = torch.arange(count, device=self.coordinates.device)
        at = torch.tensor(starts, device=self.coordinates.device)[:, None] + ahead
        return replace(self, start=min(starts), end=max(starts) + count, at=at, _of_span={})

    def here(self, table: Shaped[Tensor, "*rows n c"]) -> Shaped[Tensor, "*spans k c"]:
        """What a table says of the elements that the state holds."""
        if self.at is None:
            return table[..., self.start : self.stop, :]
        assert table.ndim == 2, "rows with spans of their own share one table"
        return table[self.at]

    def of_row(self, name: Hashable, compute: Callable[[], Fact]) -> Fact:
        """What follows from the row alone, computed when it is first asked for.

        Args:
            name: tells it from all else that follows from a row.
            compute: makes it.
        """
        if name not in self._of_row:
            self._of_row[name] = compute()
        return self._of_row[name]

    def of_span(self, name: Hashable, compute: Callable[[], Fact]) -> Fact:
        """The same of the row and the span."""
        if name not in self._of_span:
            self._of_span[name] = compute()
        return self._of_span[name]


def line(length: int, device: torch.device | None = None) -> Int64[Tensor, "{length} 1"]:
    """Coordinates of elements that stand one after the other, 0 … length − 1, along a single axis.

    Args:
        length: elements.
        device: where to put them.
    """
    return torch.arange(length, device=device)[:, None]


def lattice(rows: int, columns: int, device: torch.device | None = None) -> Int64[Tensor, "{rows}*{columns} 2"]:
    """Coordinates of the elements of a grid, row by row: which row and which column each is in.

    Args:
        rows: of the grid.
        columns: of the grid.
        device: where to put them.
    """
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))


class Cache:
    """What an operator keeps of a row's elements: for each of them what it last computed from it alone.

    A call computes a span of elements against what is kept of all others: of all earlier ones if the operator is
    causal, and of the whole row if it is not, whose first call therefore computes all of it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._carried: tuple[Tensor, ...] = ()
        self._stop = 0

    def carried(self, context: OperatorContext) -> Any:
        """The state of all elements before a span, as `carry` was given it; None before the first.

        Raises:
            UsageError: the span does not begin where the state ends.
        """
        if context.start == 0:
            return None
        if context.start != self._stop or context.at is not None:
            raise UsageError(
                f"a state that is carried along a row has come to element {self._stop}, and a span begins at "
                f"{context.start}; read the row in order, or anew"
            )
        return self._carried

    def carry(self, context: OperatorContext, *state: Tensor) -> None:
        """Keep the state of all elements up to the end of a span: it does not grow with the row."""
        self._carried, self._stop = state, context.stop

    def select(self, rows: Int64[Tensor, "b"]) -> None:
        """Each row goes on with what is kept of another, of an operator that keeps "… b h k c" and carries nothing."""
        self._kept = {name: kept.index_select(-4, rows) for name, kept in self._kept.items()}

    @property
    def num_bytes(self) -> int:
        """Memory that holds it, of which room for elements to come is a part."""
        return sum(part.numel() * part.element_size() for part in (*self._kept.values(), *self._carried))

    def renew(
        self, name: str, rows: Float[Tensor, "*shape k c"], context: OperatorContext, seen: int
    ) -> Float[Tensor, "*shape {seen} c"]:
        """Put what was computed of a span in its place; returns what is kept of the first `seen` elements.

        Args:
            name: of what is kept.
            rows: of the span; "… b h k c" where rows have spans of their own.
            context: says which span it is.
            seen: number of elements that the operator reads.
        """
        kept = self._kept.get(name)
        if kept is None or kept.shape[-2] < seen:
            held = 0 if kept is None else kept.shape[-2]
            room = max(seen, context.stop, min(context.length, max(2 * held, LEAST_ROOM)))
            grown = rows.new_zeros(*rows.shape[:-2], room, rows.shape[-1])
            if kept is not None:
                grown[..., :held, :] = kept
            kept = self._kept[name] = grown
        if context.at is None:
            kept[..., context.start : context.stop, :] = rows
        else:
            kept.scatter_(-2, context.at[:, None, :, None].expand_as(rows), rows)
        return kept[..., :seen, :]


class Operator(nn.Module, ABC):
    """A linear-in-space map by which every element of a state receives from others.

    ``(K z)(i) = Σ_j κ(z_i, z_j, i − j, t) W z_j``

    Attributes:
        causal: True when the output at i is independent, bit for bit, of every element after i.
        cacheable: True when a span can be computed from what a `Cache` keeps of the other elements.
        answers_alone: True when it does what `OperatorContext.alone` asks, and rows may have spans of their own.
        follows_blocks: True when it heeds `OperatorContext.blocks` and `OperatorContext.causal`.
        entry: name of the one linear map that its input goes to and nothing else does; None where there is none.
        carries: True when a causal one keeps a state that does not grow, so that each span begins where the last ended.
    """

    causal: bool
    cacheable: ClassVar[bool] = True
    answers_alone: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    follows_blocks: ClassVar[bool] = False
    entry: ClassVar[str | None] = None

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b k d"], context: OperatorContext, cache: Cache | None = None
    ) -> Float[Tensor, "b k d"]:
        """The operator's output at every position of a row or a span, for the caller to add to the residual stream.

        Args:
            x: the state of the context's span.
            context: of the row.
            cache: what this operator keeps of the row, which the call renews; needed for a span that is not the row.
        """

    @abstractmethod
    def flops(self, n: int, d: int) -> int:
        """Floating-point operations of the matrix products of one forward pass.

        Counts a multiplication and an addition as two, as ``torch.utils.flop_counter`` does; elementwise work is left
        out.

        Args:
            n: length of one row, padding included.
            d: width of the state.
        """


@runtime_checkable
class OperatorConfig(Protocol):
    """The frozen dataclass that describes an operator and builds it."""

    def build(self, dim: int, *, heads: int = HEADS, causal: bool = False) -> Operator:
        """A freshly initialised operator.

        Args:
            dim: width of the states.
            heads: of the model, for an operator that has heads and whose configuration does not set them.
            causal: let each element receive from itself and earlier ones only.

        Raises:
            ConfigError: for a width that does not fit, or a causal operator where there is none of the kind.
        """
        ...
