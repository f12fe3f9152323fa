"""Peaks of small programs, counted by hand in matrices of one size."""

import jax
import jax.numpy as jnp
import pytest

from janus_jax.training.liveness import peak_bytes

SIZE = 16
MATRIX = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
BYTES = SIZE * SIZE * 4


def peak(function, *args):
    return peak_bytes(jax.make_jaxpr(function)(*args).jaxpr) / BYTES


def chain(x):
    for _ in range(5):
        x = x @ x
    return x


@pytest.mark.parametrize(
    ("function", "matrices"),
    [
        (lambda x: x @ x, 1),
        (chain, 2),  # a product and the one before it
        (lambda x: (x @ x) + (x @ x.T), 3),  # two products, and first the transposed matrix, then the sum
        (lambda x: jnp.exp(jnp.sin(x @ x)) @ x, 2),  # elementwise results are never stored
        (lambda x: jax.jit(chain)(x) @ x, 2),
        (lambda x: jax.lax.map(lambda row: row @ x, x), 1 + 1 / SIZE),  # all rows, and one row inside
        (lambda x: jax.lax.cond(x[0, 0] > 0, chain, lambda x: x, x), 2),
    ],
)
def test_peak_of_a_program(function, matrices):
    assert peak(function, MATRIX) == pytest.approx(matrices, abs=0.02)


def layer(x, w):
    return jnp.sin(jnp.sin(x @ w) @ w), None


def gradient_of(layer):
    return jax.grad(lambda x, w: jax.lax.scan(layer, x, w)[0].sum())


def test_activations_wait_for_the_backward_pass_unless_they_are_recomputed():
    """A layer keeps two cosines for the gradient of its input; with remat its input alone."""
    depth = 40
    weights = jax.ShapeDtypeStruct((depth, SIZE, SIZE), jnp.float32)
    kept, recomputed = (peak(gradient_of(f), MATRIX, weights) for f in (layer, jax.checkpoint(layer)))
    assert 2 * depth <= kept <= 2 * depth + 10 and depth <= recomputed <= depth + 10
