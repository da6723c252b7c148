"""A photograph opened so that all but its colours can be written again: orientation, profile, what is transparent."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from manta.errors import DataError, UsageError
from manta.image.files import FORMATS, read_image
from manta.runtime import atomic_write

ENDINGS_WRITTEN: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""From a file's ending to the format it is written in."""
KEPT_TAGS: Final = frozenset((270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853))
"""EXIF tags of the photograph: title, camera, resolution, program, time, author, rights, settings, place."""
PROFILED: Final = ("RGB", "RGBA", "L", "LA", "P")
"""Modes whose profile says the colours that are written; of CMYK it would not."""
QUALITY = 95
"""Of a JPEG or WebP file."""


@dataclass(frozen=True)
class Photo:
    """A photograph as it is meant to be seen, and what is kept beside its colours."""

    pixels: UInt8[np.ndarray, "h w c"]
    """Colours, or grey where the file is grey."""
    alpha: UInt8[np.ndarray, "h w"] | None
    """How much of each pixel is seen; None: all."""
    exif: bytes
    """What the camera has noted; it says no orientation, as the photograph is turned already."""
    profile: bytes | None
    """Of its colours."""

    def check(self, path: Path) -> None:
        """Refuse a file that cannot hold what is transparent.

        Raises:
            UsageError: as said.
        """
        if self.alpha is not None and ENDINGS_WRITTEN[path.suffix.lower()] in ("JPEG", "BMP"):
            raise UsageError(f"the photograph is transparent in parts, which {path.suffix} cannot hold; write a .png")

    def save(self, path: Path, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Write other pixels in this one's place, atomically.

        Args:
            path: ends as one of `ENDINGS_WRITTEN`.
            pixels: of the same shape.

        Raises:
            UsageError: the file cannot hold what is transparent.
        """
        kind = ENDINGS_WRITTEN[path.suffix.lower()]
        grey = pixels.shape[2] == 1
        image = Image.fromarray(pixels[..., 0] if grey else pixels)
        if self.alpha is not None:
            self.check(path)
            image.putalpha(Image.fromarray(self.alpha))
        kept: dict[str, Any] = {"exif": self.exif} if self.exif and kind != "BMP" else {}
        if self.profile and kind != "BMP":
            kept["icc_profile"] = self.profile
        if kind in ("JPEG", "WEBP"):
            kept["quality"] = QUALITY
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **kept)
        except (OSError, ValueError) as error:  # such as notes of the camera that are too long for the format
            reason = " ".join(str(error).split())[:120]
            raise UsageError(
                f"{path.suffix} cannot hold what the photograph has besides ({reason}); write a .png"
            ) from None
        atomic_write(path, buffer.getvalue())


def open_photo(path: Path) -> Photo:
    """Open a photograph.

    Args:
        path: an image file.

    Raises:
        DataError: as `read_image` says.
    """
    pixels, alpha, exif, profile = read_image(path), None, b"", None
    try:
        with Image.open(path, formats=FORMATS) as image:
            profile = image.info.get("icc_profile") if image.mode in PROFILED else None
            found = image.getexif()
            turned: Any = ImageOps.exif_transpose(image)
            if turned.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in turned.info:
                whole = turned.convert("RGBA")
                alpha = np.asarray(whole.getchannel("A"), np.uint8)
                alpha = None if bool((alpha == 255).all()) else alpha
                pixels = np.asarray(whole.convert("RGB"), np.uint8)
            if turned.mode in ("L", "LA", "1") or turned.mode.startswith("I"):
                pixels = pixels[..., :1]
            for tag in set(found) - KEPT_TAGS:  # an orientation that is done, and how the file itself was laid out
                del found[tag]
            exif = found.tobytes() if len(found) else b""
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())[:120]})") from error
    return Photo(np.ascontiguousarray(pixels), alpha, exif, profile if isinstance(profile, bytes) else None)
