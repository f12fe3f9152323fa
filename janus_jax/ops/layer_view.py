"""One layer of an array that holds those of all layers: a loop over layers reads and writes it where it lies.

A scan would copy what it slices. With a view, the functions that read a matrix or a cache take the slice themselves,
inside the loop in which XLA:CPU reads it, so that nothing is copied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num


class LayerView(NamedTuple):
    """Layer `layer` of `stack`. Functions that take an array or a view of one get its values with `values_of`."""

    stack: Num[Array, "..."]  # the first axis is the layer
    layer: Int[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer."""
        return self.stack.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return self.stack.dtype


def values_of(array: Num[Array, "*shape"] | LayerView) -> Num[Array, "*shape"]:
    """The values of an array, or of the layer that a view shows."""
    if not isinstance(array, LayerView):
        return array
    stack, dtype = array.stack, array.dtype
    if dtype.itemsize == 2:
        # XLA:CPU slices bfloat16 as float32 and rounds the slice to bfloat16 again, in memory (jaxlib 0.10.2).
        stack = jax.lax.bitcast_convert_type(stack, jnp.uint16)
    start = (array.layer, *[0] * len(array.shape))
    values = jax.lax.dynamic_slice(stack, start, (1, *array.shape), allow_negative_indices=False)
    values = jax.lax.squeeze(values, (0,))
    return jax.lax.bitcast_convert_type(values, dtype) if dtype.itemsize == 2 else values


def write_slice(
    array: Num[Array, "*shape"] | LayerView, values: Num[Array, "*part"], start: Int[Array, ""] | int, axis: int
) -> Num[Array, "*shape"] | LayerView:
    """The array, or the view of a stack, in which `values` are written from index `start` of an axis on."""
    values = values.astype(array.dtype)
    if not isinstance(array, LayerView):
        return jax.lax.dynamic_update_slice_in_dim(array, values, start, axis)
    starts = [array.layer, *[0] * len(array.shape)]
    starts[axis + 1] = start
    return array._replace(stack=jax.lax.dynamic_update_slice(array.stack, values[None], starts))
