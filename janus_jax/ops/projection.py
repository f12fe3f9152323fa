"""The product of activations with a weight matrix, in every form in which a weight matrix may be stored.

Letters: I input features, O output features.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from janus_jax.ops.cpu.gemv import multiply_row_major


class Weight(NamedTuple):
    """A weight matrix as it is stored. The matrix that it stands for is `matrix`, times `scale` where there is one."""

    matrix: Num[Array, "I O"] | Num[Array, "O I"]  # [O, I] if `row_major`; of the compute dtype, a wider one, or int8
    scale: Float[Array, " O"] | None = None  # factor of each output feature, which int8 needs
    row_major: bool = False  # an output feature is a row in memory, as a CPU reads a matrix fastest


def project(x: Float[Array, "*B I"], weight: Weight) -> Float[Array, "*B O"]:
    """x @ weight in the dtype of x.

    Scales multiply the result of the product, which is the same as multiplying the matrix and needs no copy of it.
    """
    # One axis of rows: with more, XLA:CPU transposes the operands of the weight's gradient in memory (jaxlib 0.10.2).
    rows = x.reshape(-1, x.shape[-1])
    y = multiply_row_major(rows, weight.matrix) if weight.row_major else rows @ weight.matrix.astype(x.dtype)
    y = y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
    if weight.scale is None:
        return y
    return (y.astype(jnp.float32) * weight.scale).astype(x.dtype)
