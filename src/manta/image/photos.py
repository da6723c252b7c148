"""Photographs of any size as training data for restoration: packed, cropped, and spoiled as they are read."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from manta.errors import CheckpointError, DataError
from manta.image.degradations import TASKS, spoiled
from manta.image.example import ImageExample
from manta.runtime import atomic_folder, digest_of_file

RESTORE = "restore"
"""Scheme of a folder of photographs to learn restoration from."""
MARGIN = 16
"""Pixels around a crop that are spoiled with it, so that what comes from outside is there."""
PIXELS, MANIFEST = "pixels.bin", "manifest.json"
PHOTO_FILES = (PIXELS, MANIFEST)
"""Names of all files of packed photographs."""


def is_photos(name: str) -> bool:
    """Whether a name of data says photographs to learn restoration from: `restore:FOLDER`."""
    return name.startswith(f"{RESTORE}:")


def photos_of(name: str) -> str:
    """The images that such a name says."""
    return "images:" + name.removeprefix(f"{RESTORE}:")


@dataclass(frozen=True, kw_only=True)
class PhotoReport:
    """What became of the photographs that were packed."""

    rows: int
    """Photographs."""
    small: int
    """Left out: a side is shorter than a crop."""
    skipped: int
    """Files that could not be read."""
    megapixels: float

    def __str__(self) -> str:
        """One line for a person."""
        lost = {"smaller than a crop": self.small, "that cannot be read": self.skipped}
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        return f"{self.rows:,} photographs, {self.megapixels:.1f} megapixels; left out: {dropped or 'none'}"


def build_photos(
    examples: Iterable[ImageExample], folder: Path, *, side: int, source: str, skipped: list[str]
) -> PhotoReport:
    """Pack photographs into a memory-mapped file. The folder appears whole or not at all.

    Args:
        examples: in colours; read once, and not at all if the packed ones are reused.
        folder: where they go.
        side: of a crop; photographs with a shorter side are left out.
        source: what the photographs are; packed ones of the same source and side are kept.
        skipped: grows by what cannot be read while the examples are read.

    Raises:
        DataError: none is left.
    """
    settings = {"source": source, "side": side}
    if (found := _reusable(folder, settings)) is not None:
        return found
    sizes: list[tuple[int, int]] = []
    small = 0
    try:
        with atomic_folder(folder) as new:
            with (new / PIXELS).open("wb") as stream:
                for example in examples:
                    height, width = example.pixels.shape[:2]
                    if min(height, width) < side:
                        small += 1
                        continue
                    sizes.append((height, width))
                    stream.write(np.ascontiguousarray(example.pixels).tobytes())
            if not sizes:
                raise DataError(f"no photograph of {side} × {side} pixels or more is left to train on")
            total = sum(height * width for height, width in sizes) / 1e6
            report = PhotoReport(rows=len(sizes), small=small, skipped=len(skipped), megapixels=round(total, 2))
            manifest = {**settings, "sizes": sizes, "digest": digest_of_file(new / PIXELS)}
            manifest["report"] = {f.name: getattr(report, f.name) for f in fields(report)}
            (new / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror or error}); check the disk") from error
    return report


class PhotoCorpus:
    """Packed photographs.

    Args:
        folder: from `build_photos`.

    Raises:
        DataError: it does not hold whole packed photographs.
    """

    def __init__(self, folder: Path) -> None:
        manifest = _manifest(folder)
        self.report = PhotoReport(**manifest["report"])
        self.sizes = [(int(height), int(width)) for height, width in manifest["sizes"]]
        self.digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        self.starts = np.cumsum([0, *(3 * height * width for height, width in self.sizes)])
        self._values = np.memmap(folder / PIXELS, np.uint8, "r")

    def __len__(self) -> int:
        """Photographs."""
        return len(self.sizes)

    def crop(self, row: int, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """A part of a photograph; what lies outside is its mirror image."""
        full_height, full_width = self.sizes[row]
        photo = self._values[self.starts[row] : self.starts[row + 1]].reshape(full_height, full_width, 3)
        rows = _mirrored(np.arange(top, top + height), full_height)
        columns = _mirrored(np.arange(left, left + width), full_width)
        return photo[rows[:, None], columns[None]]


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Places beyond an end, counted back from it."""
    places = np.where(places < 0, -1 - places, places)
    return np.where(places >= size, 2 * size - 1 - places, places).clip(0, size - 1)


