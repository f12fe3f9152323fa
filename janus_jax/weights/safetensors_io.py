"""Safetensors files, read and written one tensor at a time.

Tensors are read by their position in the file instead of from a mapping of it into memory: the pages of a mapping count
as memory of the process, and a 7B model has to convert within 4 GB. The format has no checksum, so a flipped bit in the
values goes unnoticed.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, Self

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from janus_jax.errors import UserError
from janus_jax.storage import disk_errors
from janus_jax.weights.reader import TensorInfo

MAX_FILE_BYTES = 5 * 10**9  # bytes of values in a file; transformers 4 began another file at this limit too
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# By their names in the format. The order is that of the library in a file, the widest first, so that all are aligned.
DTYPES = {
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_ALIGNMENT = 8
BLOCK_BYTES = 64 * 2**20  # bytes of a tensor that are made contiguous and written at once


class SafetensorsWriter:
    """Writes the tensors of a model, in any order, to one file or, above a size, to several files and their index.

    As a context manager it closes itself, which checks that all is written, unless the block raises an error.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        tensors: Mapping[str, TensorInfo],
        max_file_bytes: int = MAX_FILE_BYTES,
    ):
        """Lays out all files.

        Args:
            folder: where to write; it exists.
            tensors: name -> shape and dtype, in the order in which they fill the files.
            max_file_bytes: most bytes of values in a file; a larger tensor gets its own file.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder = epath.Path(folder)
        self._infos = dict(tensors)
        self._names = _divide(self._infos, max_file_bytes)  # file -> its tensors
        self._missing = set(self._infos)
        self._places: dict[str, tuple[Any, int]] = {}  # name -> (file, position of its values)
        with disk_errors(self._folder), contextlib.ExitStack() as files:
            for file_name, names in self._names.items():
                file = files.enter_context((self._folder / file_name).open("wb"))
                header, starts = _layout({name: self._infos[name] for name in names})
                file.write(header)
                self._places |= {name: (file, len(header) + start) for name, start in starts.items()}
            self._files = files.pop_all()

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor.

        Raises UserError when the disk is full, ValueError for another shape or dtype than announced.
        """
        if name not in self._missing or self._infos[name] != (array.shape, array.dtype):
            raise ValueError(f"{name} {array.shape} {array.dtype}: written before or not as announced")
        file, start = self._places[name]
        rows = np.atleast_1d(array)
        step = max(1, BLOCK_BYTES * len(rows) // max(1, array.nbytes))
        with disk_errors(self._folder):
            file.seek(start)
            for row in range(0, len(rows), step):  # so a transposed view is copied block by block
                file.write(np.ascontiguousarray(rows[row : row + step]).reshape(-1).view(np.uint8))
        self._missing.remove(name)

    def close(self) -> None:
        """Completes the files. Raises ValueError when a tensor was not written, UserError when the disk is full."""
        if self._missing:
            raise ValueError(
                f"{self._folder}: {len(self._missing)} tensors were not written, one is {min(self._missing)}"
            )
        with disk_errors(self._folder), self._files:
            for file in {file for file, _ in self._places.values()}:
                file.flush()
                os.fsync(file.fileno())
            if len(self._names) > 1:
                weight_map = {name: file_name for file_name, names in self._names.items() for name in names}
                total_size = sum(info.nbytes for info in self._infos.values())
                index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
                (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the disk may be full, which the error of the block tells
                self._files.close()


class SafetensorsFile:
    """An opened file, with the same interface as `torch_io.TorchFile`.

    Attributes:
        tensors: name -> shape and dtype.
    """

    def __init__(self, path: epath.Path):
        """Raises UserError when the header is damaged, names an unknown dtype or does not fit the size of the file."""
        self.path = path
        try:
            with safe_open(path, framework="numpy"):  # the library validates the header
                pass
            self._file = path.open("rb")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from error
        header_bytes = int.from_bytes(self._file.read(8), "little")
        header = parse_json(path, self._file.read(header_bytes))
        header.pop("__metadata__", None)
        self.tensors = {name: _info(path, name, entry) for name, entry in header.items()}
        self._places = {name: [8 + header_bytes + x for x in entry["data_offsets"]] for name, entry in header.items()}

    def read_bytes(self, name: str) -> np.ndarray:
        """The values of a tensor in C order as uint8 [bytes]."""
        start, end = self._places[name]
        values = np.empty(end - start, np.uint8)
        self._file.seek(start)
        if self._file.readinto(values) < len(values):
            raise UserError(f"{self.path}: ends inside {name}")
        return values

    def close(self) -> None:
        self._file.close()


def _info(path: epath.Path, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: {name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    return TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]])


def parse_json(path: epath.Path, text: bytes) -> Any:
    """The content of a JSON text in which no name occurs twice. Raises UserError for any other text."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"{twice[0]} occurs twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ValueError as error:  # not UTF-8, not JSON
        raise UserError(f"{path}: {error}") from error


def _divide(infos: Mapping[str, TensorInfo], max_bytes: int) -> dict[str, list[str]]:
    """The names of the files, and which tensors each holds."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, info in infos.items():
        if files[-1] and filled + info.nbytes > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += info.nbytes
    if len(files) == 1:
        return {SINGLE_FILE: files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files, 1)}


def _layout(infos: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The header of a file with its length in front, and where each tensor starts in the values that follow it."""
    order = list(_NAMES)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    starts = {}
    start = 0
    for name in sorted(infos, key=lambda name: (order.index(infos[name].dtype), name)):
        shape, dtype = infos[name]
        end = start + infos[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        starts[name], start = start, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, starts
