"""Endless batches of images, whose position is part of a checkpoint."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from manta.errors import CheckpointError
from manta.image.corpus import ImageCorpus


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Some images."""

    pixels: UInt8[Tensor, "b h w c"]
    """Values from 0 to 255."""
    label: Int64[Tensor, "b"]
    """Number of each one's class; −1 where it has none."""
    index: Int64[Tensor, "b"]
    """Rows of the corpus."""

    def __len__(self) -> int:
        """Images."""
        return len(self.index)

    @property
    def num_elements(self) -> int:
        """Images."""
        return len(self)

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The same batch on a device."""
        return ImageBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class ImageLoader:
    """Batches of a corpus without end: every image once an epoch, in an order of its own each time.

    The last images of an epoch that do not fill a batch are left to the next.

    Args:
        corpus: the images.
        batch_size: images of a batch, at least 1; of a smaller corpus all.
        seed: of the orders.
        mirror: turn each image's left to its right at a chance of one half.
    """

    def __init__(self, corpus: ImageCorpus, *, batch_size: int, seed: int, mirror: bool = False) -> None:
        self.corpus, self.batch_size, self.seed, self.mirror = corpus, min(batch_size, len(corpus)), seed, mirror
        self.epoch, self.position = 0, 0
        self._order: np.ndarray | None = None

    def __next__(self) -> ImageBatch:
        """The next batch, on the CPU."""
        if self.position + self.batch_size > len(self.corpus):
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        if self._order is None:
            self._order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.corpus))
        rows = self._order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        pixels = self.corpus.pixels(rows)
        if self.mirror:
            turned = np.random.default_rng([self.seed, self.epoch, self.position]).random(len(rows)) < 0.5
            pixels[turned] = pixels[turned, :, ::-1]
        return ImageBatch(
            pixels=torch.from_numpy(np.ascontiguousarray(pixels)),
            label=torch.from_numpy(self.corpus.labels[rows]),
            index=torch.from_numpy(rows),
        )

    def skip(self, count: int) -> None:
        """Leaves batches out without reading their pixels: the next is the one that `count` calls later would come.

        Args:
            count: batches, at least 0.
        """
        assert count >= 0
        if count:
            each = len(self.corpus) // self.batch_size
            epochs, place = divmod(self.position // self.batch_size + count - 1, each)
            if epochs:
                self.epoch, self._order = self.epoch + epochs, None
            self.position = (place + 1) * self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self.epoch, "position": self.position, "rows": len(self.corpus), "batch": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: the state is of other images or other batches.
        """
        if (state.get("rows"), state.get("batch")) != (len(self.corpus), self.batch_size):
            raise CheckpointError("the checkpoint is of other images, or of batches of another size")
        self.epoch, self.position, self._order = int(state["epoch"]), int(state["position"]), None
