import math

import numpy as np
import pytest

from porter.parity.metrics import Metrics, bitwise_equal, log_spectral_distance, measure, psnr, ssim


def test_equal_arrays_have_no_distance():
    array = np.array([1.0, -2.0, 3.0], dtype=np.float32)
    assert measure(array, array.copy()) == Metrics(equal=True)


def test_nan_equals_nan_and_nothing_else():
    array = np.array([1.0, np.nan], dtype=np.float32)
    assert bitwise_equal(array, array.copy())
    assert measure(array, np.array([1.0, 2.0], dtype=np.float32)).max_abs == math.inf


def test_known_distances():
    found = measure(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert not found.equal
    assert found.max_abs == 0.5
    assert found.max_rel == pytest.approx(0.125)
    assert found.rel_l2 == pytest.approx(0.1)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))


def test_cosine_is_blind_to_scale_and_relative_l2_is_not():
    array = np.linspace(-1, 1, 50)
    found = measure(array, 2 * array)
    assert found.cosine == pytest.approx(1)
    assert found.rel_l2 == pytest.approx(1)


def test_other_shape_is_infinitely_far():
    found = measure(np.zeros((2, 3)), np.zeros((3, 2)))
    assert not found.equal and found.max_abs == math.inf


def test_matching_infinities_do_not_hide_the_rest():
    a, b = np.array([-np.inf, 1.0]), np.array([-np.inf, 1.5])
    assert measure(a, b).max_abs == 0.5
    assert measure(a, np.array([np.inf, 1.0])).max_abs == math.inf


def test_unsigned_bytes_do_not_wrap():
    assert measure(np.array([0], np.uint8), np.array([255], np.uint8)).max_abs == 255


def test_psnr_of_a_known_error():
    assert psnr(np.zeros(10), np.full(10, 0.1), 1.0) == pytest.approx(20)
    assert psnr(np.zeros(10), np.zeros(10), 1.0) == math.inf


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 3), (3, 16, 16), (1, 4, 3, 16, 16)])
def test_picture_scores_take_every_layout(shape):
    rng = np.random.default_rng(0)
    picture = rng.random(shape)
    found = measure(picture, np.clip(picture + 0.01 * rng.standard_normal(shape), 0, 1), "image")
    assert found.psnr is not None and 30 < found.psnr < 50
    assert found.ssim is not None and 0.9 < found.ssim < 1


def test_ssim_falls_with_noise_and_needs_three_pixels():
    rng = np.random.default_rng(0)
    picture = rng.random((32, 32, 3))
    assert ssim(picture, picture, 1.0) == pytest.approx(1)
    assert ssim(picture, rng.random((32, 32, 3)), 1.0) < 0.2
    assert ssim(picture[:2], picture[:2], 1.0) is None


def test_spectral_distance_sees_gain_and_pitch():
    time = np.arange(4096) / 4096
    tone = np.sin(2 * np.pi * 200 * time)
    assert log_spectral_distance(tone, tone) == 0
    noise = np.random.default_rng(0).standard_normal(4096)
    assert log_spectral_distance(noise, 10 * noise) == pytest.approx(20)
    assert log_spectral_distance(tone, np.sin(2 * np.pi * 400 * time)) > 10
    assert log_spectral_distance(np.zeros(3), np.zeros(3)) == 0
