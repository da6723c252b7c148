"""How near an image is to another: peak signal to noise, and structural similarity."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

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
