"""All forms of one weight matrix give the same product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops import projection
from janus_jax.ops.pixels import normalize
from janus_jax.ops.projection import Weight

RNG = np.random.default_rng(0)
INTEGERS = RNG.integers(-127, 128, (24, 40))
SCALE = np.float32(RNG.uniform(0.5, 2, 40))
MATRIX = np.float32(INTEGERS * SCALE)
INT8 = jnp.asarray(INTEGERS, jnp.int8)
X = np.float32(RNG.normal(size=(2, 3, 24)))


def project(x, weight):
    return jax.jit(lambda x: projection.project(x, weight))(x)


@pytest.mark.parametrize(
    "weight",
    [
        Weight(jnp.asarray(MATRIX)),
        Weight(INT8, jnp.asarray(SCALE)),
        Weight(jnp.asarray(MATRIX.T), row_major=True),
        Weight(INT8.T, jnp.asarray(SCALE), row_major=True),
    ],
    ids=["plain", "int8", "row-major", "row-major int8"],
)
def test_every_form_equals_float64(weight):
    exact = X.astype(np.float64) @ (INTEGERS * SCALE.astype(np.float64))
    bound = 2e-6 * (np.abs(X) @ np.abs(MATRIX))
    product = project(X, weight)
    assert product.dtype == jnp.float32 and product.shape == (2, 3, 40)
    assert (np.abs(product - exact) <= bound).all()


@pytest.mark.parametrize(
    "weight",
    [Weight(jnp.asarray(MATRIX)), Weight(jnp.asarray(MATRIX.T), row_major=True)],
    ids=["plain", "row-major"],
)
def test_the_product_has_the_dtype_of_the_activations(weight):
    product = project(jnp.asarray(X, jnp.bfloat16), weight)
    assert product.dtype == jnp.bfloat16
    exact = X @ MATRIX
    assert np.abs(product.astype(jnp.float32) - exact).max() < 0.02 * np.abs(exact).max()


def test_bytes_become_numbers_from_minus_one_to_one():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_allclose(normalize(pixels, jnp.float32), np.linspace(-1, 1, 256), rtol=0, atol=1e-6)
    assert normalize(pixels, jnp.bfloat16).dtype == jnp.bfloat16
