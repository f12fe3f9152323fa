"""Named tensors in the files of foreign folders, read and written one at a time.

    model.safetensors | model.safetensors.index.json and its shards
    pytorch_model.bin | pytorch_model.bin.index.json and its shards (read only)

Safetensors are read by position rather than mapped: the pages of a mapping count as memory of the process, and a 7B
model has to convert in 4 GB. The format has no checksum, so a flipped bit in the values goes unnoticed.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
from etils import epath
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from janus_jax.errors import UserError
from janus_jax.weights.torch_io import TorchFile

MAX_SHARD_BYTES = 5 * 10**9  # where transformers used to cut
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")
# Names in safetensors, in the order in which the library lays tensors out: the widest first, so that all are aligned.
_DTYPES = {
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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_KNOWN = _DTYPES | {f"torch.{dtype.name}": dtype for dtype in _DTYPES.values()}
_HEADER_ALIGNMENT = 8
_BLOCK_BYTES = 64 * 2**20  # what is made contiguous and written at once


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of a model, in one or several files.

    Attributes:
        shapes: name -> shape and dtype.
        files: name -> name of the file that holds it.
    """

    def __init__(self, paths: list[epath.Path]):
        """Raises UserError for a missing or damaged file, an unknown dtype, and a name that two files hold."""
        self.shapes: dict[str, TensorInfo] = {}
        self.files: dict[str, str] = {}
        self._opened: dict[str, _SafetensorsFile | TorchFile] = {}
        for path in paths:
            file = _SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
            self._opened[path.name] = file
            for name, (shape, dtype) in file.declared.items():
                if name in self.shapes:
                    raise UserError(f"{path}: holds {name}, as {self.files[name]} does")
                if dtype not in _KNOWN:
                    raise UserError(f"{path}: {name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}")
                self.shapes[name] = TensorInfo(shape, _KNOWN[dtype])
                self.files[name] = path.name

    def read(self, name: str) -> np.ndarray:
        """The values, in memory of their own. Raises UserError when the file has been cut meanwhile."""
        shape, dtype = self.shapes[name]
        return self._opened[self.files[name]].read_bytes(name).view(dtype).reshape(shape)

    def close(self) -> None:
        for file in self._opened.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SafetensorsWriter:
    """Writes the safetensors of a model, sharded as needed, in any order of tensors.

    As a context manager it closes itself, and so checks that it is complete, unless an error is on its way.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ):
        """Lays out all files.

        Args:
            folder: where to write; it exists.
            shapes: name -> (shape, dtype), in the order in which they fill the shards.
            max_shard_bytes: of values; a larger tensor has a shard of its own.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder = epath.Path(folder)
        self._infos = {name: TensorInfo(shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
        self._shards = _cut(self._infos, max_shard_bytes)
        self._missing = set(self._infos)
        self._places: dict[str, tuple[Any, int]] = {}  # name -> (file, position of its values)
        with _disk_errors(self._folder), contextlib.ExitStack() as files:
            for file_name, names in self._shards.items():
                file = files.enter_context((self._folder / file_name).open("wb"))
                header, starts = _layout({name: self._infos[name] for name in names})
                file.write(header)
                self._places |= {name: (file, len(header) + start) for name, start in starts.items()}
            self._files = files.pop_all()

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor. Raises UserError when the disk is full, ValueError for other sizes than announced."""
        if name not in self._missing or self._infos[name] != (array.shape, array.dtype):
            raise ValueError(f"{name} {array.shape} {array.dtype}: written before or not as announced")
        file, start = self._places[name]
        rows = np.atleast_1d(array)
        step = max(1, _BLOCK_BYTES * len(rows) // max(1, array.nbytes))
        with _disk_errors(self._folder):
            file.seek(start)
            for row in range(0, len(rows), step):  # a transposed view is copied block by block
                file.write(np.ascontiguousarray(rows[row : row + step]).reshape(-1).view(np.uint8))
        self._missing.remove(name)

    def close(self) -> None:
        """Completes the files. Raises ValueError when a tensor was not written, UserError when the disk is full."""
        if self._missing:
            raise ValueError(
                f"{self._folder}: {len(self._missing)} tensors were not written, one is {min(self._missing)}"
            )
        with _disk_errors(self._folder), self._files:
            for file in {file for file, _ in self._places.values()}:
                file.flush()
                os.fsync(file.fileno())
            if len(self._shards) > 1:
                weight_map = {name: file_name for file_name, names in self._shards.items() for name in names}
                total_size = sum(info.nbytes for info in self._infos.values())
                index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
                (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the disk may be full, and that error is on its way
                self._files.close()


def open_tensors(path: epath.PathLike) -> TensorFiles:
    """Opens a local folder of weights, single or sharded, or one .safetensors, .bin or .pt file.

    Raises:
        UserError: no weights there; a missing or damaged file; an index that does not fit its shards; a Torch file
            that holds anything but tensors.
    """
    path = epath.Path(path)
    if path.is_file():
        return TensorFiles([path])
    source = next((path / name for name in _SOURCES if (path / name).exists()), None)
    if source is None:
        raise UserError(f"{path}: no weights found (expected one of {', '.join(_SOURCES)})")
    if source.suffix != ".json":
        return TensorFiles([source])
    weight_map = _read_index(source)
    files = TensorFiles([path / shard for shard in sorted(set(weight_map.values()))])
    for name, shard in weight_map.items():
        if files.files.get(name) != shard:
            raise UserError(f"{source}: puts {name} into {shard}, which does not hold it")
    return files


class _SafetensorsFile:
    """One safetensors file; like `TorchFile`."""

    def __init__(self, path: epath.Path):
        """Raises UserError when the header is damaged or does not fit the size of the file."""
        self.path = path
        try:
            with safe_open(path, framework="numpy"):  # the library validates the header
                pass
            self._file = path.open("rb")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from error
        header_bytes = int.from_bytes(self._file.read(8), "little")
        header = _parse(path, self._file.read(header_bytes))
        header.pop("__metadata__", None)
        self.declared = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        self._places = {name: [8 + header_bytes + x for x in entry["data_offsets"]] for name, entry in header.items()}

    def read_bytes(self, name: str) -> np.ndarray:
        start, end = self._places[name]
        values = np.empty(end - start, np.uint8)
        self._file.seek(start)
        if self._file.readinto(values) < len(values):
            raise UserError(f"{self.path}: ends inside {name}")
        return values

    def close(self) -> None:
        self._file.close()


def _read_index(path: epath.Path) -> dict[str, str]:
    """Tensor -> file in the same folder."""
    index = _parse(path, path.read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no weight_map from tensors to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or {"/", "\\"} & set(shard):
            raise UserError(f"{path}: puts {name} into {shard!r}, expected the name of a file in the same folder")
        if not (path.parent / shard).is_file():
            raise UserError(f"{path}: puts {name} into {shard}, which is missing")
    return weight_map


def _parse(path: epath.Path, text: bytes) -> Any:
    """JSON in which no name occurs twice."""

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


def _cut(infos: Mapping[str, TensorInfo], max_bytes: int) -> dict[str, list[str]]:
    """File -> its tensors."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in infos.items():
        if shards[-1] and filled + info.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _layout(infos: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The length-prefixed header of a file, and where in the data that follow it each tensor starts."""
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


@contextlib.contextmanager
def _disk_errors(folder: epath.Path) -> Iterator[None]:
    """Turns what the operating system refuses into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
