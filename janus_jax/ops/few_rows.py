"""The product of a few rows and a large matrix on a CPU, at the speed at which the matrix is read.

XLA:CPU has no such product. Its matrix libraries first copy the matrix into tiles, which pays off for many rows: for 2
rows of width 2048 they take 1.8 times as long as this, for 8 rows of width 512 twice. Here eight sums run over each
row of the matrix at once, which LLVM holds in registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float, Num

FIRST_CACHE = 32 << 10  # bytes, of the cores of today
SUMS = 8  # at once: half of the vector registers of AVX2; the most rows, too

# For `jax.jit` of a program that calls `multiply_few_rows`: a sum may be computed in parts, one per lane of a vector.
# Without it the product is right, and slow. libtpu takes the option too, and has no use for it; no GPU was tried.
COMPILER_OPTIONS = {"xla_cpu_enable_fast_math": True}


def multiply_few_rows(
    rows: Float[Array, "*B R K"], matrix: Num[Array, "*B M L"], size: tuple[int, int] | None = None
) -> Float[Array, "*B R N"]:
    """rows @ matrix^T in the dtype of the rows, of at most `SUMS` rows; a matrix of 8 bits is read as it is.

    Args:
        size: (N, K) of the matrix's first corner, which alone is read; None for the whole of it.
    """
    # A function of its own also when compiled, or XLA would compute what the rows come from again for each of N sums.
    with set_xla_metadata(inlineable="false"):
        return _products(rows, matrix, matrix.shape[-2:] if size is None else size)


@functools.partial(jax.jit, static_argnames="size")
def _products(rows: jax.Array, matrix: jax.Array, size: tuple[int, int]) -> jax.Array:
    matrix = matrix[..., : size[0], : size[1]]
    num_rows, (*lead, num_columns, contracted) = rows.shape[-2], matrix.shape
    # Many or long rows would be read from the second cache for each row of the matrix: then two by two, for more of it.
    too_long = num_rows * contracted * rows.dtype.itemsize > FIRST_CACHE
    block = 2 if too_long and num_rows % 2 == 0 else num_rows
    together = max(n for n in range(1, SUMS // block + 1) if num_columns % n == 0)  # rows of the matrix
    groups = matrix.reshape(*lead, -1, 1, together, contracted).astype(rows.dtype)  # on the way: nothing is written
    blocks = rows.reshape(*lead, 1, -1, block, contracted)
    products = [groups[..., i, :] * blocks[..., j, :] for j in range(block) for i in range(together)]
    zeros = [jnp.zeros((), rows.dtype)] * len(products)
    sums = jax.lax.reduce(products, zeros, lambda x, y: [a + b for a, b in zip(x, y, strict=True)], (len(lead) + 2,))
    sums = jnp.stack(sums, -1).reshape(*lead, -1, num_rows // block, block, together)
    return jnp.moveaxis(sums, -4, -2).reshape(*lead, num_rows, num_columns)
