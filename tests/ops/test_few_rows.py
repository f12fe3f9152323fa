import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.cpu.gemv import COMPILER_OPTIONS, ROWS, mix_few_rows, multiply_few_rows, multiply_rows


@pytest.mark.parametrize(
    ("num_rows", "lead", "shape"), [*itertools.product([1, 3, ROWS], [(), (2, 3)], [(64, 40), (7, 129), (12, 1)])]
)
def test_equals_the_product_in_float64(num_rows, lead, shape):
    rng = np.random.default_rng(num_rows)
    rows, matrix = (rng.normal(size=(*lead, *size)).astype(np.float32) for size in ((num_rows, shape[1]), shape))
    transposed = matrix.swapaxes(-1, -2)
    exact = rows.astype(np.float64) @ transposed.astype(np.float64)
    bound = 1e-6 * (np.abs(rows) @ np.abs(transposed))
    for options in (None, COMPILER_OPTIONS):
        product = jax.jit(multiply_few_rows, compiler_options=options)(rows, matrix)
        assert (np.abs(product - exact) <= bound).all()


@pytest.mark.parametrize(
    ("num_rows", "lead", "summed"), [*itertools.product([1, 3, ROWS], [(), (2, 3)], [64, 60, 13, 1])]
)
def test_a_mix_of_the_first_rows_equals_the_product_in_float64(num_rows, lead, summed):
    rng = np.random.default_rng(num_rows)
    weights, matrix = rng.normal(size=(*lead, num_rows, summed)), rng.normal(size=(*lead, 64, 40))
    matrix[..., summed:, :] = np.nan
    weights, matrix = weights.astype(np.float32), matrix.astype(np.float32)
    exact = weights.astype(np.float64) @ matrix[..., :summed, :].astype(np.float64)
    bound = 1e-6 * (np.abs(weights) @ np.abs(matrix[..., :summed, :]))
    for options in (None, COMPILER_OPTIONS):
        mix = jax.jit(mix_few_rows, compiler_options=options)(weights, matrix)
        assert (np.abs(mix - exact) <= bound).all()


def test_a_mix_does_not_write_as_much_as_it_reads():
    weights, matrix = jnp.ones((2, 1024)), jnp.ones((1024, 64))
    compiled = jax.jit(mix_few_rows, compiler_options=COMPILER_OPTIONS).lower(weights, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * matrix.nbytes / 4
    np.testing.assert_array_equal(compiled(weights, matrix), np.full((2, 64), 1024.0))


def test_what_the_rows_come_from_is_computed_once():
    """Inlined, XLA would take the exponentials of the rows again for each of the 64 sums."""

    def program(rows, matrix):
        return multiply_few_rows(2 * jnp.exp(rows) + 1, matrix)

    compiled = jax.jit(program, compiler_options=COMPILER_OPTIONS).lower(jnp.ones((4, 32)), jnp.ones((64, 32)))
    text = compiled.compile().as_text()
    assert " call(" in text
    sums = next(part for part in text.split("\n\n") if " reduce(" in part and "f32[64,32]" in part)
    assert "exponential" not in sums


def test_a_matrix_of_8_bits_is_not_written_in_another_dtype():
    rows, matrix = jnp.ones((2, 512)), jnp.ones((4096, 512), jnp.int8)
    compiled = jax.jit(multiply_few_rows, compiler_options=COMPILER_OPTIONS).lower(rows, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < matrix.nbytes / 10
    np.testing.assert_array_equal(compiled(rows, matrix), np.full((2, 4096), 512.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("num_rows", [1, ROWS, ROWS + 3, 4 * ROWS, 9 * ROWS])
def test_any_number_of_rows_and_any_dtype_of_the_matrix(num_rows, dtype):
    rng = np.random.default_rng(num_rows)
    rows, matrix = rng.normal(size=(num_rows, 40)).astype(np.float32), jnp.asarray(4 * rng.normal(size=(24, 40)), dtype)
    exact = rows.astype(np.float64) @ np.asarray(matrix, np.float64).T
    bound = 1e-6 * (np.abs(rows) @ np.abs(np.asarray(matrix, np.float32)).T)
    product = jax.jit(multiply_rows, compiler_options=COMPILER_OPTIONS)(rows, matrix)
    assert product.dtype == jnp.float32
    assert (np.abs(product - exact) <= bound).all()


def test_many_rows_convert_one_matrix_at_a_time():
    """XLA would convert all of them before the loop, and hold them."""
    rows = jnp.ones((9 * ROWS, 128))
    matrices = [jnp.ones((128, 128), jnp.bfloat16)] * 16  # arguments: equal constants would be one

    def program(rows, matrices):
        return jax.lax.fori_loop(0, 3, lambda _, x: functools.reduce(multiply_rows, matrices, x), rows)

    compiled = jax.jit(program, compiler_options=COMPILER_OPTIONS).lower(rows, matrices).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (4 * 128 * 128 + rows.nbytes)
