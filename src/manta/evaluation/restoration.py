"""One evaluator for restorers: photographs are spoiled, restored and compared with what they were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from manta.errors import DataError
from manta.families.instructions import TASKS
from manta.families.restorer import Restorer
from manta.image import read_images
from manta.image.degradations import spoiled
from manta.image.photos import photos_of
from manta.metrics.bootstrap import bootstrap_mean
from manta.metrics.fidelity import psnr, ssim
from manta.runtime import make_generator

LEAST_SIDE = 11
"""Pixels of a side of the smallest photograph that is compared."""
Told = Callable[[str, int, int], None]
Restore = Callable[[UInt8[np.ndarray, "h w 3"], str], UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was measured of one fault."""

    task: str
    """The fault."""
    photos: int
    """Photographs."""
    psnr: tuple[float, float, float]
    """Decibels after restoring: mean, and its limits at 95% over photographs."""
    ssim: tuple[float, float, float]
    """Structural similarity after restoring."""
    psnr_before: float
    """Decibels of the spoiled photographs."""
    ssim_before: float
    """Structural similarity of the spoiled photographs."""


def held_out_photos(data: str, split: str, num: int | None = None) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Photographs of a split.

    Args:
        data: `restore:FOLDER`.
        split: "dev" or "test".
        num: at most; None: all.

    Raises:
        DataError: there are none.
    """
    found = [
        example.pixels
        for example in read_images(photos_of(data), split, num, channels=3, skipped=lambda reason: None)
        if min(example.pixels.shape[:2]) >= LEAST_SIDE
    ]
    if not found:
        raise DataError(f"{data} has no photographs in {split}; name another --split, or give more of them")
    return found


def measure_restoration(
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    restore: Restore,
    *,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    tell: Told = lambda what, done, total: None,
) -> list[Restored]:
    """Spoil each photograph in each way, restore it and compare.

    Args:
        photos: as they were taken.
        restore: from a spoiled photograph and the name of its fault to a restored one.
        tasks: the faults.
        seed: of what spoils them; the same for whatever restores.
        tell: takes what is done, and how far it has come.

    Raises:
        DataError: there are fewer than two photographs, which give no interval.
    """
    if len(photos) < 2:
        raise DataError("figures with intervals take two photographs at least")
    found = []
    for task in tasks:
        figures = []
        for index, photo in enumerate(photos):
            bad = spoiled(photo, task, np.random.default_rng([seed, index, TASKS.index(task)]))
            good = restore(bad, task)
            figures.append((psnr(good, photo), ssim(good, photo), psnr(bad, photo), ssim(bad, photo)))
            tell(task, index + 1, len(photos))
        table = torch.tensor(figures, dtype=torch.float64)
        ends = [bootstrap_mean(table[:, i], generator=make_generator(0)) for i in range(2)]
        after = [(mean.value, mean.low, mean.high) for mean in ends]
        before = table[:, 2:].mean(0).tolist()
        found.append(
            Restored(
                task=task,
                photos=len(photos),
                psnr=after[0],
                ssim=after[1],
                psnr_before=before[0],
                ssim_before=before[1],
            )
        )
    return found


def with_restorer(restorer: Restorer) -> Restore:
    """What a restorer makes of a photograph whose fault is known."""
    return lambda photo, task: restorer.restore(photo, task=task)
