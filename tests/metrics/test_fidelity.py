"""How near an image is to another, by known answers."""

import numpy as np
import pytest

from manta.errors import DataError
from manta.metrics.fidelity import Steps, psnr, seams, ssim


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


def test_steps_across_seams_are_told_apart_from_those_beside():
    """Parts of 4 × 5 pixels, each of an error of its own, on a slope of 1 a column that the truth does not have."""
    truth = np.full((12, 20, 3), 100, np.uint8)
    rows, columns = np.arange(12)[:, None, None], np.arange(20)[None, :, None]
    parts = (truth + columns + 10 * (rows // 4) + 30 * (columns // 5)).astype(np.uint8)
    found = seams(parts, truth, ([4, 8], [5, 10, 15]), 4)
    down, right = [10.0] * (2 * 20 * 3), [31.0] * (3 * 12 * 3)
    assert found.across == pytest.approx((np.mean(down + right), 31, 31))
    assert len(found.beside) == 3
    for inside in found.beside:  # of equally many, those along columns
        assert inside == pytest.approx((3 * 12 / (2 * 20 + 3 * 12), 1, 1))
    flipped = seams(np.swapaxes(parts, 0, 1), np.swapaxes(truth, 0, 1), ([5, 10, 15], [4, 8]), 4)
    assert flipped == found
    assert seams(truth, truth, ([4], [5]), 2).across == Steps(0.0, 0.0, 0.0)
    assert seams(truth, parts, ([4, 8], [5, 10, 15]), 4) == found, "an error has no sign here"


def test_a_seam_is_no_place_beside_one_and_rare_steps_are_left_out_of_the_high_ones():
    truth = np.zeros((1, 9, 1), np.uint8)
    parts = truth.copy()
    parts[:, 6:] = 7
    found = seams(parts, truth, ([], [4, 6]), 3)
    assert found.across.largest == 7 and found.beside[1] == Steps(0.0, 0.0, 0.0), "6 is 2 from 4, and a seam itself"
    wide = np.zeros((20_001, 4, 1), np.uint8)
    spotted = wide.copy()
    spotted[[5, 9000], 2:] = 200
    assert seams(spotted, wide, ([], [2]), 2).across == pytest.approx((400 / 20_001, 0, 200))
    with pytest.raises(DataError, match="seams"):
        seams(truth, truth, ([], [0, 9]), 2)
