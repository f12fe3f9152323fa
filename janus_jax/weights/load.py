"""The one loop that loads parameters: it reads slice by slice, casts, stacks, transposes, quantises and places them.

Besides the result, at most one slice is in memory.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.params import Params, unflatten
from janus_jax.models.scan_layers import is_stacked, unstacked_path
from janus_jax.phases import phase
from janus_jax.weights.quantization import is_quantized, quantize, scale_path
from janus_jax.weights.reader import TensorReader, TensorSlice, slices_of
from janus_jax.weights.weight_layout import is_row_major, keeps_dtype, transposed_path

ALIGNMENT = 64  # bytes
BLOCK_BYTES = 16 * 2**20  # bytes of a parameter that are cast at once
_FLOATING = ("float32", "bfloat16", "float16", "float64")


def load_params(
    reader: TensorReader,
    dtype: DTypeLike | None = None,
    *,
    unrolled: bool = False,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    quantization: str | None = None,
    transposed: bool = False,
    select: Callable[[str], bool] = lambda path: True,
) -> Params:
    """Loads parameters as a nested dict of arrays.

    Args:
        dtype: the dtype of the result; None keeps the stored one (float32 for stored float64).
        unrolled: gives each layer parameters of its own ("layers_0", "layers_1", ...) instead of stacking them.
        shardings: the sharding of each array by its path in the result; None puts all on the default device.
        quantization: "int8" stores the weight matrices of the language model and its heads as int8 with scales
            (`weights.quantization`).
        transposed: stores weight matrices transposed, and in the stored dtype where `dtype` is a wider one
            (`weights.weight_layout`).
        select: tells by its path in the reader whether a parameter is loaded.

    Raises:
        UserError: a value is too large for the dtype, or a file is damaged.
    """
    loaded: dict[str, jax.Array] = {}
    paths = list(filter(select, reader.parameters))
    with phase("reading weights", sum(reader.parameters[path].nbytes for path in paths), "B") as advance:
        for path in paths:
            info, stacked = reader.parameters[path], is_stacked(path) and not unrolled
            form, parts = _form(path, info.dtype, dtype, quantization, transposed), slices_of(path, info)
            stacks: dict[str, np.ndarray] = {}
            for index, part in enumerate(parts):
                for name, values in _read_forms(reader, form, part).items():
                    kind = form.dtype if name == form.name else values.dtype
                    if stacked:
                        if name not in stacks:
                            stacks[name] = _aligned((len(parts), *values.shape), kind)
                        _fill(stacks[name][index], values, path)
                    else:
                        name = name if part.layer is None else unstacked_path(name, part.layer)
                        # A copy, since the reader may return a view of a larger array, which would stay in memory too.
                        copied = _aligned(values.shape, kind)
                        _fill(copied, values, path)
                        loaded[name] = _place(name, copied, shardings)
                advance(info.nbytes // len(parts))
            loaded |= {name: _place(name, values, shardings) for name, values in stacks.items()}
    return unflatten(loaded)


def loaded_shapes(
    reader: TensorReader,
    dtype: DTypeLike,
    *,
    unrolled: bool = False,
    quantization: str | None = None,
    transposed: bool = False,
) -> Params:
    """Shapes and dtypes of what `load_params` returns with these options, without reading any values."""
    result: dict[str, jax.ShapeDtypeStruct] = {}
    for path, info in reader.parameters.items():
        form = _form(path, info.dtype, dtype, quantization, transposed)
        shape = (*info.shape[:-2], *info.shape[:-3:-1]) if form.transposed else info.shape
        shapes = {form.name: (shape, form.dtype)}
        if form.quantized:
            shapes[scale_path(path)] = ((*info.shape[:-2], info.shape[-1]), np.dtype(np.float32))
        for name, (shape, kind) in shapes.items():
            if is_stacked(path) and unrolled:
                for layer in range(shape[0]):
                    result[unstacked_path(name, layer)] = jax.ShapeDtypeStruct(shape[1:], kind)
            else:
                result[name] = jax.ShapeDtypeStruct(shape, kind)
    return unflatten(result)


def read_param(reader: TensorReader, path: str, dtype: DTypeLike) -> np.ndarray:
    """One parameter in host memory, its layers stacked. Raises UserError for a value that is too large for `dtype`."""
    target, info = np.dtype(dtype), reader.parameters[path]
    slices = slices_of(path, info)
    if not is_stacked(path):
        return cast(reader.read(slices[0]), target, path)
    stacked = np.empty(info.shape, target)
    for index, part in enumerate(slices):
        stacked[index] = cast(reader.read(part), target, path)
    return stacked


def floating_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype of a user's option. Raises UserError for anything but the floating-point ones that files can hold."""
    expected = f"expected a floating-point one: {', '.join(_FLOATING)}"
    try:
        known = np.dtype(dtype)
    except TypeError as error:
        raise UserError(f"dtype={dtype!r} is not known, {expected}") from error
    if known.name not in _FLOATING:
        raise UserError(f"dtype={known.name}, {expected}")
    return known


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Converts values, without a copy where nothing changes.

    Raises:
        UserError: a finite value is too large for the new dtype, which often happens with float16; names `name`.
    """
    with np.errstate(over="ignore"):
        converted = values.astype(dtype, copy=False)
    narrowed = jnp.promote_types(values.dtype, dtype) != dtype
    if narrowed and np.isinf(converted).sum() > np.isinf(values).sum():
        raise UserError(f"{name}: holds values over {float(jnp.finfo(dtype).max):g}, the largest of {dtype}")
    return converted


class _Form(NamedTuple):
    """How a parameter is stored in the result."""

    name: str  # its path
    dtype: np.dtype
    transposed: bool
    quantized: bool  # whether it has scales at `scale_path`


def _form(path: str, stored: np.dtype, dtype: DTypeLike | None, quantization: str | None, transposed: bool) -> _Form:
    target = jax.dtypes.canonicalize_dtype(stored if dtype is None else dtype)
    kept, transposed = transposed and keeps_dtype(path), transposed and is_row_major(path)
    quantized = quantization is not None and is_quantized(path)
    if quantized:
        target = np.dtype(np.int8)
    elif kept and jnp.promote_types(stored, target) == target:
        target = stored  # exact, and less memory to hold and to read
    return _Form(transposed_path(path) if transposed else path, target, transposed, quantized)


def _read_forms(reader: TensorReader, form: _Form, part: TensorSlice) -> dict[str, np.ndarray]:
    """The arrays that stand for a slice in the result, by the path of its parameter there, before they are cast."""
    path, values, scales = part.path, reader.read(part), {}
    if form.quantized:
        wide = values.dtype.itemsize > np.dtype(np.float32).itemsize
        values, scale = quantize(cast(values, np.dtype(np.float32), path) if wide else values)
        scales = {scale_path(path): scale}
    return {form.name: values.T if form.transposed else values} | scales


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any values, in memory that `jax.device_put` takes for a CPU without a copy (jax 0.10.2)."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, values: np.ndarray, path: str) -> None:
    """Casts values to the dtype of an array and writes them to it, block by block. Raises the error of `cast`."""
    target, values = np.atleast_1d(target), np.atleast_1d(values)  # views
    step = max(1, BLOCK_BYTES * len(target) // max(1, target.nbytes))
    for start in range(0, len(target), step):
        block = slice(start, start + step)
        target[block] = cast(values[block], target.dtype, path)


def _place(path: str, values: np.ndarray, shardings: Mapping[str, jax.sharding.Sharding] | None) -> jax.Array:
    """The values on the devices of their sharding, or on the default device. The result may share their memory."""
    if shardings is None:
        return jax.device_put(values)  # unlike `jnp.asarray`, it compiles no program for each shape
    return jax.make_array_from_callback(values.shape, shardings[path], lambda index: values[index])
