"""The quickstart's judge and measures."""

import itertools

import numpy as np
import PIL.Image
import pytest

from examples.digits import benchmark
from examples.digits import data as digits


@pytest.fixture(scope="module")
def splits():
    return digits.load_digits()


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(count)]


def test_the_judge_reads_real_digits_it_never_saw(splits):
    training, held_out = splits
    judge = benchmark.Judge(training)
    images = [digits.to_image(intensities) for intensities in held_out.intensities]
    assert np.mean(judge(images) == held_out.labels) >= 0.97


def test_the_judge_is_at_chance_on_noise(splits):
    read = benchmark.Judge(splits[0])(random_images(200))
    assert np.mean(read == np.arange(200) % 10) <= 0.25


def test_mean_pairwise_distance_equals_brute_force():
    images, labels = random_images(7), np.array([0, 0, 0, 1, 1, 1, 1])
    pixels = [np.asarray(image, np.float64) for image in images]

    def mean_distance(label):
        of_class = [pixels[i] for i in np.flatnonzero(labels == label)]
        return np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(of_class, 2)])

    expected = (mean_distance(0) + mean_distance(1)) / 2
    assert benchmark.mean_pairwise_distance(images, labels) == pytest.approx(expected, rel=1e-12)


def test_equal_images_have_no_diversity():
    assert benchmark.mean_pairwise_distance(random_images(1) * 3, np.zeros(3)) == pytest.approx(0, abs=1e-3)


def test_psnr_of_a_constant_error():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    assert benchmark.reconstruction_psnr(images, images + 5) == pytest.approx(20 * np.log10(255 / 5))
