import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.compiler_options import compiler_options
from janus_jax.ops.cpu import gemv
from janus_jax.ops.cpu.gemv import MAX_ROWS, gemv_row_major, gemv_weighted_sum, multiply_row_major

OPTIONS = compiler_options("decode", platform="cpu")
# One, some and the most rows, with and without leading axes; matrices whose number of rows is even, odd and one.
SHAPES = [
    (1, (), (64, 40)),
    (3, (2, 3), (7, 129)),
    (MAX_ROWS, (), (12, 1)),
    (MAX_ROWS, (2, 3), (64, 40)),
    (1, (), (1, 129)),
]


@pytest.mark.parametrize(("num_rows", "lead", "shape"), SHAPES)
def test_rows_times_the_transposed_matrix_equal_float64(num_rows, lead, shape):
    rng = np.random.default_rng(num_rows)
    rows, matrix = (rng.normal(size=(*lead, *size)).astype(np.float32) for size in ((num_rows, shape[1]), shape))
    transposed = matrix.swapaxes(-1, -2)
    exact = rows.astype(np.float64) @ transposed.astype(np.float64)
    bound = 1e-6 * (np.abs(rows) @ np.abs(transposed))
    for options in (None, OPTIONS):
        product = jax.jit(gemv_row_major, compiler_options=options)(rows, matrix)
        assert (np.abs(product - exact) <= bound).all()


@pytest.mark.parametrize(
    ("num_rows", "lead", "summed"),
    [(1, (), 64), (3, (2, 3), 60), (MAX_ROWS, (), 13), (MAX_ROWS, (2, 3), 64), (3, (), 1)],
)
def test_a_weighted_sum_of_the_first_rows_equals_float64(num_rows, lead, summed):
    rng = np.random.default_rng(num_rows)
    weights, matrix = rng.normal(size=(*lead, num_rows, summed)), rng.normal(size=(*lead, 64, 40))
    matrix[..., summed:, :] = np.nan
    weights, matrix = weights.astype(np.float32), matrix.astype(np.float32)
    exact = weights.astype(np.float64) @ matrix[..., :summed, :].astype(np.float64)
    bound = 1e-6 * (np.abs(weights) @ np.abs(matrix[..., :summed, :]))
    for options in (None, OPTIONS):
        mix = jax.jit(gemv_weighted_sum, compiler_options=options)(weights, matrix)
        assert (np.abs(mix - exact) <= bound).all()


def test_a_weighted_sum_writes_less_than_it_reads():
    weights, matrix = jnp.ones((2, 1024)), jnp.ones((1024, 64))
    compiled = jax.jit(gemv_weighted_sum, compiler_options=OPTIONS).lower(weights, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * matrix.nbytes / 4
    np.testing.assert_array_equal(compiled(weights, matrix), np.full((2, 64), 1024.0))


def test_what_the_rows_come_from_is_computed_once():
    """Inlined, XLA would compute the exponentials of the rows again for each of the 64 sums."""

    def program(rows, matrix):
        return gemv_row_major(2 * jnp.exp(rows) + 1, matrix)

    compiled = jax.jit(program, compiler_options=OPTIONS).lower(jnp.ones((4, 32)), jnp.ones((64, 32)))
    text = compiled.compile().as_text()
    assert " call(" in text
    sums = next(part for part in text.split("\n\n") if " reduce(" in part and "f32[64,32]" in part)
    assert "exponential" not in sums


def test_an_int8_matrix_is_not_written_in_another_dtype():
    rows, matrix = jnp.ones((2, 512)), jnp.ones((4096, 512), jnp.int8)
    compiled = jax.jit(gemv_row_major, compiler_options=OPTIONS).lower(rows, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < matrix.nbytes / 10
    np.testing.assert_array_equal(compiled(rows, matrix), np.full((2, 4096), 512.0))


@pytest.mark.parametrize(
    ("num_rows", "dtype"),  # one block, several, and so many that the matrix is converted, for every size of an element
    [
        *[(num_rows, dtype) for num_rows in (MAX_ROWS + 3, 9 * MAX_ROWS) for dtype in ("float32", "bfloat16", "int8")],
        (1, "float16"),
        (4 * MAX_ROWS, "float16"),
    ],
)
@pytest.mark.parametrize("small", [False, True])
def test_any_number_of_rows_and_any_dtype_of_the_matrix(num_rows, dtype, small, monkeypatch):
    monkeypatch.setattr(gemv, "SMALL_MATRIX", 24 * 40 if small else 0)
    rng = np.random.default_rng(num_rows)
    rows, matrix = rng.normal(size=(num_rows, 40)).astype(np.float32), jnp.asarray(4 * rng.normal(size=(24, 40)), dtype)
    exact = rows.astype(np.float64) @ np.asarray(matrix, np.float64).T
    bound = 1e-6 * (np.abs(rows) @ np.abs(np.asarray(matrix, np.float32)).T)
    product = jax.jit(lambda *operands: multiply_row_major(*operands), compiler_options=OPTIONS)(rows, matrix)
    assert product.dtype == jnp.float32
    assert (np.abs(product - exact) <= bound).all()


def test_many_rows_convert_one_matrix_at_a_time():
    """Inlined, XLA would convert all of them before the loop and keep all converted copies."""
    rows = jnp.ones((9 * MAX_ROWS, 128))
    matrices = [jnp.ones((128, 128), jnp.bfloat16)] * 16  # arguments, since equal constants would become one

    def program(rows, matrices):
        return jax.lax.fori_loop(0, 3, lambda _, x: functools.reduce(multiply_row_major, matrices, x), rows)

    compiled = jax.jit(program, compiler_options=OPTIONS).lower(rows, matrices).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (4 * 128 * 128 + rows.nbytes)
