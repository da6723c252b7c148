"""The images of a run, of one size, packed and memory-mapped."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from manta.errors import DataError
from manta.image.codec import MAX_CLASSES
from manta.image.example import ImageExample
from manta.image.files import Fit, resized
from manta.runtime import atomic_folder, digest_of_file

VERSION = 1
_PIXELS, _LABELS, _MANIFEST = "pixels.bin", "labels.bin", "manifest.json"
FILES = (_PIXELS, _LABELS, _MANIFEST)
"""Names of all files of packed images."""
NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """What became of the images that were packed."""

    read: int
    """Images received."""
    duplicates: int
    """Left out: equal, as packed, to one of the same class before."""
    skipped: int
    """Files that could not be read."""
    rows: int
    """Images that were packed."""
    height: int
    width: int
    channels: int
    classes: int
    """Distinct classes."""
    resized: int
    """Images that had another size."""

    def __str__(self) -> str:
        """One line for a person."""
        lost = {"duplicates": self.duplicates, "that cannot be read": self.skipped}
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        colours = "colours" if self.channels == 3 else "grey"
        fitted = f"; {self.resized:,} of another size were fitted" if self.resized else ""
        return (
            f"{self.rows:,} images of {self.height} × {self.width} pixels ({colours}) in "
            f"{self.classes:,} classes{fitted}; left out: {dropped or 'none'}"
        )


def build_images(
    examples: Iterable[ImageExample],
    folder: Path,
    *,
    size: tuple[int, int] | None,
    channels: int,
    source: str,
    fit: Fit = "crop",
    skipped: list[str] | None = None,
) -> ImageReport:
    """Pack images into memory-mapped files; duplicates are left out. The folder appears whole or not at all.

    Args:
        examples: read once, and not at all if the packed images are reused.
        folder: where they go.
        size: height and width; None: of the first image.
        channels: of all images.
        source: what the images are; packed ones of the same source and settings are kept.
        fit: how images of another size are fitted.
        skipped: grows by what cannot be read while the examples are read.

    Raises:
        DataError: no image is left, some have a class and some none, or there are too many classes.
    """
    settings = {"version": VERSION, "source": source, "channels": channels, "fit": fit, "size": size and list(size)}
    if (report := _reusable(folder, settings)) is not None:
        return report
    names: dict[str, int] = {}
    seen: set[bytes] = set()
    counts = {"read": 0, "duplicates": 0, "resized": 0}
    labels: list[int] = []
    try:
        with atomic_folder(folder) as new:
            with (new / _PIXELS).open("wb") as stream:
                for example in examples:
                    counts["read"] += 1
                    size = size or (example.pixels.shape[0], example.pixels.shape[1])
                    counts["resized"] += example.pixels.shape[:2] != tuple(size)
                    pixels = resized(example.pixels, size, fit)
                    label = NO_CLASS if example.label is None else names.setdefault(example.label, len(names))
                    if labels and (label == NO_CLASS) != (labels[0] == NO_CLASS):
                        raise DataError("some of the images have a class, and some have none; give all of them one")
                    key = blake2b(pixels.tobytes() + str(label).encode(), digest_size=16).digest()
                    if key in seen:
                        counts["duplicates"] += 1
                        continue
                    seen.add(key)
                    labels.append(label)
                    stream.write(pixels.tobytes())
            if not labels or size is None:
                raise DataError(f"no image is left to train on ({counts['read']} were read)")
            if len(names) > MAX_CLASSES:
                raise DataError(f"there are {len(names):,} classes; a model has at most {MAX_CLASSES:,}")
            order = {name: number for number, name in enumerate(_ordered(names))}
            numbers = np.array([order[name] for name in names] or [NO_CLASS], np.int64)
            np.where(np.array(labels) < 0, NO_CLASS, numbers[np.array(labels)]).astype("<i8").tofile(new / _LABELS)
            shape = {"rows": len(labels), "height": size[0], "width": size[1], "channels": channels}
            report = ImageReport(**counts, **shape, skipped=len(skipped or ()), classes=len(names))
            _write_manifest(new, settings, report, list(order))
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror or error}); check the disk") from error
    return report


class ImageCorpus:
    """Packed images; pixels are read from disk as they are needed.

    Args:
        folder: that `build_images` wrote.

    Raises:
        DataError: it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        manifest = _manifest(folder)
        report = self.report = ImageReport(**manifest["report"])
        self.folder, self.classes = folder, tuple(manifest["classes"])
        self.digest = sha256(json.dumps(manifest["digests"], sort_keys=True).encode()).hexdigest()
        self.shape = (report.height, report.width, report.channels)
        self._pixels = np.memmap(folder / _PIXELS, np.uint8, "r", shape=(report.rows, *self.shape))
        self.labels: Int64[np.ndarray, " rows"] = np.fromfile(folder / _LABELS, "<i8")
        """Number of each image's class; −1 where it has none."""

    def __len__(self) -> int:
        """Images."""
        return len(self.labels)

    def pixels(self, rows: Int64[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Some images, in memory."""
        return np.asarray(self._pixels[rows])


def _ordered(names: Iterable[str]) -> list[str]:
    """Names of classes in order: numbers as numbers."""
    found = list(names)
    whole = all(name.isdecimal() for name in found)
    return sorted(found, key=lambda name: (len(name.lstrip("0")) if whole else 0, name))


def _write_manifest(folder: Path, settings: dict[str, Any], report: ImageReport, classes: list[str]) -> None:
    manifest = {**settings, "report": asdict(report), "classes": classes}
    manifest["bytes"] = {name: (folder / name).stat().st_size for name in (_PIXELS, _LABELS)}
    manifest["digests"] = {name: digest_of_file(folder / name) for name in (_PIXELS, _LABELS)}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["version"] != VERSION:
            raise DataError(f"{folder} holds images of version {manifest['version']}, not {VERSION}; pack them again")
        wrong = [name for name, size in manifest["bytes"].items() if (folder / name).stat().st_size != size]
        report = ImageReport(**manifest["report"])
        sizes = (report.rows * report.height * report.width * report.channels, 8 * report.rows)
        if wrong or list(manifest["bytes"].values()) != list(sizes) or len(manifest["classes"]) != report.classes:
            raise ValueError("files of another size than it says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} does not hold whole packed images ({error}); pack them again") from error
    return manifest


def _reusable(folder: Path, settings: dict[str, Any]) -> ImageReport | None:
    """What became of packed images that are there, if they are those wanted and every byte as written."""
    try:
        manifest = _manifest(folder)
        if any(manifest.get(name) != value for name, value in settings.items()):
            return None
        whole = all(manifest["digests"][name] == digest_of_file(folder / name) for name in (_PIXELS, _LABELS))
    except (DataError, OSError, KeyError, TypeError):
        return None
    return ImageReport(**manifest["report"]) if whole else None
