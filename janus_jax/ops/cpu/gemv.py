"""Products of a few rows with a large matrix, at the speed at which a CPU reads the matrix from memory.

XLA:CPU has no such product (jaxlib 0.10.2). Its matrix library first copies the matrix into tiles, which pays off only
for many rows. The functions here read a few rows of the matrix at a time and use each for all rows of the other factor:
for rows @ matrix^T by up to 32 sums at once, for weights @ matrix by adding the weighted rows up.

They need the options of `compiler_options` for CPUs. Without them the results are right, but slow.

Letters: R rows of the small factor, M N rows of the matrix that exist and that are read, K columns of the matrix.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from janus_jax.ops.layer_view import LayerView, values_of
from janus_jax.ops.noinline import noinline

MAX_ROWS = 8  # rows of the small factor
# Sums at once: as many as AVX-512 has vector registers. Eight rows took 0.7 to 0.95 times the processor time that they
# take with 16, and more with 64 (two busy CPU cores, jaxlib 0.10.2).
MAX_SUMS = 32
MAX_MATRIX_ROWS = 8  # rows of the matrix that are read at once
# Rows of the matrix that a weighted sum adds up before it writes anything. 144 to 576 rows of 128 columns took 0.3 to
# 0.5 times the processor time that they take with 8 (two busy CPU cores, jaxlib 0.10.2), and with more no less.
MAX_SUMMED_ROWS = 64
# A product of more than MAX_ROWS rows reads the matrix once per MAX_ROWS rows. Up to this number of bytes per element
# of the matrix that is faster than converting the matrix to float32.
MAX_BYTES_READ = 8
# Elements of the largest matrix that XLA multiplies with any number of rows above 1. It stays in the cache of a core,
# so that only the compiler's time counts, which is a fifth (measured on two CPU cores with jaxlib 0.10.2).
SMALL_MATRIX = 1 << 17


def multiply_row_major(rows: Float[Array, "R K"], matrix: Num[Array, "N K"] | LayerView) -> Float[Array, "R N"]:
    """rows @ matrix^T in float32, for any number of rows and a matrix of any dtype."""
    rows = rows.astype(jnp.float32)
    num_rows = len(rows)
    small = num_rows > 1 and math.prod(matrix.shape) <= SMALL_MATRIX
    if small or num_rows * matrix.dtype.itemsize > MAX_ROWS * MAX_BYTES_READ:
        return _multiply_by_xla(rows, matrix)
    if num_rows <= MAX_ROWS:
        return gemv_row_major(rows, matrix)
    blocks = jnp.pad(rows, ((0, -num_rows % MAX_ROWS), (0, 0))).reshape(-1, MAX_ROWS, rows.shape[1])
    products = jax.lax.map(lambda block: gemv_row_major(block, matrix), blocks)
    return products.reshape(-1, matrix.shape[0])[:num_rows]


# A separate function: XLA would otherwise convert all weight matrices at the start of the program and keep all
# converted copies in memory (seen with jaxlib 0.10.2).
@noinline
def _multiply_by_xla(rows: jax.Array, matrix: jax.Array | LayerView) -> jax.Array:
    return jax.lax.dot_general(rows, values_of(matrix).astype(jnp.float32), (((1,), (1,)), ((), ())))


def gemv_row_major(
    rows: Float[Array, "*B R K"],
    matrix: Num[Array, "*B M K"] | LayerView,
    start: Int[Array, ""] | int = 0,
    size: int | None = None,
) -> Float[Array, "*B R N"]:
    """rows @ matrix[start : start + size]^T in the dtype of the rows, for at most `MAX_ROWS` rows.

    Args:
        matrix: may have fewer bits than the rows; it is converted while it is read and never copied.
        size: number of rows of the matrix that are read, N; None reads all.
    """
    return _gemv_row_major(rows, matrix, start, matrix.shape[-2] if size is None else size)


# A separate function: XLA would otherwise compute `rows` from their own inputs again for each of the N sums.
@functools.partial(noinline, static_argnames="size")
def _gemv_row_major(rows: jax.Array, matrix: jax.Array | LayerView, start: jax.Array | int, size: int) -> jax.Array:
    matrix = _rows_of(matrix, start, size)
    num_rows, (*lead, num_columns, contracted) = rows.shape[-2], matrix.shape
    read = max(n for n in range(1, min(MAX_MATRIX_ROWS, MAX_SUMS // num_rows) + 1) if num_columns % n == 0)
    # The rows that are read together lie far apart, because a core prefetches one address stream per page of memory.
    parts = matrix.reshape(*lead, read, -1, contracted).astype(rows.dtype)  # fused: the conversion is never written
    products = [parts[..., i, :, :] * rows[..., j, None, :] for j in range(num_rows) for i in range(read)]
    zeros = [jnp.zeros((), rows.dtype)] * len(products)
    sums = jax.lax.reduce(products, zeros, lambda x, y: [a + b for a, b in zip(x, y, strict=True)], (len(lead) + 1,))
    return jnp.stack(sums, len(lead)).reshape(*lead, num_rows, num_columns)


def gemv_weighted_sum(
    weights: Float[Array, "*B R N"], matrix: Float[Array, "*B M K"] | LayerView, start: Int[Array, ""] | int = 0
) -> Float[Array, "*B R K"]:
    """weights @ matrix[start : start + N], for at most `MAX_ROWS` rows of weights; other rows of it are not read."""
    return _partial_sums(weights, matrix, start).sum(-2)


# A separate function, whose partial sums are written to memory: if XLA added them up in the same loop, that loop would
# walk along the columns of the matrix.
@noinline
def _partial_sums(weights: jax.Array, matrix: jax.Array | LayerView, start: jax.Array | int) -> jax.Array:
    """Sums over a few rows of the matrix each, [*B, R, N / read, K]."""
    *lead, num_rows, summed = weights.shape
    read = max(n for n in range(1, MAX_SUMMED_ROWS + 1) if summed % n == 0)
    parts = _rows_of(matrix, start, summed).reshape(*lead, 1, -1, read, matrix.shape[-1])
    weights = weights.reshape(*lead, num_rows, -1, read, 1)
    return functools.reduce(jnp.add, [weights[..., i, :] * parts[..., i, :] for i in range(read)])


def _rows_of(matrix: jax.Array | LayerView, start: jax.Array | int, size: int) -> jax.Array:
    """matrix[start : start + size]."""
    values = values_of(matrix)
    if size == values.shape[-2]:
        return values
    starts: list[Any] = [0] * values.ndim
    starts[-2] = start
    return jax.lax.dynamic_slice(
        values, starts, (*values.shape[:-2], size, values.shape[-1]), allow_negative_indices=False
    )
