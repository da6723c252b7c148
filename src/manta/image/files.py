"""Image files: read right, or refused by name."""

import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from manta.errors import DataError

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is read: 300 MB as colours. A larger one is refused before it is unpacked."""
MAX_BYTES = 256 << 20
"""Of the largest file."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read; Pillow knows more, some of them by helpers that run other programs."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Names of files that are taken for images in a folder."""
Fit = Literal["crop", "stretch"]


def read_image(path: str | Path, *, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Read an image file as it is meant to be seen.

    It is turned as its EXIF orientation says. Palettes become colours, CMYK and the like red, green and blue, 16 bits
    their upper 8 (rounded), and what is transparent is laid on white.

    Args:
        path: a file of one of `FORMATS`, which its content says and not its name.
        channels: 3 for colours, 1 for grey.

    Returns:
        Values from 0 to 255.

    Raises:
        DataError: the file is missing, damaged, cut off, no image, animated, or larger than `MAX_PIXELS`.
    """
    path, log = Path(path), logging.getLogger("PIL")
    if not log.handlers:  # or what Pillow notes of a damaged file is printed
        log.addHandler(logging.NullHandler())
    try:
        if not path.is_file():
            raise DataError(f"{path} is {'no file' if path.exists() else 'missing'}; give the name of an image file")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size >> 20} MiB; images of up to {MAX_BYTES >> 20} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit of pixels is above ours, and odd EXIF is no fault
            with Image.open(path, formats=FORMATS) as image:
                _refuse(image, path)
                image.load()
                return as_seen(image, channels)
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image that can be read ({', '.join(FORMATS)}), or it is damaged") from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({_reason(error)}); copy it again or leave it out") from error
    except Image.DecompressionBombError:
        raise DataError(f"{path} says that it has more than {MAX_PIXELS:,} pixels, which are not read") from None
    except (struct.error, zlib.error, MemoryError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({_reason(error)}); copy it again or leave it out") from error


def as_seen(image: Any, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Pixels of an opened image, see `read_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.uint8).reshape(
        image.height, image.width, channels
    )


def resized(pixels: UInt8[np.ndarray, "a b c"], size: tuple[int, int], fit: Fit = "crop") -> UInt8[np.ndarray, "h w c"]:
    """An image of another size, averaged where it shrinks.

    Args:
        pixels: the image.
        size: height and width.
        fit: `crop` cuts the longer side off at both ends and keeps proportions; `stretch` does not keep them.
    """
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    if fit == "crop":
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, pixels.shape[2])


def _refuse(image: Any, path: Path) -> None:
    """Refuse what is read from the header alone to be no single image of a size that is read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} has {width} × {height} pixels; images of up to {MAX_PIXELS:,} pixels are read")
    if not width or not height:
        raise DataError(f"{path} has no pixels")
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path} is an animation, or holds several pages; save one of them as an image of its own")


def _eight_bits(image: Any) -> Any:
    """Grey of 16 bits, or of numbers of which nothing is known but that they are not colours, in 8.

    Raises:
        DataError: numbers with a fraction, or above 16 bits.
    """
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or not (values.min() >= 0 and values.max() < 1 << 16):
        raise DataError("it holds numbers that are no brightness of 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
