"""A layer is read and written where it lies in its stack: with the values of an index, and without a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.compiler_options import compiler_options
from janus_jax.ops.cpu.gemv import gemv_row_major, gemv_weighted_sum
from janus_jax.ops.layer_view import LayerView, look_up, values_of, write_places, write_slice
from janus_jax.ops.row_places import put

OPTIONS = compiler_options("decode", platform="cpu")


def stack_of(dtype, *shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) * 50, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_views_hold_what_an_index_gives(dtype):
    stack, rows = stack_of(dtype, 3, 5, 4), jnp.array([[4, 0], [2, 2]])
    for layer in range(3):
        view = LayerView(stack, jnp.int32(layer))
        assert view.shape == (5, 4) and view.dtype == stack.dtype
        np.testing.assert_array_equal(values_of(view), np.asarray(stack)[layer])
        np.testing.assert_array_equal(values_of(stack[layer]), np.asarray(stack)[layer])
        np.testing.assert_array_equal(look_up(stack[layer], rows), np.asarray(stack)[layer][rows])


def test_a_slice_is_written_to_one_layer_alone():
    stack, new = stack_of("float32", 3, 5, 4), jnp.arange(8.0).reshape(2, 4)
    expected = np.array(stack)
    expected[1, 2:4] = new
    np.testing.assert_array_equal(write_slice(LayerView(stack, jnp.int32(1)), new, 2, axis=0).stack, expected)
    np.testing.assert_array_equal(write_slice(stack[1], new, jnp.int32(2), axis=0), expected[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_row_is_written_at_places_of_its_own(dtype):
    """Two new values of three rows, of which one has no part: a loop over rows and places."""
    stack, new = stack_of(dtype, 2, 3, 4, 7), stack_of(dtype, 3, 4, 2)
    sources = np.array([[0, 1, 2, 3], [-2, -1, 0, 1], [2, 3, 4, 5]])
    expected = np.array(stack)
    for row, place in np.argwhere((sources >= 0) & (sources < 2)):
        expected[1, row, :, 3 + place] = new[row, :, sources[row, place]]
    np.testing.assert_array_equal(write_places(stack[1], new, jnp.int32(3), jnp.asarray(sources), axis=2), expected[1])
    view = write_places(LayerView(stack, jnp.int32(1)), new, jnp.int32(3), jnp.asarray(sources), axis=2)
    np.testing.assert_array_equal(view.stack, expected)
    flat = put(stack[0, :, 0, :4], new[:, 0], jnp.asarray(sources), axis=1)
    np.testing.assert_array_equal(flat[1], jnp.concatenate([stack[0, 1, 0, :2], new[1, 0]]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_loop_over_layers_copies_no_matrix(dtype):
    stack = stack_of(dtype, 4, 256, 256)

    def program(rows, stack):
        def body(layer, rows):
            view = LayerView(stack, layer)
            return jnp.tanh(gemv_row_major(rows, view) * 1e-3) + gemv_row_major(rows, view, layer * 64, 64).sum() * 1e-9

        return jax.lax.fori_loop(0, len(stack), body, rows)

    rows = np.random.default_rng(1).normal(size=(2, 256)).astype(np.float32)
    compiled = jax.jit(program, compiler_options=OPTIONS).lower(rows, stack).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < stack[0].nbytes / 2
    expected = rows.astype(np.float64)
    for layer, matrix in enumerate(np.asarray(stack).astype(np.float64)):
        part = matrix[layer * 64 : layer * 64 + 64]
        expected = np.tanh(expected @ matrix.T * 1e-3) + (expected @ part.T).sum() * 1e-9
    np.testing.assert_allclose(compiled(rows, stack), expected, rtol=0, atol=1e-5)


def test_a_part_of_a_cache_is_added_up_where_it_lies():
    stack, weights = stack_of("float32", 2, 3, 128, 8), np.random.default_rng(2).normal(size=(3, 1, 32))
    total = gemv_weighted_sum(jnp.asarray(weights, jnp.float32), LayerView(stack, jnp.int32(1)), jnp.int32(64))
    np.testing.assert_allclose(total, weights @ np.asarray(stack, np.float64)[1, :, 64:96], rtol=1e-5, atol=1e-3)


def test_looking_rows_up_does_not_convert_the_table():
    table = stack_of("bfloat16", 4096, 64)
    compiled = jax.jit(look_up, compiler_options=OPTIONS).lower(table, jnp.zeros(3, jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < table.nbytes / 10
