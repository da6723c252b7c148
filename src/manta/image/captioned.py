"""Captions and images side by side: words as numbers, both packed, and batches of them."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from manta.errors import CheckpointError, DataError, ModelError, UsageError
from manta.image.example import ImageExample
from manta.image.files import Fit, resized
from manta.runtime import atomic_folder, atomic_write, digest_of_file, read_json

NOTHING: Final = 0
"""Number of the word that stands where a caption has ended."""
UNKNOWN: Final = 1
"""Number of a word that is none of the model's."""
BLANK: Final = "___"
"""What stands in a caption for a word that is to be found."""
MAX_WORDS: Final = 128
"""Words of the longest caption."""
MAX_VOCABULARY: Final = 8_192
PIXELS, WORDS, MANIFEST = "pixels.bin", "words.bin", "manifest.json"
CAPTIONED_FILES = (PIXELS, WORDS, MANIFEST)
"""Names of all files of packed captions and images."""


def words_of(caption: str) -> list[str]:
    """Words and marks of a caption, in small letters."""
    return re.findall(r"___|[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]", caption.lower())


@dataclass(frozen=True, kw_only=True)
class CaptionedCodec:
    """Images of one size, and the words of their captions."""

    key: ClassVar[str] = "captions"
    file: ClassVar[str] = "captions.json"

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    channels: int
    """3 for colours, 1 for grey."""
    places: int
    """Words of the longest caption, and one that says that it has ended."""
    words: tuple[str, ...]
    """In the order of their numbers, from 2 on."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or max(self.height, self.width) > 1024 or self.channels not in (1, 3):
            raise ModelError("images have sides of 1 to 1024 pixels, and 1 or 3 channels")
        if not 2 <= self.places <= MAX_WORDS + 1 or not 1 <= len(self.words) <= MAX_VOCABULARY:
            raise ModelError(f"captions have up to {MAX_WORDS} words of a vocabulary of up to {MAX_VOCABULARY:,}")
        if len(set(self.words)) != len(self.words) or not all(isinstance(word, str) for word in self.words):
            raise ModelError("every word of a vocabulary is a string of its own")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    @property
    def vocab_size(self) -> int:
        """Words, nothing and the unknown word among them."""
        return len(self.words) + 2

    def numbers(self, caption: str, *, blanks: bool = False) -> list[int]:
        """Numbers of a caption's words, filled up to its places; −1 for a blank.

        Args:
            caption: in words.
            blanks: let it have blanks.

        Raises:
            UsageError: it is empty, too long, or has a word that the model does not know.
        """
        found = words_of(caption)
        if not found:
            raise UsageError("the caption has no words; leave it out for any image")
        if len(found) >= self.places:
            raise UsageError(f"the caption has {len(found)} words and marks; the model knows up to {self.places - 1}")
        known = {word: number for number, word in enumerate(self.words, 2)}
        if blanks:
            known[BLANK] = -1
        if missing := [word for word in found if word not in known]:
            shown = ", ".join(self.words[:30]) + (" …" if len(self.words) > 30 else "")
            raise UsageError(f"the model knows no word {missing[0]!r}; it knows {shown}")
        rest = -1 if blanks and BLANK in found and found[-1] == BLANK else NOTHING
        return [*(known[word] for word in found), *[rest] * (self.places - len(found))]

    def caption(self, numbers: Sequence[int]) -> str:
        """The caption of some numbers, up to where it ends."""
        found = []
        for number in numbers:
            if number == NOTHING:
                break
            found.append("<unk>" if number == UNKNOWN else self.words[number - 2])
        return re.sub(r" ([.,;:!?)])", r"\1", " ".join(found))

    def fingerprint(self) -> str:
        """32 hex digits that two codecs share exactly when they are equal."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `captions.json`, atomically."""
        atomic_write(Path(path), self._json())

    @classmethod
    def load(cls, path: str | Path) -> "CaptionedCodec":
        """Read a file that `save` wrote.

        Raises:
            ModelError: the file is missing or damaged.
        """
        found: Any = read_json(Path(path))
        try:
            if not isinstance(found["words"], list):
                raise TypeError("words are a list")
            sizes = {name: found[name] for name in ("height", "width", "channels", "places")}
            if any(type(size) is not int for size in sizes.values()):
                raise TypeError("sizes are whole numbers")
            return cls(**sizes, words=tuple(found["words"]))
        except (TypeError, KeyError, ModelError) as error:
            raise ModelError(f"{path} does not describe captions ({error}); copy it again") from error

    def _json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode("utf-8")


@dataclass(frozen=True, kw_only=True)
class CaptionedReport:
    """What became of the images and captions that were packed."""

    rows: int
    """Pairs."""
    without: int
    """Left out: no caption."""
    long: int
    """Left out: a caption of too many words."""
    skipped: int
    """Files that could not be read."""
    words: int
    """Distinct words."""

    def __str__(self) -> str:
        """One line for a person."""
        lost = {
            "without a caption": self.without,
            "with a caption that is too long": self.long,
            "that cannot be read": self.skipped,
        }
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        return f"{self.rows:,} images with captions of {self.words:,} words; left out: {dropped or 'none'}"


