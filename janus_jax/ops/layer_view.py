"""One layer of an array that holds those of all layers: a loop over layers reads and writes it where it lies.

A scan would copy what it slices. With a view, the functions that read a matrix or a cache take the slice themselves,
inside the loop in which XLA:CPU reads it, so that nothing is copied.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from janus_jax.ops.row_places import put


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
    start: tuple[Any, ...] = (array.layer, *[0] * len(array.shape))
    values = jax.lax.dynamic_slice(_bits(array.stack), start, (1, *array.shape), allow_negative_indices=False)
    return _from_bits(jax.lax.squeeze(values, (0,)), array.dtype)


def look_up(table: Num[Array, "N D"], rows: Int[Array, "*B"]) -> Num[Array, "*B D"]:
    """table[rows], without a gradient: no other row is read or converted."""
    return _from_bits(jnp.take(_bits(table), rows, axis=0), table.dtype)


def write_slice(
    array: Num[Array, "*shape"] | LayerView, values: Num[Array, "*part"], start: Int[Array, ""] | int, axis: int
) -> Num[Array, "*shape"] | LayerView:
    """The array, or the view of a stack, in which `values` are written from index `start` of an axis on."""
    values = values.astype(array.dtype)
    if not isinstance(array, LayerView):
        return jax.lax.dynamic_update_slice_in_dim(array, values, start, axis)
    starts: list[Any] = [array.layer, *[0] * len(array.shape)]
    starts[axis + 1] = start
    return array._replace(stack=jax.lax.dynamic_update_slice(array.stack, values[None], starts))


def write_places(
    array: Num[Array, "*shape"] | LayerView,
    values: Num[Array, "*part"],
    start: Int[Array, ""] | int,
    sources: Int[Array, "B P"],
    axis: int,
) -> Num[Array, "*shape"] | LayerView:
    """`write_slice` that writes other places in each row: P from `start` on are read, changed by `put`, and written."""
    offsets: list[Any] = [0] * len(array.shape)
    offsets[axis] = start
    sizes = [*array.shape]
    sizes[axis] = sources.shape[1]
    if isinstance(array, LayerView):
        block = jax.lax.dynamic_slice(array.stack, [array.layer, *offsets], [1, *sizes])[0]
    else:
        block = jax.lax.dynamic_slice(array, offsets, sizes)
    return write_slice(array, put(block, values.astype(array.dtype), sources, axis), start, axis)


# XLA:CPU slices and gathers bfloat16 as float32: it converts all of the operand, and rounds the result to bfloat16
# again (jaxlib 0.10.2). It leaves whole numbers as they are.
def _bits(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(values, jnp.uint16) if values.dtype.itemsize == 2 else values


def _from_bits(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return bits if bits.dtype == dtype else jax.lax.bitcast_convert_type(bits, dtype)
