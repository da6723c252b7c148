"""Images by name: a folder, an archive of arrays or the built-in scenes, split into train, dev and test."""

import csv
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy

from manta.errors import DataError, UsageError
from manta.image import shapes
from manta.image.example import ImageExample
from manta.image.files import ENDINGS, read_image

IMAGES: Final = "images"
"""Scheme of a folder or archive of images."""
BUILTIN: Final = "builtin:shapes"
DRAWN = {"train": 20_000, "dev": 1_000, "test": 2_000}
"""Scenes of a split of the built-in corpus, unless it is said how many."""
MAX_ARRAYS = 8 << 30
"""Bytes that the arrays of an archive may unpack to."""
CAPTIONS = "captions.csv"
OFFICIAL = {"train": ("train", "training"), "dev": ("dev", "val", "valid", "validation"), "test": ("test", "testing")}
"""Names of folders that are splits, if a data set has nothing beside such."""

Tell = Callable[[str], None]


def is_images(name: str) -> bool:
    """Whether a name of data says images: `images:PATH`, an archive of arrays, or `builtin:shapes`."""
    return name == BUILTIN or name.startswith(f"{IMAGES}:") or name.lower().endswith(".npz")


def read_images(
    name: str,
    split: str = "train",
    num: int | None = None,
    *,
    channels: int | None = None,
    seed: int = 0,
    skipped: Tell | None = None,
) -> Iterator[ImageExample]:
    """Streams the images of a named data set, in an order drawn once, so that the first few are of all classes.

    | name | images | class | split |
    |---|---|---|---|
    | `images:FOLDER` with folders in it | their image files | name of the folder | by content, 90/5/5% |
    | `images:FOLDER` with `captions.csv` (`file`, `caption`, `label`) | those named | column `label` | by content |
    | `images:FOLDER` | its image files | none | by content |
    | … in folders `train`, `dev`, `test` | as above in each | as above | as the folders say |
    | `FILE.npz`, `images:FILE.npz` | arrays `x_train`, … | `y_train`, … | official; what is missing, of train |
    | … | array `images` | `labels` | by content |
    | `builtin:shapes` | scenes that are drawn (`image.shapes`) | kinds of the shapes | drawn apart |

    Args:
        name: as above.
        split: "train", "dev" or "test".
        num: at most so many of the split; None for all, of the built-in scenes as many as `DRAWN` says.
        channels: 3 for colours, 1 for grey; None: as each has them.
        seed: of the draws of the built-in scenes.
        skipped: takes the name of each file that cannot be read, with the reason; without it the first is an error.

    Raises:
        UsageError: an unknown split.
        DataError: the data are missing, hold no images, or are damaged.
    """
    if split not in OFFICIAL:
        raise UsageError(f"unknown split {split!r}; choose one of {', '.join(OFFICIAL)}")
    if name == BUILTIN:
        return shapes.examples(split, DRAWN[split] if num is None else num, seed)
    path = place_of(name)
    found = _arrays(path, split) if path.is_file() else _folder(path, split, channels, skipped)
    return islice((as_asked(example, channels) for example in found), num)


def place_of(name: str) -> Path:
    """The folder or archive that a name of images says."""
    path = Path(os.path.expanduser(name.removeprefix(f"{IMAGES}:")))
    if not name.removeprefix(f"{IMAGES}:"):
        raise UsageError(f"{name!r} names nothing after the colon; write {IMAGES}:FOLDER")
    if not path.exists():
        raise DataError(f"there are no images at {path}")
    return path


def as_asked(example: ImageExample, channels: int | None) -> ImageExample:
    """An example with so many channels: grey as three equal ones, colours by their brightness."""
    have = example.pixels.shape[2]
    if channels in (None, have):
        return example
    if channels == 3:
        pixels = example.pixels.repeat(3, 2)
    else:
        pixels = np.rint(example.pixels @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)
    return ImageExample(pixels=pixels, label=example.label, caption=example.caption)


def fingerprint(name: str, split: str, num: int | None) -> str:
    """What some images are, by content: a line that changes when they do.

    Raises:
        DataError: they are missing.
    """
    hasher = blake2b(digest_size=16)
    if name == BUILTIN:
        for example in shapes.examples(split, 16):
            hasher.update(example.pixels.tobytes())
    else:
        place = place_of(name)
        for file in _all_files(place):
            told = f"{file.relative_to(place) if file != place else file.name}|{file.stat().st_size}|"
            hasher.update(told.encode("utf-8", "surrogateescape"))
            with file.open("rb") as stream:
                while part := stream.read(1 << 20):
                    hasher.update(part)
    return f"{name.rpartition('/')[2]}|{split}|{num}|{hasher.hexdigest()}"


def _all_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found: list[Path] = []
    entered: set[str] = set()
    for folder, inner, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in entered:  # a link to a folder above
            inner.clear()
            continue
        entered.add(os.path.realpath(folder))
        wanted = (Path(folder) / name for name in names if name.lower().endswith((*ENDINGS, ".csv")))
        found += [file for file in wanted if file.is_file()]
    return sorted(found)


