"""Images on disk: one by one, or side by side."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from manta.runtime import atomic_write

GAP = 2
"""Pixels between images of a grid, times their magnification."""
SEEN = 96
"""Pixels of a side from which an image is large enough to be looked at as it is; smaller ones are magnified."""


def grid_of(images: UInt8[np.ndarray, "b h w c"], columns: int | None = None) -> UInt8[np.ndarray, "y x c"]:
    """Images side by side on a grey ground, small ones magnified by a whole number.

    Args:
        images: of one size.
        columns: of the grid; None: as many as make it about square.
    """
    number, height, width, channels = images.shape
    times = max(1, round(SEEN / max(height, width)))
    gap = GAP * times
    across = min(number, columns or math.ceil(math.sqrt(number)))
    rows = -(-number // across)
    large = images.repeat(times, 1).repeat(times, 2)
    high, wide = large.shape[1] + gap, large.shape[2] + gap
    grid = np.full((rows * high + gap, across * wide + gap, channels), 128, np.uint8)
    for index, image in enumerate(large):
        top, left = gap + index // across * high, gap + index % across * wide
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def save_png(path: Path, pixels: UInt8[np.ndarray, "h w c"], told: Mapping[str, str]) -> None:
    """Write a PNG, atomically, with what is told of it in its text chunks.

    Args:
        path: the file.
        pixels: colours, or grey.
        told: keys and values, such as seed and steps.
    """
    info = PngInfo()
    for key, value in told.items():
        info.add_itxt(f"manta:{key}", value)
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(stream, "PNG", pnginfo=info)
    atomic_write(path, stream.getvalue())
