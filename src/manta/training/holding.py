"""How the processes of a run hold the weights of a stage: each all of them, or each a share.

`Alone` is one process. `Whole` is PyTorch's `DistributedDataParallel`: every process holds everything, and gradients
are averaged. `Shares` is its FSDP2 (`fully_shard`): every process holds a share of the weights, of their gradients, of
the optimiser's moments and of the weight average; weights are gathered for a call, block by block, and let go after it
(`full`) or after the backward pass (`grad`).

Sources: Li et al., arXiv 2006.15704; Zhao et al., arXiv 2304.11277; Rajbhandari et al., ZeRO, arXiv 1910.02054.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.training.ema import ExponentialAverage
from manta.training.shares import gathered
from manta.training.team import Team
from manta.types import Loss

Sharding = Literal["none", "grad", "full"]
"""What is shared out among processes: nothing; all but the weights while a step needs them; all."""


class _Taught(nn.Module):
    """A model with its objective, so that a call of it is the whole forward pass of a batch."""

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Any], int | None]:
        loss = self.objective(self.model, batch, generator)
        return loss.total, loss.parts, loss.count


class Alone:
    """One process, which holds everything.

    Args:
        model: as the run knows it.
        objective: see `Stage`.
    """

    def __init__(self, model: nn.Module, objective: Any) -> None:
        self.model, self.objective = model, objective
        """What is trained: the model that was given, or this process's shares of it."""

    def loss(self, batch: Any, generator: torch.Generator) -> Loss:
        """The objective of a batch."""
        return self.objective(self.model, batch, generator)

    def summing(self, last: bool) -> AbstractContextManager[Any]:
        """Compute one batch of a step in here.

        Args:
            last: it is the last of this process.
        """
        return nullcontext()

    def held(self) -> dict[int, Tensor]:
        """What this process holds in the place of the run's own weights and buffers, by their `id`; empty: these."""
        return {}

    @contextmanager
    def averaged(self, average: ExponentialAverage) -> Iterator[None]:
        """Have the run's own model with the averaged weights for a while, in the first process.

        Args:
            average: of `model`.
        """
        average.swap(self.model)
        try:
            yield
        finally:
            average.swap(self.model)

    def present(self) -> AbstractContextManager[None]:
        """Have the run's own model with the weights of now for a while, in the first process."""
        return nullcontext()

    def release(self) -> None:
        """Give the run's own model what has been trained."""


class Whole(Alone):
    """Several processes, each of which holds everything.

    Args:
        model: see `Alone`; its weights become those of the first process.
        objective: see `Alone`.
    """

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__(model, objective)
        from torch.nn.parallel import DistributedDataParallel

        # Which parameters have a gradient changes from step to step with what the objective calls.
        self._taught = DistributedDataParallel(
            _Taught(model, objective), forward_sync_buffers=False, find_unused_parameters=True
        )

    def loss(self, batch: Any, generator: torch.Generator) -> Loss:
        """See `Alone`."""
        return Loss(*self._taught(batch, generator))

    def summing(self, last: bool) -> AbstractContextManager[Any]:
        """See `Alone`; gradients are averaged in the last batch."""
        return nullcontext() if last else self._taught.no_sync()


class Shares(Alone):
    """Several processes, each of which holds a share of everything.

    A module whose class says which methods read its weights (`gathers`) is gathered by itself; the rest of a model for
    the whole pass. The run's own model holds nothing meanwhile, but for its buffers.

    Args:
        model: see `Alone`.
        objective: see `Alone`.
        team: the processes.
        device: of this one.
        full: let the weights of a block go after each call, and not only after the backward pass.

    Raises:
        ConfigError: the model has a parameter without an axis to share out.
    """

    def __init__(self, model: nn.Module, objective: Any, team: Team, device: torch.device, *, full: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if bare := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
            raise ConfigError(f"{bare[0]} has no axis to share out; use --shard none")
        # FSDP2 says so of every module whose output is a view; ours write into none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.team, self._plain = team, model
        super().__init__(copy.deepcopy(model), objective)
        mesh = init_device_mesh(device.type, (team.size,))
        for module in reversed(list(self.model.modules())):
            gathers = getattr(type(module), "gathers", None)
            if gathers is None:
                continue
            fully_shard(module, mesh=mesh, reshard_after_forward=full)
            for method in gathers:
                register_fsdp_forward_method(module, method)
        self._taught: Any = fully_shard(_Taught(self.model, objective), mesh=mesh, reshard_after_forward=full)
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def loss(self, batch: Any, generator: torch.Generator) -> Loss:
        """See `Alone`."""
        return Loss(*self._taught(batch, generator))

    def held(self) -> dict[int, Tensor]:
        """See `Alone`."""
        pairs = zip(self._plain.parameters(), self.model.parameters(), strict=True)
        buffers = zip(self._plain.buffers(), self.model.buffers(), strict=True)
        return {id(plain): mine.detach() for plain, mine in (*pairs, *buffers)}

    @contextmanager
    def averaged(self, average: ExponentialAverage) -> Iterator[None]:
        """See `Alone`."""
        with self._filled(average.tensors()):
            yield

    def present(self) -> AbstractContextManager[None]:
        """See `Alone`."""
        return self._filled({})

    def release(self) -> None:
        """See `Alone`; every process has everything again."""
        self._fill({}, everyone=True)

    @contextmanager
    def _filled(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        self._fill(values, everyone=False)
        try:
            yield
        finally:
            for parameter in self._plain.parameters():
                parameter.data = parameter.data.new_empty(0)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor], *, everyone: bool) -> None:
        mine = dict(self.model.named_parameters())
        for name, parameter in self._plain.named_parameters():
            value = gathered(values.get(name, mine[name]))
            if everyone or self.team.first:
                parameter.data = value
        for plain, buffer in zip(self._plain.buffers(), self.model.buffers(), strict=True):
            plain.copy_(buffer)


def described(size: int, batches: int, sharding: Sharding) -> list[str]:
    """What to know of a run of several processes.

    Args:
        size: processes.
        batches: of a step.
        sharding: what they share out.
    """
    if size == 1:
        return [] if sharding == "none" else ["one process holds everything; --shard changes nothing"]
    told = f"{size} processes share the batches of a step, {batches} in all; of the nets they share {sharding}"
    idle = -batches % size
    if idle:
        told += f"; warning: {idle} of them wait in a turn, since a step's batches do not divide among them"
    return [told]


def hold(model: nn.Module, objective: Any, team: Team, device: torch.device, sharding: Sharding) -> Alone:
    """Hold the weights of a stage as its run is asked to."""
    if team.size == 1:
        return Alone(model, objective)
    if sharding == "none":
        return Whole(model, objective)
    return Shares(model, objective, team, device, full=sharding == "full")
