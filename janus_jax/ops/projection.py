"""The product of activations with a weight matrix, in every form in which a weight matrix may be stored.

Letters: I input features, O output features, R rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt32

from janus_jax.ops.cpu.gemv import multiply_row_major
from janus_jax.ops.layer_view import LayerView, values_of


class Weight(NamedTuple):
    """A weight matrix as it is stored. The matrix that it stands for is `matrix`, times `scale` where there is one."""

    # [O, I] if `row_major`, which may be a view; of the compute dtype, a wider one, or int8.
    matrix: Num[Array, "I O"] | Num[Array, "O I"] | LayerView
    scale: Float[Array, " O"] | None = None  # factor of each output feature, which int8 needs
    row_major: bool = False  # an output feature is a row in memory, as a CPU reads a matrix fastest


def project(x: Float[Array, "*B I"], weight: Weight) -> Float[Array, "*B O"]:
    """x @ weight in the dtype of x.

    Scales multiply the result of the product, which is the same as multiplying the matrix and needs no copy of it.
    """
    # One axis of rows: with more, XLA:CPU transposes the operands of the weight's gradient in memory (jaxlib 0.10.2).
    rows = x.reshape(-1, x.shape[-1])
    y = multiply_row_major(rows, weight.matrix) if weight.row_major else rows @ values_of(weight.matrix).astype(x.dtype)
    y = y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
    if weight.scale is None:
        return y
    return (y.astype(jnp.float32) * weight.scale).astype(x.dtype)


def project_low_rank(
    x: Float[Array, "*B I"], a: Float[Array, "I R"], b: Float[Array, "R O"], scale: Float[Array, ""]
) -> Float[Array, "*B O"]:
    """x @ a @ b * scale in the dtype of x: what an adapter adds to a product (LoRA, Hu et al. 2021, equation 3).

    The pair is not merged into its weight matrix, since the backward pass would then compute the gradient of the whole
    matrix.
    """
    rows = x.reshape(-1, x.shape[-1])
    low = ((rows @ a.astype(x.dtype)).astype(jnp.float32) * scale).astype(x.dtype)
    return (low @ b.astype(x.dtype)).reshape(*x.shape[:-1], b.shape[-1])


def drop_features(x: Float[Array, "*B I"], key: UInt32[Array, " K"], keep: Float[Array, ""]) -> Float[Array, "*B I"]:
    """Dropout: x / keep with probability `keep`, otherwise 0. `key` holds the data of a random key."""
    kept = jax.random.bernoulli(jax.random.wrap_key_data(key), keep, x.shape)
    return jnp.where(kept, x / keep.astype(x.dtype), 0)
