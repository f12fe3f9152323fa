"""Orbax folders of parameters, read and written slice by slice.

Orbax itself saves and restores whole arrays, and a 7B model has to convert within 4 GB of memory. So we open the arrays
with TensorStore, as Orbax's guide shows (orbax.readthedocs.io, "Checkpoint Format Guide"). We write the metadata as
Orbax 0.12 does: the guide describes the file `_METADATA`, but not each of its fields, so a test lets Orbax restore what
we wrote. We rely on this format and not on Orbax's `TypeHandler` interface, because old checkpoints have to stay
readable while interfaces change. What we write is Orbax's plain layout:

    _METADATA                     the tree; written last, so that an unfinished folder cannot be restored
    _CHECKPOINT_METADATA
    llm.decoder.norm.scale/       a Zarr array per parameter, named by its path joined by dots

Our arrays are not compressed, since weights hardly compress. Each layer of a stacked parameter has its own chunk.
"""

import contextlib
import json
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import tensorstore as ts
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.scan_layers import is_stacked
from janus_jax.storage import disk_errors
from janus_jax.weights.reader import TensorInfo, TensorSlice, all_slices

CHUNK_BYTES = 64 * 2**20  # most bytes that have to be read at once; part of a large matrix is read without the rest
_METADATA = "_METADATA"
_DICT_KEY = 2  # Orbax's code for the key of a dictionary
_CHECKPOINT_METADATA: dict[str, Any] = {"item_handlers": None, "metrics": {}, "custom_metadata": {}}
# No cache, since nothing is read twice; few copies at once, since each takes the memory of a chunk.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 2}})


class OrbaxReader:
    """A reader of parameters that Orbax or `OrbaxWriter` saved.

    Layers that share a chunk are read together and kept until another chunk is needed, so ask for the layers in their
    order. Folders by `OrbaxWriter` and `weights.native` have one layer in a chunk; Orbax by itself saves an array, or
    each device's part of it, as a single chunk.

    Attributes:
        parameters: path "a/b/c" -> shape and dtype.
    """

    def __init__(self, folder: epath.PathLike):
        """Raises UserError when the folder is not a checkpoint, or a damaged one."""
        self._folder = epath.Path(folder)
        self._arrays = _open_arrays(self._folder)
        self.parameters = {path: TensorInfo(x.shape, x.dtype.numpy_dtype) for path, x in self._arrays.items()}
        self._kept_at = ("", 0)  # path and first layer
        self._kept: np.ndarray | None = None

    def read(self, part: TensorSlice) -> np.ndarray:
        """The values of a slice, or with the path alone those of a whole parameter.

        Raises UserError when values are missing.
        """
        path, layer = part
        if layer is None:
            return self._values(path, slice(None))
        together = self.chunk_shape(path)[0]
        first = layer - layer % together
        if self._kept is None or self._kept_at != (path, first):
            self._kept = None  # frees the old layers before the next ones are read
            self._kept_at = (path, first)
            self._kept = self._values(path, slice(first, min(first + together, self.parameters[path].shape[0])))
        return self._kept[layer - first]

    def origin(self, part: TensorSlice) -> str:
        return str(part)

    def chunk_shape(self, path: str) -> tuple[int, ...]:
        """The shape of what storage reads at once of a parameter."""
        return tuple(self._arrays[path].chunk_layout.read_chunk.shape)

    def _values(self, path: str, layers: slice) -> np.ndarray:
        array = self._arrays[path]
        try:
            return (array[layers] if array.rank else array).read().result()
        except ValueError as error:
            raise UserError(f"{self._folder}: {path} cannot be read ({error})") from error


class OrbaxWriter:
    """Writes a folder that Orbax restores, in any order of parameters and layers.

    As a context manager it closes itself, which checks that all is written, unless the block raises an error.
    """

    def __init__(self, folder: epath.PathLike, parameters: Mapping[str, TensorInfo]):
        """Creates all arrays, without values.

        Args:
            folder: it does not exist yet.
            parameters: path "a/b/c" -> shape and dtype.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder = epath.Path(folder)
        self._infos = dict(parameters)
        self._missing = set(all_slices(self._infos))
        with self._disk_errors():
            self._folder.mkdir(parents=True)
            self._arrays = {path: _create_array(self._folder, path, info) for path, info in self._infos.items()}

    def write(self, part: TensorSlice, array: np.ndarray) -> None:
        """Writes a slice.

        Raises UserError when the disk is full, ValueError for a slice of another shape or dtype than announced.
        """
        shape, dtype = self._infos[part.path]
        expected = shape if part.layer is None else shape[1:]
        if part not in self._missing or (array.shape, array.dtype) != (expected, dtype):
            raise ValueError(f"{part} {array.shape} {array.dtype}: written before, or not as announced")
        target = self._arrays[part.path] if part.layer is None else self._arrays[part.path][part.layer]
        with self._disk_errors():
            target.write(array, can_reference_source_data_indefinitely=True).result()
        self._missing.remove(part)

    def close(self) -> None:
        """Completes the folder as a checkpoint. Raises ValueError when a slice was not written."""
        if self._missing:
            raise ValueError(
                f"{self._folder}: {len(self._missing)} slices were not written, e.g. {min(map(str, self._missing))}"
            )
        tree = {str(tuple(path.split("/"))): _tree_entry(path) for path in self._infos}
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        with self._disk_errors():
            (self._folder / "_CHECKPOINT_METADATA").write_text(json.dumps(_CHECKPOINT_METADATA))
            (self._folder / _METADATA).write_text(json.dumps(metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._folder, ValueError)  # TensorStore reports what the storage refuses as a ValueError


def _open_arrays(folder: epath.Path) -> dict[str, Any]:
    """Path -> opened array of every parameter, in any of Orbax's layouts."""
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
            # By default the values of a lost chunk would be read as zeros.
            spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
            opened["/".join(key)] = ts.open(spec, open=True, context=_CONTEXT)
        return {path: array.result() for path, array in opened.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # not JSON, another structure, no such array
        raise UserError(f"{folder}: a damaged Orbax checkpoint ({type(error).__name__}: {error})") from error


def _create_array(folder: epath.Path, path: str, info: TensorInfo) -> Any:
    """The array of one parameter, without values."""
    spec = {
        "driver": "zarr",
        "kvstore": _kvstore(folder / path.replace("/", ".")),
        "metadata": {"chunks": _chunk(path, info), "compressor": None},
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, context=_CONTEXT, dtype=info.dtype, shape=info.shape).result()


def _chunk(path: str, info: TensorInfo) -> list[int]:
    """The shape of a chunk: one layer of a stacked parameter, and of a large matrix only some rows."""
    if is_stacked(path):
        return [1, *_chunk("", TensorInfo(info.shape[1:], info.dtype))]
    if not info.shape:
        return []
    row = TensorInfo(info.shape[1:], info.dtype)
    return [max(1, min(info.shape[0], CHUNK_BYTES // row.nbytes)), *row.shape]


def _tree_entry(path: str) -> dict[str, Any]:
    return {
        "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path.split("/")],
        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
    }


def _kvstore(folder: epath.Path) -> Any:
    """A local folder or one in a bucket, as TensorStore names it. The name of a bucket is an encoded URL."""
    name = os.fspath(folder)
    return urllib.parse.quote(f"{name}/", safe=":/") if "://" in name else {"driver": "file", "path": f"{name}/"}
