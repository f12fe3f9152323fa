"""A `torch.save` file of tensors. PyTorch is needed only here, so it is imported only here."""

import pickle
import re
import zipfile
from typing import Any

import numpy as np
from etils import epath

from janus_jax.errors import UserError


class TorchFile:
    """One file, read a tensor at a time without running any code that it may hold.

    The pages of a mapped file count as memory of the process, so each read maps the file anew and lets go of it.

    Attributes:
        declared: name -> (shape, name of the dtype in PyTorch).
    """

    def __init__(self, path: epath.Path):
        """Raises UserError for a damaged file and for anything but tensors in it."""
        self.path = path
        self._mapped = zipfile.is_zipfile(path)  # PyTorch < 1.6 wrote another format, which must be read whole
        tensors = self._load()
        self.declared = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
        self._kept = {} if self._mapped else tensors

    def read_bytes(self, name: str) -> np.ndarray:
        """The values in C order as uint8 [bytes]: NumPy has no bfloat16 of its own."""
        import torch

        tensor = (self._kept or self._load())[name].detach()
        return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()

    def close(self) -> None:
        self._kept = {}

    def _load(self) -> dict[str, Any]:
        """Name -> tensor, on the pages of the file where it can be mapped."""
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
    """The weights, which training scripts (LlamaGen's vq_ds16 too) save under a key beside other state."""
    inner = [content.get("model"), content.get("state_dict")] if isinstance(content, dict) else []
    return next((value for value in inner if isinstance(value, dict)), content)
