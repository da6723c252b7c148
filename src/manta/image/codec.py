"""Between pixels and what a net sees, and between names of classes and their numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from manta.errors import ModelError, UsageError
from manta.runtime import atomic_write, read_json

MAX_SIDE = 1024
MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """The images of a model: their size, channels and classes."""

    key: ClassVar[str] = "images"
    file: ClassVar[str] = "images.json"

    height: int
    """Pixels, 1 to 1024."""
    width: int
    """Pixels, 1 to 1024."""
    channels: int
    """3 for colours, 1 for grey."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers; none where the data have none."""

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides) or self.channels not in (1, 3):
            raise ModelError(
                f"images have 1 to {MAX_SIDE} pixels a side and 1 or 3 channels, received {sides[0]} × {sides[1]} × "
                f"{self.channels}"
            )
        if len(self.classes) > MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise ModelError(f"a model has at most {MAX_CLASSES:,} classes, each of a name of its own")
        if not all(isinstance(name, str) for name in self.classes):
            raise ModelError("a class is named by a string")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    def number(self, label: str | int) -> int:
        """The number of a class that is given by name, or by its number.

        Raises:
            UsageError: there is no such class.
        """
        if not self.classes:
            raise UsageError("this model knows no classes; leave the class out")
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        try:
            number = int(label)
        except ValueError:
            number = -1
        if not 0 <= number < len(self.classes):
            shown = ", ".join(self.classes[:20]) + (" …" if len(self.classes) > 20 else "")
            raise UsageError(f"no class {str(label)[:60]!r}; the model knows {shown}, or 0 to {len(self.classes) - 1}")
        return number

    def fingerprint(self) -> str:
        """32 hex digits that two codecs share exactly when they are equal."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes `images.json`, atomically."""
        atomic_write(Path(path), self._json())

    @classmethod
    def load(cls, path: str | Path) -> "ImageCodec":
        """Reads a file that `save` wrote.

        Raises:
            ModelError: the file is missing or damaged.
        """
        found: Any = read_json(Path(path))
        try:
            if not isinstance(found["classes"], list):
                raise TypeError("classes are a list")
            return cls(**{**found, "classes": tuple(found["classes"])})
        except (TypeError, KeyError, ModelError) as error:
            raise ModelError(f"{path} does not describe images ({error}); copy it again") from error

    def _json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode("utf-8")


def from_pixels(pixels: Shaped[Tensor, "*b h w c"]) -> Float[Tensor, "*b n c"]:
    """A state in [−1, 1] of images: their pixels one after the other, row by row.

    Args:
        pixels: uint8.
    """
    return pixels.flatten(-3, -2).float() / 127.5 - 1


def to_pixels(state: Float[Tensor, "*b n c"], shape: Sequence[int]) -> UInt8[np.ndarray, "*b h w c"]:
    """Images of states, what lies beyond black and white cut off.

    Args:
        state: in [−1, 1].
        shape: height, width and channels.
    """
    values = ((state.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return values.unflatten(-2, tuple(shape[:2])).cpu().numpy()
