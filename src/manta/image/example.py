"""One image with what is said of it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageExample:
    """One image of a data set."""

    pixels: UInt8[np.ndarray, "h w c"]
    """Red, green and blue from 0 to 255, or one channel of grey."""
    label: str | None = None
    """Its class; None where the data have none."""
    caption: str | None = None
    """What it shows, in words; None where nothing says so."""
