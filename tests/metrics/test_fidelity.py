"""How near an image is to another, by known answers."""

import numpy as np
import pytest

from manta.metrics.fidelity import psnr, ssim


def image(seed=0, shape=(32, 40, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_signal_to_noise_is_that_of_the_error():
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(flat + 10, flat) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(flat, flat) == 99.0


def test_similarity_is_one_for_equals_and_knows_contrast_and_mean():
    first = image()
    assert ssim(first, first) == pytest.approx(1)
    assert abs(ssim(first, image(1))) < 0.1
    flat = np.full((20, 20, 1), 100, np.uint8)
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ssim(flat, flat + 20) == pytest.approx(expected, abs=1e-6)
    assert ssim(first, 255 - first) < -0.5


def test_similarity_equals_that_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second = image(), np.clip(image().astype(int) + image(1) // 4, 0, 255).astype(np.uint8)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, each = skimage.structural_similarity(first, second, channel_axis=2, full=True, **settings)
    assert ssim(first, second) == pytest.approx(each[5:-5, 5:-5].mean(), abs=1e-6)
