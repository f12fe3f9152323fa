"""Our Orbax `params` folders, read and written a layer at a time.

Orbax itself saves and restores whole arrays, and a 7B model has to convert in 4 GB. So we open the arrays with
TensorStore, as Orbax's guide does (orbax.readthedocs.io, "Checkpoint Format Guide"), and write the metadata as Orbax
0.12 does: the guide describes the file `_METADATA`, but not each of its fields, so a test lets Orbax restore what we
wrote. The format rather than Orbax's `TypeHandler` interface, because old checkpoints have to stay readable while
interfaces move on. What we write is its plain layout:

    _METADATA                     the tree; written last, so that an unfinished folder cannot be restored
    _CHECKPOINT_METADATA
    llm.decoder.norm.scale/       a Zarr array per parameter: path joined by dots

Weights barely compress, so our arrays are not compressed. A stacked parameter has a chunk of its own per layer.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from numpy.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import ModelConfig
from janus_jax.models.params import abstract_params, flatten
from janus_jax.weights.native import params_path
from janus_jax.weights.safetensors_io import TensorInfo

_METADATA = "_METADATA"
_CHUNK_BYTES = 64 * 2**20  # a shard of a large matrix is restored without reading all of it
_DICT_KEY = 2  # Orbax's code for the key of a dictionary
_CHECKPOINT_METADATA: dict[str, Any] = {"item_handlers": None, "metrics": {}, "custom_metadata": {}}
# Nothing is read twice, and each copy in flight takes the memory of a chunk.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 2}})


class OrbaxReader:
    """Parameters that Orbax or `OrbaxWriter` saved.

    Layers that share a chunk are read together and kept until others are asked for, so read layer after layer. In
    folders by `OrbaxWriter` and `janus_jax.weights.native` that is one layer; Orbax by itself gives an array, or each
    shard of it, a single chunk.

    Attributes:
        shapes: path "a/b/c" -> shape and dtype.
    """

    def __init__(self, folder: epath.PathLike):
        """Raises UserError when the folder is not a checkpoint, or a damaged one."""
        self._folder = epath.Path(folder)
        self._arrays = _open_arrays(self._folder)
        self.shapes = {path: TensorInfo(x.shape, x.dtype.numpy_dtype) for path, x in self._arrays.items()}
        self._kept_at = ("", 0)  # path and first layer
        self._kept: np.ndarray | None = None

    def read(self, path: str, layer: int | None) -> np.ndarray:
        """A layer of a stacked parameter, or with None a whole one. Raises UserError when values are missing."""
        if layer is None:
            return self._values(path, slice(None))
        together = self._arrays[path].chunk_layout.read_chunk.shape[0]
        first = layer - layer % together
        if self._kept is None or self._kept_at != (path, first):
            self._kept = None  # gone before the next ones are in memory
            self._kept_at = (path, first)
            self._kept = self._values(path, slice(first, min(first + together, self.shapes[path].shape[0])))
        return self._kept[layer - first]

    def _values(self, path: str, layers: slice) -> np.ndarray:
        array = self._arrays[path]
        try:
            return (array[layers] if array.rank else array).read().result()
        except ValueError as error:
            raise UserError(f"{self._folder}: {path} cannot be read ({error})") from error


def open_params(folder: epath.Path, config: ModelConfig, ema: bool = False) -> OrbaxReader:
    """The parameters of a folder of ours. Raises UserError when they are not those of its architecture."""
    reader = OrbaxReader(params_path(folder, ema))
    found = {path: entry.shape for path, entry in reader.shapes.items()}
    expected = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    if found != expected:
        different = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        raise UserError(f"{folder}: the parameters are not those of model.json: {', '.join(different[:10])}")
    for path, entry in reader.shapes.items():
        check_floating(folder, path, entry.dtype)
    return reader


def check_floating(folder: epath.Path, name: str, dtype: np.dtype) -> None:
    """Quantised weights would be read as the numbers of their codes."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{folder}: {name} has dtype {dtype}, expected floating-point numbers")


