"""PSNR, SSIM, rounding and resizing against scikit-image and torch, as LlamaGen's evaluation uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops import image_metrics
from tests.helpers.tokenizer_reference import load, nhwc

ARRAYS = load("metrics")
psnr, resize_bicubic, ssim = (
    jax.jit(image_metrics.psnr),
    jax.jit(image_metrics.resize_bicubic, static_argnums=(1, 2)),
    jax.jit(image_metrics.ssim, static_argnums=2),
)


def pairs(case):
    """Images and reconstructions in [-1, 1]."""
    if case == "same":
        return jnp.asarray(ARRAYS["images"] / np.float32(127.5) - 1), nhwc(ARRAYS["reconstructions"])
    return nhwc(ARRAYS["smaller/images_float"]), nhwc(ARRAYS["smaller/reconstructions_float"])


@pytest.mark.parametrize("case", ["same", "smaller"])
def test_metrics_equal_those_of_the_original_evaluation(case):
    images, reconstructions = pairs(case)
    levels = image_metrics.to_levels(reconstructions)
    np.testing.assert_array_equal(levels, ARRAYS[f"{case}/uint8"])
    a, b = (images + 1) / 2, levels.astype(jnp.float32) / 255
    np.testing.assert_allclose(psnr(a, b), ARRAYS[f"{case}/psnr"], rtol=0, atol=5e-6)
    for data_range in (1, 2):
        expected = ARRAYS[f"{case}/ssim_range{data_range}"]
        np.testing.assert_allclose(ssim(a, b, float(data_range)), expected, rtol=0, atol=3e-7)


def test_bicubic_resize_equals_torch_without_antialiasing():
    images, reconstructions = pairs("same")
    smaller_images, smaller = pairs("smaller")
    np.testing.assert_allclose(resize_bicubic(images, 32, 32), smaller_images, rtol=0, atol=2e-6)
    np.testing.assert_allclose(resize_bicubic(reconstructions, 32, 32), smaller, rtol=0, atol=2e-6)


def test_an_image_has_similarity_one_with_itself():
    images = (pairs("same")[0] + 1) / 2
    np.testing.assert_allclose(ssim(images, images, 1.0), np.ones(3), rtol=0, atol=1e-6)
