"""The named tensors of a foreign model, in one file or several, read one at a time.

model.safetensors | model.safetensors.index.json and the files that it names
pytorch_model.bin | pytorch_model.bin.index.json and the files that it names
"""

from typing import Self

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.reader import TensorInfo
from janus_jax.weights.safetensors_io import INDEX_FILE, SINGLE_FILE, SafetensorsFile, parse_json
from janus_jax.weights.torch_io import TorchFile

_SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")


class TensorFiles:
    """The tensors of a model.

    Attributes:
        tensors: name -> shape and dtype.
        files: name -> name of the file that holds it.
    """

    def __init__(self, paths: list[epath.Path], part: str = ""):
        """Raises UserError for a missing or damaged file, an unknown dtype, and a name that two files hold.

        Args:
            part: what to read of files of PyTorch, see `TorchFile`.
        """
        self.tensors: dict[str, TensorInfo] = {}
        self.files: dict[str, str] = {}
        self._opened: dict[str, SafetensorsFile | TorchFile] = {}
        for path in paths:
            file = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path, part)
            self._opened[path.name] = file
            for name in file.tensors:
                if name in self.tensors:
                    raise UserError(f"{path}: holds {name}, as {self.files[name]} does")
                self.files[name] = path.name
            self.tensors |= file.tensors

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, in a new array. Raises UserError when the file has become shorter meanwhile."""
        shape, dtype = self.tensors[name]
        return self._opened[self.files[name]].read_bytes(name).view(dtype).reshape(shape)

    def close(self) -> None:
        for file in self._opened.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tensors(path: epath.PathLike) -> TensorFiles:
    """Opens the tensors of a local folder, or of one .safetensors, .bin or .pt file.

    Raises:
        UserError: no weights there; a missing or damaged file; an index that does not fit its files; a Torch file that
            holds anything but tensors.
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
    files = TensorFiles([path / file_name for file_name in sorted(set(weight_map.values()))])
    for name, file_name in weight_map.items():
        if files.files.get(name) != file_name:
            raise UserError(f"{source}: puts {name} into {file_name}, which does not hold it")
    return files


def _read_index(path: epath.Path) -> dict[str, str]:
    """Name of a tensor -> name of its file in the same folder."""
    index = parse_json(path, path.read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no weight_map from tensors to files")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or file_name in ("", ".", "..") or {"/", "\\"} & set(file_name):
            raise UserError(f"{path}: puts {name} into {file_name!r}, expected the name of a file in the same folder")
        if not (path.parent / file_name).is_file():
            raise UserError(f"{path}: puts {name} into {file_name}, which is missing")
    return weight_map
