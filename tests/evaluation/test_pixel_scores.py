"""PSNR and SSIM against their definitions, written as loops over windows."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.evaluation.scores.pixels import psnr, ssim
from janus_jax.ops import image_metrics

RNG = np.random.default_rng(3)
IMAGE = RNG.random((12, 15, 3))
OTHER = np.clip(IMAGE + 0.2 * RNG.standard_normal(IMAGE.shape), 0, 1)


def slow_ssim(x, y, data_range):
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(x.shape[0] - 6):
        for column in range(x.shape[1] - 6):
            for channel in range(x.shape[2]):
                a, b = (z[row : row + 7, column : column + 7, channel].ravel() for z in (x, y))
                (va, vab), (_, vb) = np.cov(a, b)
                values.append(
                    (2 * a.mean() * b.mean() + c1)
                    * (2 * vab + c2)
                    / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (va + vb + c2))
                )
    return np.mean(values)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_equals_its_definition(data_range):
    assert ssim(IMAGE, OTHER, data_range) == pytest.approx(slow_ssim(IMAGE, OTHER, data_range), abs=1e-12)
    assert ssim(IMAGE, IMAGE, data_range) == pytest.approx(1, abs=1e-12)


def test_psnr_of_a_known_error():
    assert psnr(np.zeros((2, 2, 3)), np.full((2, 2, 3), 0.1)) == pytest.approx(20, abs=1e-12)
    assert psnr(IMAGE, IMAGE) == np.inf


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_training_measures_the_same_on_the_device(data_range):
    pair = [jnp.asarray(image, jnp.float32)[None] for image in (IMAGE, OTHER)]
    assert image_metrics.ssim(*pair, data_range)[0] == pytest.approx(ssim(IMAGE, OTHER, data_range), abs=2e-6)
    assert image_metrics.psnr(*pair)[0] == pytest.approx(psnr(IMAGE, OTHER), abs=1e-5)
