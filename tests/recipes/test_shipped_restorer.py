"""The restorer that ships: it takes every fault out of pictures that it has never seen."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from manta.cli import main
from manta.families.instructions import TASKS
from manta.hub import load
from manta.image.degradations import smooth_field, spoiled
from manta.metrics.fidelity import psnr


@pytest.fixture(scope="module")
def restorer() -> Any:
    return load("builtin:restorer", device="cpu")


def picture(seed: int) -> np.ndarray:
    """A drawn landscape: soft light, hills before one another, and a wall with straight edges."""
    draws = np.random.default_rng(seed)
    side, rows = 128, np.arange(128.0)
    light = 0.5 + 0.1 * smooth_field((side, side), draws)
    image = np.stack([light * tint for tint in (0.9, 1.1, 1.3)], -1)
    for depth in range(3):
        ridge = 50 + 25 * depth + 8 * np.sin(rows / (9 + 4 * depth) + seed)
        image[rows[:, None] > ridge[None]] = (0.5 - 0.12 * depth, 0.55 - 0.1 * depth, 0.35 - 0.08 * depth)
    image[60:110, 70:110] = (0.7, 0.45, 0.3)
    image[70:85, 80:90] = 0.15
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("task", TASKS)
def test_every_fault_is_lessened(task, restorer):
    gains = []
    for seed in range(3):
        clean = picture(seed)
        bad = spoiled(clean, task, np.random.default_rng(seed))
        gains.append(psnr(restorer.restore(bad, task=task), clean) - psnr(bad, clean))
    assert min(gains) > 0 and np.mean(gains) > 0.5, gains


def test_a_photograph_is_restored_by_the_name_that_it_ships_under(tmp_path, capsys):
    photo, out = tmp_path / "rainy.png", tmp_path / "clean.png"
    Image.fromarray(spoiled(picture(0), "rain", np.random.default_rng(0))).save(photo)
    command = ["restore", "builtin:restorer", str(photo), "--instruction", "take the rain away", "--out", str(out)]
    assert main(command) == 0
    assert Image.open(out).size == (128, 128) and "rain" in capsys.readouterr().err
