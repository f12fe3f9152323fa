"""Peaks of small programs, counted by hand in matrices of one size."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from janus_jax.training.liveness import peak_bytes

SIZE = 16
MATRIX = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
BYTES = SIZE * SIZE * 4
DEPTH = 16
STACK = jax.ShapeDtypeStruct((DEPTH, SIZE, SIZE), jnp.float32)


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


def test_what_nobody_reads_is_not_computed():
    def unused_product(x, stack):
        total, _ = jax.lax.scan(lambda sums, w: ((sums[0] + x @ w, sums[1] + jnp.sin(x @ w)), None), (x, x), stack)
        return total[0]

    assert peak(unused_product, MATRIX, STACK) == pytest.approx(1, abs=0.02)  # one sum, to which products are added


def test_a_loop_updates_in_place_what_it_carries():
    """A sum of products needs no room for the product; one of what another loop makes does."""

    def total(product):
        return lambda x, stack: jax.lax.scan(lambda sum, w: (sum + product(x, w), None), x, stack)[0]

    assert peak(total(jnp.matmul), MATRIX, STACK) == pytest.approx(1, abs=0.02)
    assert peak(total(lambda x, w: jnp.cumsum(x @ w, axis=0)), MATRIX, STACK) == pytest.approx(3, abs=0.02)


def test_a_loop_adds_up_whole_arrays_and_scatters_their_sum():
    """Beside a product and its shard there is a whole sum; without a loop that sums, only the shard of the sum."""

    def total(scattered):
        def function(x, stack):
            zeros = jnp.zeros((SIZE // 4, SIZE), jnp.bfloat16)

            def add(sums, w):
                return sums + scattered(x @ w).astype(jnp.bfloat16), None

            return jax.lax.scan(add, zeros, stack)[0]

        return peak_bytes(jax.make_jaxpr(function, axis_env=[("devices", 4)])(MATRIX, STACK).jaxpr) / BYTES

    shard, whole = 1 / 8, 1 / 2  # in bfloat16
    scatter = partial(jax.lax.psum_scatter, axis_name="devices", tiled=True)
    assert total(scatter) == pytest.approx(whole + 1 + 1 / 4, abs=0.02)
    assert total(lambda x: jnp.cumsum(scatter(x), axis=0)) == pytest.approx(shard + 1 + 1 / 4, abs=0.02)


def test_the_cast_of_a_stack_that_loops_slice_is_kept_from_the_first_loop_to_the_last():
    """For the gradient, sixteen layers in bfloat16 wait with sixteen activations and sixteen gradients."""

    def layer(x, w):
        return x @ w.astype(jnp.bfloat16), None

    narrow = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16)
    forward = peak(lambda x, stack: jax.lax.scan(layer, x, stack)[0], narrow, STACK)
    assert forward == pytest.approx(DEPTH / 2 + 2 * 0.5, abs=0.02)  # and two activations, of this layer and the next
    gradient = jax.grad(lambda x, stack: jax.lax.scan(layer, x, stack)[0].astype(jnp.float32).sum(), argnums=(0, 1))
    assert DEPTH * (0.5 + 0.5 + 1) <= peak(gradient, narrow, STACK) <= DEPTH * (0.5 + 0.5 + 1) + 3
