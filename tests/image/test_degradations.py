"""Faults of photographs: what each does is known."""

import numpy as np
import pytest

from manta.image import degradations as faults
from manta.image.degradations import TASKS, spoiled


def photo(height=40, width=50):
    y, x = np.mgrid[:height, :width]
    return np.stack([(5 * y) % 256, (5 * x) % 256, (3 * x + 2 * y) % 256], 2).astype(np.uint8)


@pytest.mark.parametrize("task", TASKS)
def test_a_fault_is_that_of_its_draws_and_spoils(task):
    first, again, other = (spoiled(photo(), task, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.dtype == np.uint8 and first.shape == photo().shape
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, photo())


def test_noise_has_its_deviation():
    grey = np.full((200, 200, 3), 0.5, np.float32)
    noisy = faults.add_noise(grey, 0.1, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.1, rel=0.02) and noisy.mean() == pytest.approx(0.5, abs=1e-3)


def test_blur_keeps_the_sum_and_spreads_a_point_by_its_width():
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    found = faults.blurred(point, 2.0)[..., 0]
    y, x = np.mgrid[:41, :41] - 20
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found * x**2).sum() == pytest.approx(4, rel=0.03) and (found * y**2).sum() == pytest.approx(4, rel=0.03)
    flat = np.full((9, 9, 1), 0.3, np.float32)
    assert np.allclose(faults.blurred(flat, 2.0), 0.3, atol=1e-6), "edges are mirrored"


def test_rain_falls_along_its_direction_and_only_brightens():
    dark = np.full((60, 60, 3), 0.2, np.float32)
    wet = faults.add_rain(dark, 0.004, 15, 0.0, 0.9, np.random.default_rng(0))
    assert (wet >= dark - 1e-6).all() and wet.max() > 0.3 and wet.max() <= 1
    down = np.abs(np.diff(wet[..., 0], axis=0)).mean()
    across = np.abs(np.diff(wet[..., 0], axis=1)).mean()
    assert down < across / 3, "upright streaks change little from top to bottom"


def test_haze_is_light_of_the_air_by_depth():
    scene = np.zeros((32, 32, 3), np.float32)
    found = faults.add_haze(scene, 1.5, 0.8, np.random.default_rng(0))
    depth = faults.smooth_field((32, 32), np.random.default_rng(0))
    assert np.allclose(found[..., 0], 0.8 * (1 - np.exp(-1.5 * depth)), atol=1e-6)
    assert depth.min() >= 0 and depth.max() <= 1 and depth[0].mean() > depth[-1].mean()


def test_snow_hides_and_whitens():
    scene = np.full((64, 64, 3), 0.1, np.float32)
    found = faults.add_snow(scene, 0.01, 1.5, np.random.default_rng(0))
    assert (found >= scene - 1e-6).all() and found.max() == pytest.approx(0.955, abs=0.01)
    assert 0.01 < (found[..., 0] > 0.5).mean() < 0.3


def test_kernels_are_what_they_say():
    assert faults.gaussian(1.3).sum() == pytest.approx(1, abs=1e-6)
    upright = faults.streak(9, 0.0)
    assert upright.sum() == pytest.approx(1, abs=1e-5) and np.count_nonzero(upright[:, len(upright) // 2]) >= 9
    assert np.allclose(upright[:, : len(upright) // 2], 0)
    assert faults.disc(2.0).sum() == pytest.approx(np.pi * 4, rel=0.1)
