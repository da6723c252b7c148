"""What a model folder holds, whatever the model makes: a net, and the codec between its data and the net's state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from manta.nets.integers import IntegerSpec


@runtime_checkable
class Codec(Protocol):
    """What turns data into what a net sees, and back, such as a tokenizer."""

    key: ClassVar[str]
    """Of its fingerprint in `config.json`, and its name in messages."""
    file: ClassVar[str]
    """That holds it in a model folder."""

    def fingerprint(self) -> str:
        """A digest by which it is known again."""
        ...

    def save(self, path: Path) -> None:
        """Write it to a file."""
        ...

    @classmethod
    def load(cls, path: Path) -> "Codec":
        """Read it from a file.

        Raises:
            ModelError: it is missing or damaged.
        """
        ...


class KeptModel(ABC):
    """A model that has a folder: its net with its codec, and what is stored beside them."""

    family: str
    """Name of the family."""
    prompted: bool | None = None
    """Whether it was trained on prompts; None where that is not known."""
    quantised: Mapping[str, IntegerSpec] | None = None
    """Of each map of integers in its net, how it is quantised; None of a model of floating-point numbers."""
    recipe: Mapping[str, Any] | None = None
    """The resolved recipe that trained it, as far as its folder tells it."""
    card: str = ""
    """Text of its folder's model card."""
    model: Any
    """The net; it has its shape as `config`."""
    config_class: ClassVar[type]
    """Shape of the net."""
    net_class: ClassVar[Callable[[Any], nn.Module]]
    """The net of a shape."""
    codec_class: ClassVar[Any]
    """What its folder's codec is read as, a `Codec`."""

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """Between its data and its net."""

    def with_net(self, net: Any) -> Any:
        """The same model with another net.

        Args:
            net: of the same shape.
        """
        found = copy(self)
        found.model = net
        return found

    @property
    def device(self) -> torch.device:
        """Where the net lives."""
        return next(self.model.parameters()).device

    def extras(self) -> dict[str, Any]:
        """What `config.json` holds of the model beside its shape."""
        return {}

    def parts(self) -> dict[str, Tensor]:
        """Tensors stored beside the net's weights, in `parts.safetensors`."""
        return {}

    @staticmethod
    @abstractmethod
    def check_codec(shape: Any, codec: Any) -> None:
        """See that a shape and a codec belong together, before the net is built.

        Raises:
            ConfigError: they do not; the message goes on from "config.json says".
        """

    @classmethod
    @abstractmethod
    def stored(cls, net: Any, codec: Any, extras: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "KeptModel":
        """The model that a folder holds.

        Args:
            net: with its weights.
            codec: of the folder.
            extras: contents of its `config.json`, with what `extras` returned.
            parts: contents of its `parts.safetensors`, what `parts` returned; empty if there is none.

        Raises:
            ConfigError: they do not describe such a model.
        """