def build_captioned(
    examples: Iterable[ImageExample],
    folder: Path,
    *,
    size: tuple[int, int],
    channels: int,
    source: str,
    fit: Fit,
    skipped: list[str],
) -> tuple[CaptionedReport, CaptionedCodec]:
    """Pack images and captions into memory-mapped files. The folder appears whole or not at all.

    Args:
        examples: read once, and not at all if the packed ones are reused.
        folder: where they go.
        size: height and width of all images.
        channels: of all images.
        source: what they are; packed ones of the same source and settings are kept.
        fit: how images of another size are fitted.
        skipped: grows by what cannot be read while the examples are read.

    Raises:
        DataError: no image has a caption.
    """
    settings = {"source": source, "size": list(size), "channels": channels, "fit": fit}
    try:
        corpus = CaptionedCorpus(folder)
        if all(corpus.manifest.get(name) == value for name, value in settings.items()) and corpus.whole(folder):
            return corpus.report, corpus.codec
    except DataError:
        pass
    captions: list[list[str]] = []
    without = long = 0
    try:
        with atomic_folder(folder) as new:
            with (new / PIXELS).open("wb") as stream:
                for example in examples:
                    words = [word for word in words_of(example.caption or "") if word != BLANK]
                    without, long = without + (not words), long + (len(words) > MAX_WORDS)
                    if 0 < len(words) <= MAX_WORDS:
                        captions.append(words)
                        stream.write(np.ascontiguousarray(resized(example.pixels, size, fit)).tobytes())
            if not captions:
                raise DataError("no image has a caption; give a table captions.csv with the columns file and caption")
            counts = Counter(word for words in captions for word in words)
            known = sorted(word for word, _ in counts.most_common(MAX_VOCABULARY))
            codec = CaptionedCodec(
                height=size[0],
                width=size[1],
                channels=channels,
                places=max(map(len, captions)) + 1,
                words=tuple(known),
            )
            order = {word: number for number, word in enumerate(known, 2)}
            rows = np.full((len(captions), codec.places), NOTHING, "<i8")
            for row, words in zip(rows, captions, strict=True):
                row[: len(words)] = [order.get(word, UNKNOWN) for word in words]
            rows.tofile(new / WORDS)
            lost = {"without": without, "long": long, "skipped": len(skipped)}
            report = CaptionedReport(rows=len(captions), words=len(counts), **lost)
            manifest = {**settings, "report": asdict(report), "codec": asdict(codec)}
            manifest["digests"] = {name: digest_of_file(new / name) for name in (PIXELS, WORDS)}
            (new / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror or error}); check the disk") from error
    return report, codec


class CaptionedCorpus:
    """Packed captions and images.

    Args:
        folder: from `build_captioned`.

    Raises:
        DataError: it does not hold them whole.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
            self.report = CaptionedReport(**self.manifest["report"])
            told = self.manifest["codec"]
            self.codec = CaptionedCodec(**{**told, "words": tuple(told["words"])})
            rows, values = self.report.rows, int(np.prod(self.codec.shape))
            sizes = ((folder / PIXELS).stat().st_size, (folder / WORDS).stat().st_size)
            if sizes != (rows * values, 8 * rows * self.codec.places) or not rows:
                raise ValueError("files of another size than it says")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError, RecursionError) as error:
            raise DataError(f"{folder} does not hold whole captions and images ({error}); pack them again") from error
        self.digest = sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()
        self.pixels = np.memmap(folder / PIXELS, np.uint8, "r").reshape(rows, *self.codec.shape)
        self.words = np.fromfile(folder / WORDS, "<i8").reshape(rows, self.codec.places)

    def __len__(self) -> int:
        """Pairs."""
        return len(self.words)

    def whole(self, folder: Path) -> bool:
        """Whether every byte is as written."""
        return all(self.manifest["digests"].get(name) == digest_of_file(folder / name) for name in (PIXELS, WORDS))


@dataclass(frozen=True, kw_only=True)
class CaptionedBatch:
    """Some captions and images."""

    pixels: UInt8[Tensor, "b h w c"]
    """Values from 0 to 255."""
    words: Int64[Tensor, "b n"]
    """Numbers of the words."""

    def __len__(self) -> int:
        """Pairs."""
        return len(self.words)

    @property
    def num_elements(self) -> int:
        """Pairs."""
        return len(self)

    def to(self, device: torch.device | str) -> "CaptionedBatch":
        """The same batch on a device."""
        return CaptionedBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class CaptionedLoader:
    """Batches without end: every pair once an epoch, in an order of its own each time.

    Args:
        corpus: the pairs.
        batch_size: pairs of a batch; of a smaller corpus all.
        seed: of the orders.
    """

    def __init__(self, corpus: CaptionedCorpus, *, batch_size: int, seed: int) -> None:
        self.corpus, self.batch_size, self.seed = corpus, min(batch_size, len(corpus)), seed
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __next__(self) -> CaptionedBatch:
        """The next batch, on the CPU."""
        epoch, place = divmod(self.position, len(self.corpus) // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.corpus))
        rows = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        self.position += 1
        return CaptionedBatch(
            pixels=torch.from_numpy(np.ascontiguousarray(self.corpus.pixels[rows])),
            words=torch.from_numpy(self.corpus.words[rows]),
        )

    def skip(self, count: int) -> None:
        """Leaves batches out without reading them: the next is the one that `count` calls later would come.

        Args:
            count: batches, at least 0.
        """
        assert count >= 0
        self.position += count

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"position": self.position, "rows": len(self.corpus), "batch": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: the state is of other pairs or other batches.
        """
        if (state.get("rows"), state.get("batch")) != (len(self.corpus), self.batch_size):
            raise CheckpointError("the checkpoint is of other captions, or of batches of another size")
        self.position = int(state["position"])
