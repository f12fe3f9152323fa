"""Reads LPIPS: the convolutions of VGG-16 from torchvision or timm, and the heads from the package `lpips`.

Neither is distributed with this project. docs/tokenizers.md says where to get them.
"""

import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import VGG_CONVOLUTIONS, LPIPSConfig
from janus_jax.models.params import Params, abstract_params, flatten, unflatten
from janus_jax.models.presets import LPIPS_VGG
from janus_jax.weights.tensor_files import TensorFiles, open_tensors

TRUNK = "torchvision's vgg16-397923af.pth, or the folder of timm/vgg16.tv_in1k"
HEADS = "lpips/weights/v0.1/vgg.pth of the package lpips"
# What tells the released weights from others of the same shapes: the red channel of the first filter, and the sums of
# the heads. Heads of version 0.0 and a VGG for images in the order BGR differ here.
_FIRST_FILTER = np.array([[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]])
_HEAD_SUMS = (6.9260, 8.8583, 17.5150, 51.5213, 47.0349)


def load_lpips(
    trunk: epath.PathLike, heads: epath.PathLike, config: LPIPSConfig = LPIPS_VGG, *, prefix: str = "--lpips_"
) -> Params:
    """The parameters of LPIPS in float32.

    Args:
        trunk: file or folder with the convolutions of VGG-16; its classifier is ignored.
        heads: file with the weights of the channels.
        prefix: what the fields of both are called in messages, before "trunk" and "heads".

    Raises:
        UserError: a path is empty or nothing is there; a tensor is missing or has another shape; or the values are not
            those of torchvision's VGG-16 and of LPIPS v0.1.
    """
    given = {f"{prefix}trunk": trunk, f"{prefix}heads": heads}
    if absent := [name for name, path in given.items() if not str(path) or not epath.Path(path).exists()]:
        found = ", ".join(f"{name}={str(given[name])!r}" for name in absent)
        raise UserError(
            f"{found}: LPIPS needs two files that are not part of this project, {prefix}trunk with {TRUNK}, and "
            f"{prefix}heads with {HEADS}"
        )
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    flat: dict[str, np.ndarray] = {}
    for field, location, part, kind in (
        (f"{prefix}trunk", trunk, "trunk/", TRUNK),
        (f"{prefix}heads", heads, "head_", HEADS),
    ):
        with open_tensors(location) as files:
            for path in (path for path in shapes if path.startswith(part)):
                flat[path] = _read(files, path, shapes[path], f"{field}={str(location)!r}", kind)
    if config == LPIPS_VGG:
        _require_released(flat, given)
    return unflatten({path: jnp.asarray(flat[path]) for path in shapes})


def their_name(path: str) -> str:
    """The name that VGG-16 of torchvision and timm, or LPIPS, gives to one of our parameters."""
    module, _, leaf = path.rpartition("/")
    if not module:
        return f"lin{path.removeprefix('head_')}.model.1.weight"
    stage, conv = (int(part) for part in module.removeprefix("trunk/stage_").split("_conv_"))
    # Each convolution is followed by a ReLU, and each stage by a pooling.
    index = 2 * (sum(VGG_CONVOLUTIONS[:stage]) + conv) + stage
    return f"features.{index}.{'weight' if leaf == 'kernel' else 'bias'}"


def _read(files: TensorFiles, path: str, shape: tuple[int, ...], origin: str, kind: str) -> np.ndarray:
    """One of our parameters. Raises UserError for another file than `kind`."""
    name, theirs = their_name(path), shape
    if path.startswith("head_"):
        theirs = (1, *shape, 1, 1)
    elif len(shape) == 4:
        theirs = (shape[3], shape[2], *shape[:2])
    if name not in files.tensors:
        raise UserError(f"{origin}: has no tensor {name}, expected {kind}")
    if files.tensors[name].shape != theirs:
        raise UserError(
            f"{origin}: {name} has the shape {list(files.tensors[name].shape)}, expected {list(theirs)} as in {kind}"
        )
    values = files.read(name).astype(np.float32)
    return values.transpose(2, 3, 1, 0) if len(shape) == 4 else values.reshape(shape)


def _require_released(flat: dict[str, np.ndarray], given: dict[str, epath.PathLike]) -> None:
    """Raises UserError for weights that have the right shapes and other values."""
    (trunk, trunk_path), (heads, heads_path) = given.items()
    first = flat["trunk/stage_0_conv_0/kernel"][:, :, 0, 0]
    if not np.allclose(first, _FIRST_FILTER, rtol=0, atol=2e-4):
        raise UserError(
            f"{trunk}={str(trunk_path)!r}: features.0.weight begins with {first[0, 0]:.4f}, expected "
            f"{_FIRST_FILTER[0, 0]} as in {TRUNK}, which reads RGB"
        )
    sums = [float(flat[f"head_{i}"].sum(dtype=np.float64)) for i in range(len(_HEAD_SUMS))]
    if not np.allclose(sums, _HEAD_SUMS, rtol=0, atol=2e-4):
        raise UserError(
            f"{heads}={str(heads_path)!r}: lin0.model.1.weight has the sum {sums[0]:.4f}, expected {_HEAD_SUMS[0]:.4f} "
            f"as in {HEADS} (version 0.0 has other heads)"
        )