@dataclass(frozen=True, kw_only=True)
class PhotoBatch:
    """Parts of photographs, whole and spoiled."""

    clean: UInt8[Tensor, "b h w 3"]
    """As they were taken."""
    spoiled: UInt8[Tensor, "b h w 3"]
    """With a fault."""
    task: Int64[Tensor, "b"]
    """Number of the fault among `TASKS`."""

    def __len__(self) -> int:
        """Parts."""
        return len(self.task)

    @property
    def num_elements(self) -> int:
        """Parts."""
        return len(self)

    def to(self, device: torch.device | str) -> "PhotoBatch":
        """The same batch on a device."""
        return PhotoBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class PhotoLoader:
    """Batches of spoiled parts without end; faults take turns from row to row, so that a batch has all of them.

    Every part is drawn by a generator of its own, of the seed and its number: a run that goes on sees what it would
    have seen.

    Args:
        corpus: the photographs.
        side: of a part.
        batch_size: parts of a batch, at least 1.
        seed: of all draws.
        only: number of the one fault that is learned; None: all.
    """

    def __init__(self, corpus: PhotoCorpus, *, side: int, batch_size: int, seed: int, only: int | None = None) -> None:
        self.corpus, self.side, self.batch_size, self.seed, self.only = corpus, side, batch_size, seed, only
        areas = np.array([height * width for height, width in corpus.sizes], float)
        self._shares = areas / areas.sum()
        self.position = 0

    def __next__(self) -> PhotoBatch:
        """The next batch, on the CPU."""
        rows = [self._part(self.position * self.batch_size + row) for row in range(self.batch_size)]
        self.position += 1
        clean, bad, task = zip(*rows, strict=True)
        return PhotoBatch(
            clean=torch.from_numpy(np.stack(clean)),
            spoiled=torch.from_numpy(np.stack(bad)),
            task=torch.tensor(task),
        )

    def _part(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        draws = np.random.default_rng([self.seed, number])
        task = number % len(TASKS) if self.only is None else self.only
        photo = int(draws.choice(len(self.corpus), p=self._shares))
        height, width = self.corpus.sizes[photo]
        top, left = int(draws.integers(height - self.side + 1)), int(draws.integers(width - self.side + 1))
        whole = self.side + 2 * MARGIN
        clean = self.corpus.crop(photo, top - MARGIN, left - MARGIN, whole, whole)
        if draws.random() < 0.5:
            clean = clean[:, ::-1]
        bad = spoiled(clean, TASKS[task], draws)
        inner = slice(MARGIN, MARGIN + self.side)
        return np.ascontiguousarray(clean[inner, inner]), np.ascontiguousarray(bad[inner, inner]), task

    def skip(self, count: int) -> None:
        """Leaves batches out without drawing them: the next is the one that `count` calls later would come.

        Args:
            count: batches, at least 0.
        """
        assert count >= 0
        self.position += count

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"position": self.position, "photos": len(self.corpus), "batch": self.batch_size, "side": self.side}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: the state is of other photographs or other batches.
        """
        own = (len(self.corpus), self.batch_size, self.side)
        if (state.get("photos"), state.get("batch"), state.get("side")) != own:
            raise CheckpointError("the checkpoint is of other photographs, or of batches of another size")
        self.position = int(state["position"])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        expected = sum(3 * int(height) * int(width) for height, width in manifest["sizes"])
        if (folder / PIXELS).stat().st_size != expected or not manifest["sizes"]:
            raise ValueError("a file of another size than it says")
        PhotoReport(**manifest["report"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} does not hold whole packed photographs ({error}); pack them again") from error
    return manifest


def _reusable(folder: Path, settings: dict[str, Any]) -> PhotoReport | None:
    """What became of packed photographs that are there, if they are those wanted and every byte as written."""
    try:
        manifest = _manifest(folder)
        if any(manifest.get(name) != value for name, value in settings.items()):
            return None
        if manifest["digest"] != digest_of_file(folder / PIXELS):
            return None
    except (DataError, OSError, KeyError):
        return None
    return PhotoReport(**manifest["report"])
