"""The one loop that loads parameters: it reads slice by slice, casts, stacks, transposes, quantises and places them.

Besides the result, at most one slice is in memory, or one parameter where layers are stacked.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
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
from janus_jax.weights.weight_layout import is_row_major, transposed_path

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
            info = reader.parameters[path]
            forms = functools.partial(_read_forms, reader, _form(path, info.dtype, dtype, quantization, transposed))
            if is_stacked(path) and not unrolled:
                for name, values in _stack(slices_of(path, info), forms):
                    loaded[name] = _place(name, values, shardings)
                advance(info.nbytes)
                continue
            parts = slices_of(path, info)
            for part in parts:
                for name, values in forms(part).items():
                    name = name if part.layer is None else unstacked_path(name, part.layer)
                    # A copy, since the reader may return a view of a larger array, which would stay in memory with it.
                    loaded[name] = _place(name, np.array(values), shardings)
                advance(info.nbytes // len(parts))
    return unflatten(loaded)


def unrolled_shapes(
    reader: TensorReader, dtype: DTypeLike, quantization: str | None = None, transposed: bool = False
) -> Params:
    """Shapes and dtypes of what `load_params` returns with `unrolled=True`, without reading any values."""
    result: dict[str, jax.ShapeDtypeStruct] = {}
    for path, info in reader.parameters.items():
        form = _form(path, info.dtype, dtype, quantization, transposed)
        for part in slices_of(path, info):
            layer = (lambda name: name) if part.layer is None else functools.partial(unstacked_path, layer=part.layer)
            shape = info.shape if part.layer is None else info.shape[1:]
            result[layer(form.name)] = jax.ShapeDtypeStruct(shape[::-1] if form.transposed else shape, form.dtype)
            if form.quantized:
                result[layer(scale_path(path))] = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    return unflatten(result)


def read_param(reader: TensorReader, path: str, dtype: DTypeLike) -> np.ndarray:
    """One parameter in host memory, its layers stacked. Raises UserError for a value that is too large for `dtype`."""
    target, slices = np.dtype(dtype), slices_of(path, reader.parameters[path])
    if not is_stacked(path):
        return cast(reader.read(slices[0]), target, path)
    ((_, values),) = _stack(slices, lambda part: {path: cast(reader.read(part), target, path)})
    return values


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
    transposed = transposed and is_row_major(path)
    quantized = quantization is not None and is_quantized(path)
    if quantized:
        target = np.dtype(np.int8)
    elif transposed and jnp.promote_types(stored, target) == target:
        target = stored  # exact, and less memory to hold and to read
    return _Form(transposed_path(path) if transposed else path, target, transposed, quantized)


def _read_forms(reader: TensorReader, form: _Form, part: TensorSlice) -> dict[str, np.ndarray]:
    """The arrays that stand for a slice in the result, by the path of its parameter there."""
    path, values, scales = part.path, reader.read(part), {}
    if form.quantized:
        wide = values.dtype.itemsize > np.dtype(np.float32).itemsize
        values, scale = quantize(cast(values, np.dtype(np.float32), path) if wide else values)
        scales = {scale_path(path): scale}
    else:
        values = cast(values, form.dtype, path)
    return {form.name: values.T if form.transposed else values} | scales


def _stack(
    slices: list[TensorSlice], forms: Callable[[TensorSlice], Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Stacks what `forms` gives for each layer, name by name."""
    stacked: dict[str, np.ndarray] = {}
    for index, part in enumerate(slices):
        for name, values in forms(part).items():
            if name not in stacked:
                stacked[name] = np.empty((len(slices), *values.shape), values.dtype)
            stacked[name][index] = values
    yield from stacked.items()


def _place(path: str, values: np.ndarray, shardings: Mapping[str, jax.sharding.Sharding] | None) -> jax.Array:
    """The values on the devices of their sharding, or on the default device. The result may share their memory."""
    if shardings is None:
        return jax.device_put(values)  # unlike `jnp.asarray`, it compiles no program for each shape
    return jax.make_array_from_callback(values.shape, shardings[path], lambda index: values[index])
