"""Weight modulation: every task has a small change of its own to the weights that all tasks share.

    W_k = W + U_k V_k

`modulate` puts such changes into any net; `merged` gives the net of one task back, which costs what the shared one
does.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError, UsageError
from manta.nets.integer_tensor import IntegerTensor
from manta.nets.integers import IntegerMap

Kind = Literal["none", "low_rank", "full", "film"]
OfTasks = nn.Parameter | IntegerTensor
"""Something of each task, the first axis being the task: as it is learned, or in integers."""
UNTOUCHED = ("condition", "conditions", "modulation", "time", "last")
"""Parts of a net whose maps see time and class and no state."""


@dataclass(frozen=True, kw_only=True)
class ModulationConfig:
    """What a task changes of a net.

    Source: Tian et al., "Instruct-IPT: All-in-One Image Processing Transformer via Weight Modulation", arXiv
        2407.00676, of which the abstract could be had: which maps, the rank and how changes begin are our
        reconstruction.
    """

    kind: Kind = "low_rank"
    """`none`: nothing, one net for all tasks; `low_rank`: a product U_k V_k of `rank`, added to each weight; `full`: a
    whole weight, added; `film`: a scale and a shift of each output, which changes features and no weights."""
    rank: int = 4
    """Of low-rank changes."""
    maps: tuple[str, ...] = ()
    """Which maps change: those whose names hold one of these; none: every linear map and convolution that sees the
    state."""
    frozen: bool = False
    """The shared weights stay as they are, and only the changes are trained."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"modulation.rank should be at least 1, received {self.rank}")
        if self.frozen and self.kind == "none":
            raise ConfigError("modulation.frozen without a change of any kind would train nothing; choose another kind")


