"""What a source of parameters offers, whatever the layout of its files: shapes, and values one slice at a time.

A *tensor slice* is one of our parameters, or one layer of a parameter that holds all layers. Every layout is read and
written in slices. So one loop loads any of them (`weights.load`), another converts any of them to any other
(`weights.write_model`), and neither needs the memory of more than one tensor besides its result.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.data.images import JANUS_NORMALIZATION, Normalization
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig
from janus_jax.models.params import Params, flatten
from janus_jax.models.scan_layers import is_stacked


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def check_floating(self, folder: epath.PathLike, name: str) -> None:
        """Raises UserError for other dtypes than floating point: quantised weights would be read as their codes."""
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise UserError(f"{folder}: {name} has dtype {self.dtype}, expected floating-point numbers")


class TensorSlice(NamedTuple):
    """One of our parameters, or one layer of a stacked one."""

    path: str
    layer: int | None = None  # None means the whole parameter, which is then not a stacked one

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


class TensorReader(Protocol):
    """Opened parameters, read slice by slice."""

    @property
    def parameters(self) -> Mapping[str, TensorInfo]:
        """The shape and the dtype of each parameter by its path. The leading axis of a stacked one counts its layers;
        the dtype holds the values of all its layers exactly."""

    def read(self, part: TensorSlice) -> np.ndarray:
        """The values of a slice, in the dtype in which it is stored. The array may be a view of a larger one."""

    def origin(self, part: TensorSlice) -> str:
        """The stored tensor that holds a slice, for messages."""


def slices_of(path: str, info: TensorInfo) -> list[TensorSlice]:
    """The slices of one parameter: one per layer of a stacked parameter."""
    return [TensorSlice(path, layer) for layer in range(info.shape[0])] if is_stacked(path) else [TensorSlice(path)]


def all_slices(parameters: Mapping[str, TensorInfo]) -> Iterator[TensorSlice]:
    """The slices of all parameters, in their order."""
    for path, info in parameters.items():
        yield from slices_of(path, info)


class TensorsInMemory:
    """A reader of parameters that are in memory.

    A stacked parameter is an array with the layers along its leading axis, or a tuple of the arrays of its layers, as
    `scan_layers.stack_layers(params, join=tuple)` makes it without copying.
    """

    def __init__(self, params: Params):
        self._flat = flatten(params)
        self.parameters = {path: _info(leaf) for path, leaf in self._flat.items()}

    def read(self, part: TensorSlice) -> np.ndarray:
        leaf = self._flat[part.path]
        return np.asarray(leaf if part.layer is None else leaf[part.layer])

    def origin(self, part: TensorSlice) -> str:
        return str(part)


def _info(leaf: Any) -> TensorInfo:
    if isinstance(leaf, tuple):
        return TensorInfo((len(leaf), *leaf[0].shape), np.dtype(leaf[0].dtype))
    return TensorInfo(leaf.shape, np.dtype(leaf.dtype))


class PrefixedTensors:
    """A reader of a part of a model, whose paths in the whole model have a prefix."""

    def __init__(self, tensors: TensorReader, prefix: str):
        self._tensors = tensors
        self._prefix = prefix
        self.parameters = {prefix + path: info for path, info in tensors.parameters.items()}

    def read(self, part: TensorSlice) -> np.ndarray:
        return self._tensors.read(part._replace(path=part.path.removeprefix(self._prefix)))

    def origin(self, part: TensorSlice) -> str:
        return self._tensors.origin(part._replace(path=part.path.removeprefix(self._prefix)))


class UnprefixedTensors:
    """A reader of a part on its own, which is stored below a prefix of its paths."""

    def __init__(self, tensors: TensorReader, prefix: str):
        self._tensors, self._prefix = tensors, prefix
        within = {path: info for path, info in tensors.parameters.items() if path.startswith(prefix)}
        self.parameters = {path.removeprefix(prefix): info for path, info in within.items()}

    def read(self, part: TensorSlice) -> np.ndarray:
        return self._tensors.read(part._replace(path=self._prefix + part.path))

    def origin(self, part: TensorSlice) -> str:
        return self._tensors.origin(part._replace(path=self._prefix + part.path))


class SelectedTensors:
    """A reader of those parameters whose paths begin with one of some prefixes."""

    def __init__(self, tensors: TensorReader, prefixes: tuple[str, ...]):
        self._tensors = tensors
        self.parameters = {path: info for path, info in tensors.parameters.items() if path.startswith(prefixes)}

    def read(self, part: TensorSlice) -> np.ndarray:
        return self._tensors.read(part)

    def origin(self, part: TensorSlice) -> str:
        return self._tensors.origin(part)


@dataclasses.dataclass(frozen=True)
class ModelReader:
    """An opened model of the Janus family: a reader of its parameters, and what else belongs to it."""

    layout: str  # layout of its files: "orbax", "hf" or "deepseek"
    config: FamilyConfig
    tokenizer: Tokenizer
    normalization: Normalization  # how pixels of understanding images are normalised
    tensors: TensorReader

    @property
    def parameters(self) -> Mapping[str, TensorInfo]:
        return self.tensors.parameters

    def read(self, part: TensorSlice) -> np.ndarray:
        return self.tensors.read(part)

    def origin(self, part: TensorSlice) -> str:
        return self.tensors.origin(part)


def model_in_memory(
    config: FamilyConfig,
    params: Params,
    tokenizer: Tokenizer,
    normalization: Normalization = JANUS_NORMALIZATION,
) -> ModelReader:
    """A model that is in memory, as if it had been read from a folder of ours."""
    return ModelReader("orbax", config, tokenizer, normalization, TensorsInMemory(params))
