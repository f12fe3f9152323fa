"""Writing values at places that differ from row to row.

Letters: B rows, P places, T values of a row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num


def put(
    old: Num[Array, "*shape"], new: Num[Array, "*part"], sources: Int[Array, "B P"], axis: int
) -> Num[Array, "*shape"]:
    """Place p of row b gets the new value number `sources[b, p]`, or keeps the old one where there is none.

    The values are compared with, not looked up: a TPU gathers row by row.

    Args:
        old, new: with B rows as their first axis; `old` has P places along `axis`, `new` has T.
    """
    shape = [1] * old.ndim
    shape[0], shape[axis] = sources.shape
    numbers = sources.reshape(shape)
    for i in range(new.shape[axis]):
        old = jnp.where(numbers == i, jax.lax.slice_in_dim(new, i, i + 1, axis=axis), old)
    return old