class Tasks:
    """Which task each row of a batch is of, told to all maps of a net at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: Int64[Tensor, "b"] | None = None

    def tell(self, rows: Int64[Tensor, "b"]) -> None:
        """Say it for the calls to come.

        Args:
            rows: number of each row's task.
        """
        self.rows = rows


class TaskMap(nn.Module):
    """A linear map, or a convolution between all channels, with a change for every task.

    Of a fresh one the change is nothing.

    Args:
        base: the map, whose weights all tasks share.
        tasks: says which rows are of which task.
        config: kind and rank of the change.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, tasks: Tasks, config: ModulationConfig) -> None:
        super().__init__()
        self.base: nn.Linear | nn.Conv2d | IntegerMap = base
        self.kind, self._tasks, self.shape = config.kind, tasks, base.weight.shape
        linear = isinstance(base, nn.Linear)
        self.strided = {} if linear else {each: getattr(base, each) for each in ("stride", "padding", "dilation")}
        out, *inner = base.weight.shape
        fan_in = base.weight[0].numel()
        match config.kind:
            case "low_rank":
                self.up: OfTasks = nn.Parameter(torch.zeros(tasks.number, out, config.rank))
                self.down: OfTasks = nn.Parameter(torch.randn(tasks.number, config.rank, *inner) * fan_in**-0.5)
            case "full":
                self.change: OfTasks = nn.Parameter(torch.zeros(tasks.number, out, *inner))
            case "film":
                self.scale = nn.Parameter(torch.zeros(tasks.number, out))
                self.shift = nn.Parameter(torch.zeros(tasks.number, out))
            case _:
                raise ConfigError(f"a map cannot change by {config.kind}")

    @property
    def scaled(self) -> dict[str, int]:
        """Of what tasks have of their own as matrices, which axis has a scale a place where it is of integers."""
        return {"low_rank": {"up": 2, "down": 1}, "full": {"change": 1}}.get(self.kind, {})

    @property
    def own(self) -> list[nn.Parameter]:
        """What tasks have of their own; the first axis is the task."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("base.")]

    def forward(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest2"]:
        """The map of each row's task."""
        rows = self._tasks.rows
        assert rows is not None and len(x) % len(rows) == 0, "each row is told its task before the net is called"
        rows = rows.repeat_interleave(len(x) // len(rows))  # a net may take rows apart, such as into phases
        y = self.base(x)
        if self.kind == "film":
            return y * (1 + self._spread(self.scale[rows], y)) + self._spread(self.shift[rows], y)
        present = rows.unique().tolist()
        if len(present) == 1:
            return y + self._changed(x, present[0]).to(y.dtype)
        change = torch.zeros_like(y)
        for task in present:
            where = (rows == task).nonzero()[:, 0]
            change = change.index_copy(0, where, self._changed(x[where], task).to(y.dtype))
        return y + change

    @torch.no_grad()
    def merged(self, task: int) -> nn.Module:
        """One map with the weights of a task; of integers it has eight bits."""
        if isinstance(self.base, IntegerMap):
            if self.kind == "film":
                return self.base.rescaled(1 + self.scale[task], self.shift[task])
            return self.base.changed(self.weight_change(task))
        found = deepcopy(self.base)
        if self.kind == "film":
            scale = 1 + self.scale[task]
            found.weight.mul_(scale.view(-1, *[1] * (found.weight.ndim - 1)))
            bias = torch.zeros_like(scale) if found.bias is None else found.bias
            found.bias = nn.Parameter(bias * scale + self.shift[task])
        else:
            found.weight.add_(self.weight_change(task))
        return found

    def weight_change(self, task: int) -> Float[Tensor, "o *i"]:
        """What a task adds to the weights.

        Raises:
            UsageError: it changes features and no weights.
        """
        if self.kind == "film":
            raise UsageError("film changes features, and no weights")
        if self.kind == "full":
            return self.change[task]
        return (self.up[task] @ self.down[task].flatten(1)).view(self.shape)

    def _changed(self, x: Tensor, task: int) -> Tensor:
        """What the change of a task makes of some rows."""
        if not self.strided:
            if self.kind == "full":
                return F.linear(x, self.change[task])
            return F.linear(F.linear(x, self.down[task]), self.up[task])
        if self.kind == "full":
            return F.conv2d(x, self.change[task], **self.strided)
        inner = F.conv2d(x, self.down[task], **self.strided)
        return F.conv2d(inner, self.up[task][..., None, None])

    def _spread(self, rows: Float[Tensor, "b o"], y: Tensor) -> Tensor:
        """Numbers of each output, laid out beside outputs: channels are last in a linear map and second in another."""
        between = [1] * (y.ndim - 2)
        shape = (*rows.shape, *between) if self.strided else (len(rows), *between, rows.shape[1])
        return rows.view(shape).to(y.dtype)


def modulate(net: nn.Module, config: ModulationConfig, number: int) -> Tasks:
    """Give maps of a net a change for every task, in place.

    Args:
        net: any; its maps are called with rows first.
        config: which maps, and how they change.
        number: of tasks.

    Returns:
        What the net is told the tasks of a batch by.

    Raises:
        ConfigError: no map is of those asked for.
    """
    tasks = Tasks(number)
    if config.kind == "none":
        return tasks
    whole = tuple(f"{name}." for name, part in net.named_modules() if getattr(part, "merges_maps", False))
    chosen = [name for name, part in net.named_modules() if _takes(name, part, config) and not name.startswith(whole)]
    if not chosen:
        raise ConfigError(f"no map of the net has {', '.join(config.maps) or 'a weight'} in its name")
    for name in chosen:
        above, _, last = name.rpartition(".")
        part = cast(nn.Linear | nn.Conv2d, net.get_submodule(name))
        setattr(net.get_submodule(above), last, TaskMap(part, tasks, config))
    if config.frozen:
        own = {id(parameter) for each in task_maps(net) for parameter in each[1].own}
        for parameter in net.parameters():
            parameter.requires_grad_(id(parameter) in own)
    return tasks


def _takes(name: str, part: nn.Module, config: ModulationConfig) -> bool:
    if not isinstance(part, nn.Linear | nn.Conv2d) or getattr(part, "groups", 1) != 1:
        return False
    if set(name.split(".")) & set(UNTOUCHED):
        return False
    return not config.maps or any(each in name for each in config.maps)


def task_maps(net: nn.Module) -> Iterator[tuple[str, TaskMap]]:
    """Names and maps of a net that tasks change."""
    return ((name, part) for name, part in net.named_modules() if isinstance(part, TaskMap))


def merged(net: nn.Module, task: int) -> nn.Module:
    """A copy of a net with the weights of one task, which costs what the shared net does.

    Args:
        net: modulated.
        task: its number.
    """
    found = deepcopy(net)
    for name, part in list(task_maps(found)):
        above, _, last = name.rpartition(".")
        setattr(found.get_submodule(above), last, part.merged(task))
    return found


@torch.no_grad()
def rank_energy(net: nn.Module, share: float = 0.9) -> dict[str, list[int]]:
    """Of every map and task, the least rank that holds a share of the change's energy, the sum of its squared singular
    values.

    Args:
        net: whose maps change by whole weights, or by products.
        share: of the energy, above 0 and at most 1.
    """
    found: dict[str, list[int]] = {}
    for name, part in task_maps(net):
        ranks = []
        for task in range(part._tasks.number):
            energy = torch.linalg.svdvals(part.weight_change(task).flatten(1).float()).square()
            whole = energy.sum().clamp_min(1e-30)
            ranks.append(int((energy.cumsum(0) / whole < share - 1e-6).sum()) + 1)
        found[name] = ranks
    return found
