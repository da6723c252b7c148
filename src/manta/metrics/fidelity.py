"""How near an image is to another: peak signal to noise, structural similarity, and steps of the error at seams."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8

from manta.errors import DataError

RANGE = 255.0
WINDOW, SPREAD = 11, 1.5
"""Pixels of the window of structural similarity, and the standard deviation of its weights."""
K1, K2 = 0.01, 0.03


def psnr(image: UInt8[np.ndarray, "h w c"], truth: UInt8[np.ndarray, "h w c"]) -> float:
    """Peak signal to noise, decibels: ``10 log10(255² / mean squared error)``; 99 for equal images."""
    error = float(np.square(image.astype(np.float64) - truth).mean())
    return 99.0 if error == 0 else min(99.0, 10 * float(np.log10(RANGE**2 / error)))


def ssim(image: UInt8[np.ndarray, "h w c"], truth: UInt8[np.ndarray, "h w c"]) -> float:
    """Structural similarity, mean over channels and all windows that lie inside; 1 for equal images.

    Args:
        image: of at least 11 × 11 pixels.
        truth: of the same shape.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004: Gaussian
        windows of 11 × 11 with a standard deviation of 1.5, K1 = 0.01, K2 = 0.03.
    """
    line = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / SPREAD) ** 2)
    line /= line.sum()
    x, y = (torch.from_numpy(each.astype(np.float64).transpose(2, 0, 1))[:, None] for each in (image, truth))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, both = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


class Steps(NamedTuple):
    """How far an error moves from one pixel to the next, in values of 0 to 255."""

    mean: float
    """Of all."""
    high: float
    """Those of 9,999 of 10,000 are at most so large."""
    largest: float
    """Of all."""


class Seams(NamedTuple):
    """Steps of an error across seams, and as many at each of some distances from them."""

    across: Steps
    """From the last pixel before a seam to the first behind it."""
    beside: list[Steps]
    """The same some pixels on, by distance: where the seams cannot be seen, those across are like these."""


def seams(
    image: UInt8[np.ndarray, "h w c"],
    truth: UInt8[np.ndarray, "h w c"],
    borders: tuple[Sequence[int], Sequence[int]],
    period: int,
) -> Seams:
    """Whether the places where an image was put together can be seen in its error ``e = image − truth``.

    A step is ``|e(x) − e(x − 1)|``, down and to the right alike. As a larger group of steps has a larger largest one,
    those across seams are compared with groups of about their own size: those of each distance from a seam.

    Args:
        image: put together of parts.
        truth: what it is compared with, without seams.
        borders: rows, and columns, at which a part begins or the pixel behind its end lies.
        period: distances from a seam that are told, from 1 to one less.

    Raises:
        DataError: no border lies within the image.
    """
    counts = np.zeros((period, 2 * int(RANGE) + 1), np.int64)
    for axis, places in enumerate(borders):
        length, inside = image.shape[axis], set(places)
        for offset in range(period):
            for place in places:
                at = place + offset
                if 0 < at < length and (offset == 0 or at not in inside):
                    now, before = (
                        image.take(index, axis).astype(np.int16) - truth.take(index, axis) for index in (at, at - 1)
                    )
                    counts[offset] += np.bincount(np.abs(now - before).ravel(), minlength=counts.shape[1])
    if not counts.sum(1).all():
        raise DataError("the image has no seams to look at, or none that are so far apart; give a larger one")
    across, *beside = (_steps(row) for row in counts)
    return Seams(across, beside)


def _steps(counts: Int64[np.ndarray, "v"]) -> Steps:
    """Figures of steps of 0, 1, … of which there are so many."""
    shares = counts.cumsum() / counts.sum()
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    return Steps(mean, float(np.searchsorted(shares, 0.9999)), float(counts.nonzero()[0][-1]))
