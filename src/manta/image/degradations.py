"""What spoils a photograph, each as a function of known parameters: noise, blur, rain, haze, snow.

Images are float arrays "h w 3" with values in [0, 1]; parameters are drawn by a generator, so that the same one spoils
the same photograph in the same way.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

Image = Float[np.ndarray, "h w c"]

SIGMA = (15 / 255, 50 / 255)
"""Standard deviations of noise."""
WIDTH = (1.0, 2.2)
"""Standard deviations of a blur, pixels."""
SHUTTER = 2 / 255
"""Noise of a blurred photograph."""
DROPS, LENGTH, LEAN = (0.01, 0.03), (9, 21), (-0.5, 0.5)
"""Share of pixels at which a streak of rain begins, its length in pixels, and its angle from upright, radians."""
STREAK = (0.5, 0.9)
"""Brightness that a streak adds."""
THICKNESS, AIR = (0.8, 2.2), (0.75, 0.95)
"""Optical depth of haze at the far end, and the brightness of its light."""
SCENE = 384
"""Pixels of the side of a photograph that a smaller image is taken for a part of."""
FLAKES, SIZE = (0.004, 0.012), (0.8, 2.5)
"""Share of pixels at which a flake lies, and its radius in pixels."""


def add_noise(image: Image, sigma: float, draws: np.random.Generator) -> Image:
    """Independent Gaussian noise of every value."""
    return image + sigma * draws.standard_normal(image.shape).astype(np.float32)


def blurred(image: Image, width: float) -> Image:
    """A Gaussian blur, mirrored at the edges."""
    return _convolved(image, gaussian(width))


def add_rain(image: Image, share: float, length: int, lean: float, light: float, draws: np.random.Generator) -> Image:
    """Bright streaks in one direction, each of the same length; they lie over what is there."""
    height, width = image.shape[:2]
    drops = (draws.random((height, width)) < share).astype(np.float32) * draws.uniform(0.5, 1, (height, width))
    streaks = _convolved(drops[..., None].astype(np.float32), streak(length, lean) * length)
    streaks = np.clip(streaks, 0, 1) * light
    return image + streaks * (1 - image)


def add_haze(image: Image, thickness: float, air: float, draws: np.random.Generator) -> Image:
    """Light of the air between camera and scene: ``J t + A (1 − t)``, ``t = exp(−β d)``, d a smooth random depth."""
    depth = smooth_field(image.shape[:2], draws)
    passed = np.exp(-thickness * depth)[..., None].astype(np.float32)
    return image * passed + air * (1 - passed)


def add_snow(image: Image, share: float, radius: float, draws: np.random.Generator) -> Image:
    """White flakes, round and soft, of three sizes about a radius; they hide what is there."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width, 1), np.float32)
    for size in (0.6 * radius, radius, 1.6 * radius):
        seeds = (draws.random((height, width)) < share / 3).astype(np.float32)[..., None]
        cover = np.maximum(cover, np.clip(_convolved(seeds, disc(size)), 0, 1))
    return image * (1 - 0.95 * cover) + 0.95 * cover


def _noise(image: Image, draws: np.random.Generator) -> Image:
    return add_noise(image, draws.uniform(*SIGMA), draws)


def _blur(image: Image, draws: np.random.Generator) -> Image:
    return add_noise(blurred(image, draws.uniform(*WIDTH)), SHUTTER, draws)


def _rain(image: Image, draws: np.random.Generator) -> Image:
    length = int(draws.integers(*LENGTH, endpoint=True))
    return add_rain(image, draws.uniform(*DROPS) / 3, length, draws.uniform(*LEAN), draws.uniform(*STREAK), draws)


def _haze(image: Image, draws: np.random.Generator) -> Image:
    return add_haze(image, draws.uniform(*THICKNESS), draws.uniform(*AIR), draws)


def _snow(image: Image, draws: np.random.Generator) -> Image:
    return add_snow(image, draws.uniform(*FLAKES), draws.uniform(*SIZE), draws)


DEGRADATIONS: Final[Mapping[str, Callable[[Image, np.random.Generator], Image]]] = {
    "noise": _noise,
    "blur": _blur,
    "rain": _rain,
    "haze": _haze,
    "snow": _snow,
}
"""From the name of what spoils a photograph to a function that does it by as much as a generator says."""
TASKS: Final = tuple(DEGRADATIONS)


def spoiled(pixels: np.ndarray, task: str, draws: np.random.Generator) -> np.ndarray:
    """A photograph, uint8 "h w 3", as it would be with one fault, uint8 again.

    Args:
        pixels: the photograph.
        task: a key of `DEGRADATIONS`.
        draws: says how strong the fault is, and where.
    """
    found = DEGRADATIONS[task](pixels.astype(np.float32) / 255, draws)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8)


def gaussian(width: float) -> Float[np.ndarray, "k k"]:
    """A Gaussian kernel that reaches three standard deviations, with a sum of 1."""
    reach = max(1, math.ceil(3 * width))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    line /= line.sum()
    return np.outer(line, line).astype(np.float32)


def streak(length: int, lean: float) -> Float[np.ndarray, "k k"]:
    """A line of some pixels at an angle from upright, with a sum of 1."""
    reach = max(1, length // 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for step in np.linspace(-reach, reach, 4 * reach + 1):
        row, column = reach + step * math.cos(lean), reach + step * math.sin(lean)
        top, left = int(row), int(column)
        for y, x in ((top, left), (top + 1, left), (top, left + 1), (top + 1, left + 1)):
            if y < len(kernel) and x < len(kernel):
                kernel[y, x] += (1 - abs(row - y)) * (1 - abs(column - x))
    return kernel / kernel.sum()


def disc(radius: float) -> Float[np.ndarray, "k k"]:
    """A round spot of height 1 whose edge is a pixel wide."""
    reach = math.ceil(radius) + 1
    place = np.arange(-reach, reach + 1)
    far = np.hypot(place[:, None], place[None])
    return np.clip(radius + 0.5 - far, 0, 1).astype(np.float32)


def smooth_field(shape: tuple[int, int], draws: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """A random depth in [0, 1]: coarse noise, drawn out, on a slope that is far at the top.

    A small image is taken for a part of a photograph of `SCENE` pixels, anywhere in it, so that depth changes within it
    as it would there.
    """
    height, width = (max(side, SCENE) for side in shape)
    top, left = (int(draws.integers(full - side + 1)) for full, side in ((height, shape[0]), (width, shape[1])))
    coarse = torch.from_numpy(draws.random((1, 1, 4, 4)).astype(np.float32))
    noise = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0, 0].numpy()
    slope = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    depth = np.clip(0.5 * noise + 0.5 * slope, 0, 1)
    return depth[top : top + shape[0], left : left + shape[1]]


def _convolved(image: Image, kernel: Float[np.ndarray, "k k"]) -> Image:
    """Every channel with one kernel, mirrored at the edges."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    grid = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))[:, None]
    flipped = torch.from_numpy(np.ascontiguousarray(kernel[::-1, ::-1]))[None, None]
    return F.conv2d(grid, flipped)[:, 0].numpy().transpose(1, 2, 0)
