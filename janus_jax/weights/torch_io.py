"""Files of tensors that `torch.save` wrote. Reading them needs PyTorch, which is imported only here.

A file is a dictionary of tensors, or the state of a training script, LlamaGen's for example, which holds such
dictionaries under the keys `WEIGHTS` beside its options and optimizers.
"""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import disk_errors
from janus_jax.weights.reader import TensorInfo
from janus_jax.weights.safetensors_io import DTYPES

# Keys of the weights in the state of a training script. The first that is there counts, as in LlamaGen's code: its
# average over the steps ("ema", in other scripts "model_ema" or "params_ema") is better than the parameters of the last
# step ("model").
WEIGHTS = ("ema", "model_ema", "params_ema", "model", "params", "state_dict")
# What the options and counters of training scripts consist of: objects that only hold values and run no code.
_PLAIN: list[Any] = [argparse.Namespace, pathlib.PosixPath, np.dtype, np.float64(0).__reduce__()[0]]
_PLAIN += [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)]
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of all names, by DistributedDataParallel and by torch.compile
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

    def __init__(self, path: epath.Path, part: str = ""):
        """Opens a file.

        Args:
            part: reads what the state of a training script has under this key, in place of its weights. There are no
                tensors then if it has nothing there.

        Raises:
            UserError: a damaged file, anything but tensors in it, or an unknown dtype.
        """
        self.path = path
        self._part = part
        self._mapped = zipfile.is_zipfile(path)  # versions before 1.6 wrote another format, which has to be read whole
        content = self._load()
        sets = [name for name in WEIGHTS if _is_set(content, name)]
        if len(sets) > 1 and not part:
            logging.warning(
                "%s: holds the weights %s; reading %r, the average if there is one",
                path,
                " and ".join(map(repr, sets)),
                sets[0],
            )
        tensors = self._tensors(content)
        self.tensors = {name: self._info(name, tensor) for name, tensor in tensors.items()}
        size = path.stat().length
        many = size <= _SMALL_FILE and size <= _SMALL_TENSOR * len(tensors)
        self._kept = tensors if many or not self._mapped else {}

    def read_bytes(self, name: str) -> np.ndarray:
        """The values of a tensor in C order as uint8 [bytes], since NumPy itself has no bfloat16."""
        import torch

        tensor = (self._kept or self._tensors(self._load()))[name].detach()
        return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()

    def close(self) -> None:
        self._kept = {}

    def _info(self, name: str, tensor: Any) -> TensorInfo:
        dtype = _DTYPES.get(str(tensor.dtype))
        if dtype is None:
            raise UserError(f"{self.path}: {name} has dtype {tensor.dtype}, expected one of {', '.join(_DTYPES)}")
        return TensorInfo(tuple(tensor.shape), dtype)

    def _load(self) -> Any:
        """The content of the file, with the values of tensors in the mapped file where it can be mapped."""
        try:
            import torch
        except ImportError as error:
            raise UserError(f"{self.path}: reading it needs PyTorch (pip install torch)") from error
        try:
            with torch.serialization.safe_globals(_PLAIN):
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except pickle.UnpicklingError as error:
            called = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"calls {called[1]}" if called else "is not a pickle as PyTorch writes it"
            raise UserError(f"{self.path}: refused, it should hold nothing but tensors and {reason}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{self.path}: not a whole file of tensors ({type(error).__name__}: {error})") from error

    def _tensors(self, content: Any) -> dict[str, Any]:
        """Name -> tensor of the weights in the content of the file."""
        import torch

        if self._part:
            tensors = content[self._part] if _is_set(content, self._part) else {}
        else:
            tensors = next((content[name] for name in WEIGHTS if _is_set(content, name)), content)
        if not isinstance(tensors, dict):
            raise UserError(f"{self.path}: holds a {type(tensors).__name__}, expected a dictionary of tensors")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
                raise UserError(f"{self.path}: {name!r} is a {type(tensor).__name__}, expected dense tensors only")
        return _unwrapped(tensors)


def save_torch(path: epath.Path, content: Mapping[str, Mapping[str, np.ndarray] | int]) -> None:
    """Writes dictionaries of tensors, and numbers, as `torch.save` does. Raises UserError when it cannot be written."""
    import torch

    tensors = {
        name: {key: torch.from_numpy(values.copy()) for key, values in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in content.items()
    }
    with disk_errors(path, RuntimeError):  # as which PyTorch reports a full disk
        torch.save(tensors, path)


def _is_set(content: Any, name: str) -> bool:
    """Whether the content of a file has weights under a key. A script that keeps no average may write None there."""
    return isinstance(content, dict) and isinstance(content.get(name), dict) and bool(content[name])


def _unwrapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """Removes the prefixes that wrappers of a module put in front of all names."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
