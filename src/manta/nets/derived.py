"""Modules that work out once what follows from what they store."""

from typing import Any

from torch import Tensor, nn


class Derived(nn.Module):
    """A module that works out once what follows from what it stores, and leaves its numbers their precision.

    Attributes:
        derived: names of what follows, None until it is worked out: it is not copied, and forgotten where what is
            stored is loaded or moved.
    """

    derived: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_loaded)

    def forget(self) -> None:
        """Work out anew what follows from what is stored."""
        for name in self.derived:
            setattr(self, name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Without what follows from the rest."""
        return {**self.__dict__, **dict.fromkeys(self.derived)}

    def _apply(self, fn: Any, recurse: bool = True) -> "Derived":
        self.forget()
        return super()._apply(_in_float32(fn), recurse)  # pyright: ignore[reportReturnType]


def _loaded(module: Any, *_: Any) -> None:
    module.forget()


def _in_float32(fn: Any) -> Any:
    """What moves tensors, without giving those of floating-point numbers another precision."""

    def moved(value: Tensor) -> Tensor:
        found = fn(value)
        return value.to(found.device) if value.is_floating_point() and found.dtype != value.dtype else found

    return moved
