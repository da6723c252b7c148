"""Damaged image files and archives: each is read or refused by name, in bounded time and memory.

    python benchmarks/fuzz_images.py --num 3000 --out benchmarks/results/fuzz_images.json

A file is a drawn image of one of six formats and of several modes, with some bytes changed and perhaps its end cut off;
or an archive of arrays treated likewise. Whatever is neither read nor refused by a typed error that names it counts as
a fault, and so does what takes more than 20 seconds. Files that are left whole have to come back as they were drawn.
"""

import argparse
import io
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manta.errors import DataError
from manta.image import read_image, read_images
from manta.runtime import atomic_write

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK")
KEEPS = {"PNG": ("RGB", "L", "1"), "BMP": ("RGB", "L"), "TIFF": ("RGB", "L")}
"""Modes that a format gives back value by value."""


def drawn(generator: np.random.Generator, mode: str) -> Image.Image:
    """A small image of noise."""
    height, width = generator.integers(1, 40, 2)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 1 << 16, (height, width), np.uint16))
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def damaged(generator: np.random.Generator, data: bytes) -> bytes:
    """Some bytes changed, the end perhaps cut off."""
    changed = bytearray(data)
    for at in generator.integers(0, len(changed), 1 + generator.integers(12)):
        changed[at] = generator.integers(256)
    return bytes(changed[: generator.integers(1, len(changed) + 1)] if generator.random() < 0.4 else changed)


def archive(generator: np.random.Generator) -> bytes:
    """An archive of arrays."""
    stream = io.BytesIO()
    images = generator.integers(0, 256, (6, 5, 4), np.uint8)
    np.savez_compressed(stream, images=images, labels=np.arange(6))
    return stream.getvalue()


def main() -> None:
    """Read the command line and damage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    whole = longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.first, args.first + args.num):
            generator = np.random.default_rng(number)
            path, start = Path(folder) / f"file{number}.npz", time.perf_counter()
            try:
                if number % 7 == 6:
                    path.write_bytes(damaged(generator, archive(generator)))
                    list(read_images(str(path), "train"))
                else:
                    whole += one(generator, number, path)
                outcomes["read"] += 1
            except DataError as error:
                outcomes["refused by name" if path.name in str(error) else "refused without its name"] += 1
            except Exception as error:  # what no reader may do
                faults.append({"number": number, "error": f"{type(error).__name__}: {error}"[:200]})
            longest = max(longest, time.perf_counter() - start)
            path.unlink(missing_ok=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"command": f"benchmarks/fuzz_images.py --num {args.num} --first {args.first}", "files": args.num}
    result |= {"outcomes": dict(outcomes), "whole_and_equal": int(whole), "faults": faults}
    result |= {"longest_seconds": round(longest, 2), "most_memory_mib": round(memory)}
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result))


def one(generator: np.random.Generator, number: int, path: Path) -> bool:
    """An image file, every fifth left whole; whether it was whole and came back as it was drawn."""
    kind, mode = FORMATS[number % len(FORMATS)], MODES[int(generator.integers(len(MODES)))]
    image, stream = drawn(generator, mode), io.BytesIO()
    try:
        image.save(stream, kind)
    except (OSError, KeyError, ValueError):  # a mode that the format does not have
        image = image.convert("RGB") if mode != "I;16" else Image.new("RGB", image.size)
        mode, stream = "RGB", io.BytesIO()
        image.save(stream, kind)
    if number % 5:
        path.write_bytes(damaged(generator, stream.getvalue()))
        read_image(path)
        return False
    path.write_bytes(stream.getvalue())
    found = read_image(path)
    if mode not in KEEPS.get(kind, ()):
        return False
    assert np.array_equal(found, np.asarray(image.convert("RGB"))), f"{kind} {mode} came back with other values"
    return True


if __name__ == "__main__":
    main()