def _folder(path: Path, split: str, channels: int | None, skipped: Tell | None) -> Iterator[ImageExample]:
    """The images of a folder that fall in a split."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder of images, and no archive of arrays")
    inner = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = {entry.name.lower(): entry for entry in inner}
    known = {alias for aliases in OFFICIAL.values() for alias in aliases}
    official = bool(names) and set(names) <= known and any(alias in names for alias in OFFICIAL["train"])
    if not official:
        return _by_content(_listed(path), {split}, channels, skipped)
    there = {each: names[alias] for each, aliases in OFFICIAL.items() for alias in aliases if alias in names}
    return _by_content(_listed(there.get(split, there["train"])), _kept(split, set(there)), channels, skipped)


def _kept(split: str, official: set[str]) -> set[str] | None:
    """Which parts of a folder or an array, by content, a split has of it; None: all.

    Splits that are not there are parts of the training images, which are then so many fewer.
    """
    if split != "train":
        return None if split in official else {split}
    return {"train", "dev", "test"} - ({"dev", "test"} - official)


def _listed(path: Path) -> list[tuple[Path, str | None, str | None]]:
    """Files of a folder with class and caption.

    Raises:
        DataError: there are no images, or the table of captions is damaged.
    """
    if (path / CAPTIONS).is_file():
        return _captioned(path)
    rows: list[tuple[Path, str | None, str | None]] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            _check_name(entry.name, path)
            inside = sorted(file for file in entry.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
            rows += [(file, entry.name, None) for file in inside]
        elif entry.suffix.lower() in ENDINGS:
            rows.append((entry, None, None))
    if not rows:
        raise DataError(f"{path} holds no images ({', '.join(ENDINGS)})")
    if len({label is None for _, label, _ in rows}) == 2:
        raise DataError(
            f"{path} holds images beside folders of images; put all of them into folders, which name their classes, or "
            "none"
        )
    return rows


def _check_name(name: str, path: Path) -> None:
    """Refuse a name of a class that is no text.

    Raises:
        DataError: as said.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{path} has a folder whose name is not UTF-8 ({name!r}); rename it") from None


def _captioned(path: Path) -> list[tuple[Path, str | None, str | None]]:
    table = path / CAPTIONS
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is damaged ({error})") from error
    found: list[tuple[Path, str | None, str | None]] = []
    for number, row in enumerate(rows, 2):
        name = row.get("file") or row.get("file_name")
        if not name or not (row.get("caption") or row.get("label")):
            raise DataError(f"{table}, line {number}: give `file`, and `caption` or `label`")
        file = path / name
        if "\0" in name or path.resolve() not in file.resolve().parents:
            raise DataError(f"{table}, line {number}: {name} lies outside the folder")
        found.append((file, row.get("label") or None, row.get("caption") or None))
    if not found:
        raise DataError(f"{table} names no images")
    return found


def _by_content(
    rows: Sequence[tuple[Path, str | None, str | None]],
    kept: set[str] | None,
    channels: int | None,
    skipped: Tell | None,
) -> Iterator[ImageExample]:
    for index in _mixed(len(rows)):
        file, label, caption = rows[index]
        try:
            pixels = read_image(file, channels=channels or 3)
        except DataError as error:
            if skipped is None:
                raise
            skipped(str(error))
            continue
        if _falls_in(pixels, kept):
            yield ImageExample(pixels=pixels, label=label, caption=caption)


def _mixed(number: int) -> Iterator[int]:
    """Numbers in an order drawn once, so that the first few are of all classes."""
    return iter(np.random.default_rng(0).permutation(number).tolist())


def _falls_in(pixels: np.ndarray, kept: set[str] | None) -> bool:
    """Whether an image is of some splits by its content: equal images never lie in two. None: of any."""
    if kept is None:
        return True
    share = int.from_bytes(blake2b(pixels.tobytes(), digest_size=8).digest(), "little") / 2**64
    return ("train" if share < 0.90 else "dev" if share < 0.95 else "test") in kept


def _arrays(path: Path, split: str) -> Iterator[ImageExample]:
    """The images of an archive of arrays that fall in a split."""
    arrays = _loaded(path)
    images = {name.removeprefix("x_"): array for name, array in arrays.items() if name.startswith("x_")}
    labels = {name.removeprefix("y_"): array for name, array in arrays.items() if name.startswith("y_")}
    if "images" in arrays:
        return _of_array(path, arrays["images"], arrays.get("labels"), {split})
    if "train" not in images:
        raise DataError(f"{path} has the arrays {', '.join(list(arrays)[:8])}; give images, or x_train and x_test")
    names = {"train": "train", "dev": "dev" if "dev" in images else "val", "test": "test"}
    official = {each for each, name in names.items() if name in images}
    name = names[split] if split in official else "train"
    return _of_array(path, images[name], labels.get(name), _kept(split, official))


def _loaded(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive.

    Raises:
        DataError: it is no archive of arrays, is damaged, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > MAX_ARRAYS:
                raise DataError(f"{path} unpacks to {size >> 20} MiB; archives of up to {MAX_ARRAYS >> 20} are read")
            found: dict[str, np.ndarray] = {}
            for entry in archive.infolist():
                content = archive.read(entry)
                if len(content) > MAX_ARRAYS:
                    raise DataError(f"{path} unpacks to more than it says")
                array = npy.read_array(io.BytesIO(content), allow_pickle=False)
                found[entry.filename.removesuffix(".npy")] = np.asarray(array)
    except (OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is no archive of arrays that can be read ({reason})") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())[:120]})") from error
    return found


def _of_array(path: Path, images: Any, labels: Any, kept: set[str] | None) -> Iterator[ImageExample]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path} holds images of {images.dtype} and shape {images.shape}; give uint8, N × height × width, with 1 "
            "or 3 channels behind or none"
        )
    if not images.size:
        raise DataError(f"{path} holds no images")
    if labels is not None and labels.shape != images.shape[:1]:
        raise DataError(f"{path} has {len(images)} images and labels of shape {labels.shape}; give one label an image")
    for index in _mixed(len(images)):
        pixels = images[index] if images.ndim == 4 else images[index][..., None]
        if _falls_in(pixels, kept):
            yield ImageExample(pixels=pixels, label=None if labels is None else str(labels[index]))
