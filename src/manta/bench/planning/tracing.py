"""A training step without its numbers: nets whose tensors have shapes and no memory, and what a step would hold.

Parameters, and all that is computed from them, are fake tensors; batches, masks and noise are real, so that a step goes
the way it would go. Only what a net itself decides is unknown, and taken at its most.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._unsafe_index_put.default)


@contextmanager
def weightless() -> Iterator[None]:
    """Within it, parameters of nets take no memory: they are on the meta device, and all else is as ever."""

    def replace(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(cast(Any, replace))
    try:
        yield
    finally:
        handle.remove()


def imagine(modules: Iterable[nn.Module]) -> None:
    """Make fake tensors, which act as those of a CPU, of all that is on the meta device; what is shared stays so."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), {}

    def fake(tensor: Tensor) -> Tensor:
        if tensor.is_meta and id(tensor) not in made:
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            kept = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
            made[id(tensor)] = tensor, kept
        return made[id(tensor)][1] if tensor.is_meta else tensor

    for module in {id(part): part for net in modules for part in net.modules()}.values():
        for kept in cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers)):
            kept.update({name: fake(each) for name, each in kept.items() if each is not None})


class StepMemory(TorchDispatchMode):
    """Follows the bytes of all tensors that are made within it, of real ones and of fake ones.

    Tensors that were there before count as nothing. A number that is read from a fake tensor is 1, and a mask that a
    fake tensor makes is true everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes of the tensors that there are now."""
        self.peak = 0
        """Most bytes at once, since the beginning or since `restart`."""
        self._followed: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def restart(self) -> None:
        """Count the peak anew from here."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute, and follow what was made."""
        kwargs = kwargs or {}
        before = tree_leaves((args, kwargs))
        answer = _undecided(func, args) if any(isinstance(each, FakeTensor) for each in before) else None
        if func in INDEXED and any(isinstance(each, FakeTensor) for each in before):
            args = (args[0], _places(args[1]), *args[2:])
        out = func(*args, **kwargs) if answer is None else answer()
        given = {id(each.untyped_storage()) for each in before if isinstance(each, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._follow(made.untyped_storage(), given)
        return out

    def _follow(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """Count a storage until it is freed, unless it is a view of one that was there."""
        key = id(storage)
        if key in given or (key in self._followed and self._followed[key]() is storage):
            return
        size = storage.nbytes()

        def freed(gone: object) -> None:
            self.live -= size

        self._followed[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _undecided(func: Any, args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """What is answered where only numbers could tell; None: they are not needed."""
    if func is ATEN._local_scalar_dense.default:
        return lambda: 1.0 if args[0].dtype.is_floating_point else 1
    if func is ATEN.equal.default:
        return lambda: True
    if func is ATEN.nonzero.default:
        return lambda: torch.ones(args[0].shape, dtype=torch.bool).nonzero()
    if func is ATEN.masked_select.default:
        return lambda: args[0].expand(torch.broadcast_shapes(args[0].shape, args[1].shape)).flatten()
    if func in (ATEN._ctc_loss.Tensor, ATEN._ctc_loss.default):
        log_probs, targets = args[:2]
        rows, steps = log_probs.shape[1], log_probs.shape[0]
        return lambda: (log_probs.new_empty(rows), log_probs.new_empty(rows, steps, 2 * targets.shape[-1] + 1))
    if func in (ATEN._ctc_loss_backward.Tensor, ATEN._ctc_loss_backward.default):
        return lambda: torch.empty_like(args[1])
    return None


def _places(index: list[Tensor | None]) -> list[Tensor | None]:
    """Masks of an index as the places that they choose."""
    found: list[Tensor | None] = []
    for each in index:
        if each is None or each.dtype not in (torch.bool, torch.uint8):
            found.append(each)
        else:
            mask = torch.ones(each.shape, dtype=torch.bool) if isinstance(each, FakeTensor) else each
            found += mask.nonzero(as_tuple=True)
    return found