class OrbaxWriter:
    """Writes a folder that Orbax restores, in any order of parameters and layers.

    As a context manager it closes itself, and so checks that it is complete, unless an error is on its way.
    """

    def __init__(self, folder: epath.PathLike, shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]]):
        """Creates all arrays, without values.

        Args:
            folder: it does not exist yet.
            shapes: path "a/b/c" -> (shape, dtype); below ".../layers/" the leading axis counts layers.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder = epath.Path(folder)
        self._infos = {path: TensorInfo(shape, np.dtype(dtype)) for path, (shape, dtype) in shapes.items()}
        self._missing = {(path, layer) for path, info in self._infos.items() for layer in _layers(path, info)}
        with _disk_errors(self._folder):
            self._folder.mkdir(parents=True)
            self._arrays = {path: _create_array(self._folder, path, info) for path, info in self._infos.items()}

    def write(self, path: str, layer: int | None, array: np.ndarray) -> None:
        """Writes a layer of a stacked parameter, or with None a whole one that is not stacked.

        Raises UserError when the disk is full, ValueError for another size than announced.
        """
        shape, dtype = self._infos[path]
        expected = shape if layer is None else shape[1:]
        if (path, layer) not in self._missing or (array.shape, array.dtype) != (expected, dtype):
            raise ValueError(f"{path} {layer} {array.shape} {array.dtype}: written before, or not as announced")
        target = self._arrays[path] if layer is None else self._arrays[path][layer]
        with _disk_errors(self._folder):
            target.write(array, can_reference_source_data_indefinitely=True).result()
        self._missing.remove((path, layer))

    def close(self) -> None:
        """Makes the folder a checkpoint. Raises ValueError when a parameter or a layer was not written."""
        if self._missing:
            path, layer = next(iter(self._missing))
            raise ValueError(f"{self._folder}: {len(self._missing)} pieces were not written, one is {path} {layer}")
        tree = {str(tuple(path.split("/"))): _tree_entry(path) for path in self._infos}
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        with _disk_errors(self._folder):
            (self._folder / "_CHECKPOINT_METADATA").write_text(json.dumps(_CHECKPOINT_METADATA))
            (self._folder / _METADATA).write_text(json.dumps(metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


def _open_arrays(folder: epath.Path) -> dict[str, Any]:
    """Path -> TensorStore of every parameter, whichever layout Orbax chose."""
    if not (folder / _METADATA).exists():
        raise UserError(f"{folder}: not an Orbax checkpoint, or an unfinished one (no {_METADATA})")
    try:
        metadata = json.loads((folder / _METADATA).read_text())
        driver = "zarr3" if metadata["use_zarr3"] else "zarr"
        keys = [[entry["key"] for entry in value["key_metadata"]] for value in metadata["tree_metadata"].values()]
        opened = {}
        for key in keys:
            kvstore = _kvstore(folder / ".".join(key))
            if metadata["use_ocdbt"]:
                kvstore = {"driver": "ocdbt", "base": _kvstore(folder), "path": ".".join(key) + "/"}
            # Otherwise the values of a lost chunk are zero.
            spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
            opened["/".join(key)] = ts.open(spec, open=True, context=_CONTEXT)
        return {path: array.result() for path, array in opened.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # not JSON, another structure, no such array
        raise UserError(f"{folder}: a damaged Orbax checkpoint ({type(error).__name__}: {error})") from error


def _create_array(folder: epath.Path, path: str, info: TensorInfo) -> Any:
    """An empty TensorStore for one parameter."""
    spec = {
        "driver": "zarr",
        "kvstore": _kvstore(folder / path.replace("/", ".")),
        "metadata": {"chunks": _chunk(path, info), "compressor": None},
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, context=_CONTEXT, dtype=info.dtype, shape=info.shape).result()


def _chunk(path: str, info: TensorInfo) -> list[int]:
    """One layer of a stacked parameter, and of a large matrix only some rows."""
    if _is_stacked(path):
        return [1, *_chunk("", TensorInfo(info.shape[1:], info.dtype))]
    if not info.shape:
        return []
    row = TensorInfo(info.shape[1:], info.dtype)
    return [max(1, min(info.shape[0], _CHUNK_BYTES // row.nbytes)), *row.shape]


def _tree_entry(path: str) -> dict[str, Any]:
    return {
        "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path.split("/")],
        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
    }


def _layers(path: str, info: TensorInfo) -> list[int] | list[None]:
    return list(range(info.shape[0])) if _is_stacked(path) else [None]


def _is_stacked(path: str) -> bool:
    return "/layers/" in path


def _kvstore(folder: epath.Path) -> Any:
    """Where TensorStore finds a local or remote folder."""
    name = os.fspath(folder)
    return f"{name}/" if "://" in name else {"driver": "file", "path": f"{name}/"}


@contextlib.contextmanager
def _disk_errors(folder: epath.Path) -> Iterator[None]:
    """Turns what the storage refuses into a UserError; TensorStore reports it as a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
