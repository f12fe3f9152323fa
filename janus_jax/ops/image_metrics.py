"""How far a reconstruction is from its image: PSNR and SSIM, and what LlamaGen's evaluation does before them.

Letters: B images, H W rows and columns, h w those after resizing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

SSIM_WINDOW = 7  # side of the uniform window of scikit-image's default SSIM


def to_levels(pixels: Float[Array, "*S"]) -> UInt8[Array, "*S"]:
    """Numbers in [-1, 1] -> bytes, rounded, as LlamaGen's evaluation does."""
    return jnp.clip(127.5 * pixels.astype(jnp.float32) + 128, 0, 255).astype(jnp.uint8)


def psnr(a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; 100 for equal images, whose ratio is infinite."""
    error = jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"], data_range: float) -> Float[Array, " B"]:
    """Structural similarity (Wang et al., 2004) as scikit-image computes it by default.

    Uniform windows of 7 x 7, sample covariance, the mean over all whole windows and the three channels.

    Args:
        data_range: 1 for images in [0, 1]. LlamaGen's evaluation takes 2, which gives larger values; report both.
    """
    # Covariances do not change when a constant is taken off both images, and lose fewer digits near zero.
    a, b = a.astype(jnp.float32) - 0.5, b.astype(jnp.float32) - 0.5
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variance_a = sample * (_window_mean(a * a) - mean_a * mean_a)
    variance_b = sample * (_window_mean(b * b) - mean_b * mean_b)
    covariance = sample * (_window_mean(a * b) - mean_a * mean_b)
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def resize_bicubic(images: Float[Array, "B H W 3"], height: int, width: int) -> Float[Array, "B h w 3"]:
    """Bicubic without antialiasing, as torch.nn.functional.interpolate computes it by default.

    The factor of the cubic is -0.75, the centres of the pixels lie at halves and the edges are repeated.
    """
    rows = _bicubic_matrix(images.shape[1], height)
    columns = _bicubic_matrix(images.shape[2], width)
    with jax.default_matmul_precision("float32"):
        return jnp.einsum("hH,wW,BHWc->Bhwc", rows, columns, images.astype(jnp.float32))


def _window_mean(x: Array) -> Array:
    window = (1, SSIM_WINDOW, SSIM_WINDOW, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID") / SSIM_WINDOW**2


@functools.cache
def _bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """[new_size, size]: the weights of the old pixels in each of the new ones."""
    a, matrix = -0.75, np.zeros((new_size, size), np.float32)
    for i in range(new_size):
        centre = (i + 0.5) * size / new_size - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            x = abs(centre - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(j, 0), size - 1)] += near if x <= 1 else far
    return matrix
