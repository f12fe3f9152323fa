"""Products of a few rows and a large matrix on a CPU, at the speed at which the matrix is read.

XLA:CPU has no such products. Its matrix libraries first copy the matrix into tiles, which pays off for many rows. Here
some rows of the matrix are read at a time. For rows @ matrix^T each is multiplied with all rows that are given: up to
16 sums at once, which LLVM holds in registers. For weights @ matrix their weighted sum is taken.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from janus_jax.ops.noinline import outlined

ROWS = 8  # the most
SUMS = 16  # at once: half of the vector registers of AVX-512
READ = 8  # at most so many rows of the matrix at once
MOST_BYTES = 8  # to read of a matrix for each of its numbers, by reading it again for every `ROWS` rows

# For `jax.jit` of a program with such products. With fast math a sum may be computed in parts, one per lane
# of a vector; without it the product is right, and slow. LLVM takes the longest vectors, where the processor has them,
# only if asked. libtpu takes both options, and has no use for them; no GPU was tried.
COMPILER_OPTIONS = {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}


def multiply_rows(rows: Float[Array, "R K"], matrix: Num[Array, "N K"]) -> Float[Array, "R N"]:
    """rows @ matrix^T in float32, of any number of rows and a matrix of any dtype."""
    rows = rows.astype(jnp.float32)
    num_rows = len(rows)
    if num_rows <= ROWS:
        return multiply_few_rows(rows, matrix)
    if num_rows * matrix.dtype.itemsize > ROWS * MOST_BYTES:
        return _product_of_many(rows, matrix)
    blocks = jnp.pad(rows, ((0, -num_rows % ROWS), (0, 0))).reshape(-1, ROWS, rows.shape[1])
    products = jax.lax.map(lambda block: multiply_few_rows(block, matrix), blocks)
    return products.reshape(-1, len(matrix))[:num_rows]


# Or XLA would first convert all matrices of a program, and hold them.
@outlined
def _product_of_many(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    return jax.lax.dot_general(rows, matrix.astype(jnp.float32), (((1,), (1,)), ((), ())))


def multiply_few_rows(
    rows: Float[Array, "*B R K"], matrix: Num[Array, "*B M K"], size: int | None = None
) -> Float[Array, "*B R N"]:
    """rows @ matrix^T in the dtype of the rows, of at most `ROWS` rows; a matrix of fewer bits is read as it is.

    Args:
        size: N, the first rows of the matrix, which alone are read; None for all.
    """
    return _products(rows, matrix, matrix.shape[-2] if size is None else size)


# Or XLA would compute what the rows come from again for each of N sums.
@functools.partial(outlined, static_argnames="size")
def _products(rows: jax.Array, matrix: jax.Array, size: int) -> jax.Array:
    matrix = matrix[..., :size, :]
    num_rows, (*lead, num_columns, contracted) = rows.shape[-2], matrix.shape
    read = max(n for n in range(1, min(READ, SUMS // num_rows) + 1) if num_columns % n == 0)
    # From places far apart: a core reads ahead of only one place in a page of memory.
    parts = matrix.reshape(*lead, read, -1, contracted).astype(rows.dtype)  # on the way: nothing is written
    products = [parts[..., i, :, :] * rows[..., j, None, :] for j in range(num_rows) for i in range(read)]
    zeros = [jnp.zeros((), rows.dtype)] * len(products)
    sums = jax.lax.reduce(products, zeros, lambda x, y: [a + b for a, b in zip(x, y, strict=True)], (len(lead) + 1,))
    return jnp.stack(sums, len(lead)).reshape(*lead, num_rows, num_columns)


def mix_few_rows(weights: Float[Array, "*B R N"], matrix: Float[Array, "*B M K"]) -> Float[Array, "*B R K"]:
    """weights @ matrix[:N], of at most `ROWS` rows; only the first N rows of the matrix are read."""
    return _sums_of_rows(weights, matrix).sum(-2)


# Sums of a few rows each, which are written: to go on adding in the same loop, XLA would walk along columns.
@outlined
def _sums_of_rows(weights: jax.Array, matrix: jax.Array) -> jax.Array:
    """[*B, R, N / read, K]."""
    *lead, num_rows, summed = weights.shape
    read = max(n for n in range(1, READ + 1) if summed % n == 0)
    parts = matrix[..., :summed, :].reshape(*lead, 1, -1, read, matrix.shape[-1])
    weights = weights.reshape(*lead, num_rows, -1, read, 1)
    return functools.reduce(jnp.add, [weights[..., i, :] * parts[..., i, :] for i in range(read)])
