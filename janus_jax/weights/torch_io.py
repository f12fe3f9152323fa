"""Files of tensors that `torch.save` wrote. Reading them needs PyTorch, which is imported only here."""

import pickle
import re
import zipfile
from typing import Any

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.reader import TensorInfo
from janus_jax.weights.safetensors_io import DTYPES

_DTYPES = {f"torch.{dtype.name}": dtype for dtype in DTYPES.values()}
# Mean bytes of a tensor, and bytes of a file, up to which the file stays mapped: mapping it for each of many small
# tensors takes far longer than reading them.
_SMALL_TENSOR, _SMALL_FILE = 1 << 20, 1 << 28


class TorchFile:
    """An opened file, read one tensor at a time, without running any code that it may contain.

    The pages of a file that is mapped into memory count as memory of the process. So each read maps the file again and
    releases it, unless the file holds many small tensors.

    Attributes:
        tensors: name -> shape and dtype.
    """

    def __init__(self, path: epath.Path):
        """Raises UserError for a damaged file, for anything but tensors in it and for an unknown dtype."""
        self.path = path
        self._mapped = zipfile.is_zipfile(path)  # versions before 1.6 wrote another format, which has to be read whole
        tensors = self._load()
        self.tensors = {name: self._info(name, tensor) for name, tensor in tensors.items()}
        size = path.stat().length
        many = size <= _SMALL_FILE and size <= _SMALL_TENSOR * len(tensors)
        self._kept = tensors if many or not self._mapped else {}

    def read_bytes(self, name: str) -> np.ndarray:
        """The values of a tensor in C order as uint8 [bytes], since NumPy itself has no bfloat16."""
        import torch

        tensor = (self._kept or self._load())[name].detach()
        return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()

    def close(self) -> None:
        self._kept = {}

    def _info(self, name: str, tensor: Any) -> TensorInfo:
        dtype = _DTYPES.get(str(tensor.dtype))
        if dtype is None:
            raise UserError(f"{self.path}: {name} has dtype {tensor.dtype}, expected one of {', '.join(_DTYPES)}")
        return TensorInfo(tuple(tensor.shape), dtype)

    def _load(self) -> dict[str, Any]:
        """Name -> tensor, whose values are in the mapped file where it can be mapped."""
        try:
            import torch
        except ImportError as error:
            raise UserError(f"{self.path}: reading it needs PyTorch (pip install torch)") from error
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except pickle.UnpicklingError as error:
            called = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"calls {called[1]}" if called else "is not a pickle as PyTorch writes it"
            raise UserError(f"{self.path}: refused, it should hold nothing but tensors and {reason}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{self.path}: not a whole file of tensors ({type(error).__name__}: {error})") from error
        tensors = _state_dict(content)
        if not isinstance(tensors, dict):
            raise UserError(f"{self.path}: holds a {type(tensors).__name__}, expected a dictionary of tensors")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
                raise UserError(f"{self.path}: {name!r} is a {type(tensor).__name__}, expected dense tensors only")
        return tensors


def _state_dict(content: Any) -> Any:
    """The weights in a file, which training scripts, LlamaGen's too, save under a key beside other state."""
    inner = [content.get("model"), content.get("state_dict")] if isinstance(content, dict) else []
    return next((value for value in inner if isinstance(value, dict)), content)
