"""The Inception network of the Fréchet distance, read from the file of pytorch-fid or from the same as safetensors."""

import zipfile

from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.metric_config import InceptionConfig
from janus_jax.models.params import Params
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.load import load_params
from janus_jax.weights.tensor_files import TensorFiles, open_tensors

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"  # of pytorch-fid and of torch-fidelity, which are the same file
_NUM_CLASSES = 1008
_NORM_EPS = 1e-3
_FIRST, _FIRST_WIDTH = "Conv2d_1a_3x3.conv.weight", 32
_CLASSIFIER = "fc.weight"


def load_inception(path: epath.PathLike) -> tuple[InceptionConfig, Params]:
    """The architecture and the float32 parameters in a file. A network of smaller widths is accepted, for tests.

    Raises:
        UserError: the file is missing, damaged, or holds another network, such as torchvision's Inception or
            clean-fid's TorchScript archive; the message names the file that is expected.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {FILE_NAME} of pytorch-fid")
    if _is_torch_script(path):
        raise UserError(f"{path}: a TorchScript archive (clean-fid's?), expected {FILE_NAME} of pytorch-fid")
    with open_tensors(path) as files:
        config = _config_of(files, path)
        try:
            tensors = ForeignTensors(files, config, "inception", path)
        except UserError as error:
            raise UserError(f"{error}\n  expected the tensors of {FILE_NAME} of pytorch-fid") from error
        return config, load_params(tensors, "float32")


def _config_of(files: TensorFiles, path: epath.Path) -> InceptionConfig:
    """The architecture, whose widths follow from the first filter."""
    classes = files.tensors[_CLASSIFIER].shape[:1] if _CLASSIFIER in files.tensors else ()
    if classes != (_NUM_CLASSES,):
        found = f"{_CLASSIFIER} has {classes[0]} rows" if classes else f"has no {_CLASSIFIER}"
        raise UserError(f"{path}: {found}, expected the {_NUM_CLASSES} classes of {FILE_NAME} of pytorch-fid")
    width = (files.tensors[_FIRST].shape or (0,))[0] if _FIRST in files.tensors else 0
    divisor = _FIRST_WIDTH // width if width and _FIRST_WIDTH % width == 0 else 1
    return InceptionConfig(num_classes=_NUM_CLASSES, norm_eps=_NORM_EPS, width_divisor=min(divisor, 16))


def _is_torch_script(path: epath.Path) -> bool:
    """Whether a file is an archive of code and weights, which is not read: it could run anything."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
