"""Image tokenizers on their own: in LlamaGen's file and in a folder of ours, from one to the other.

LlamaGen's file is a dictionary of state dicts: "model", perhaps "ema" with the average of the parameters, perhaps
"discriminator", and "steps". It does not tell the image size, which the network does not depend on.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import PatchDiscriminatorConfig, SemanticTokenizerConfig, VQConfig
from janus_jax.models.params import Params, flatten
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.storage import new_folder
from janus_jax.weights.discriminator import find_discriminator, to_llamagen
from janus_jax.weights.infer_sizes import measure_vq
from janus_jax.weights.json_fields import Fields, checked_sizes
from janus_jax.weights.load import load_params
from janus_jax.weights.locations import existing_path
from janus_jax.weights.name_map import links
from janus_jax.weights.native import (
    ARCHITECTURE_FILE,
    open_params,
    params_path,
    read_architecture,
    save_params,
)
from janus_jax.weights.pretrained_parts import open_llamagen_vq, whole_model
from janus_jax.weights.tensor_files import open_tensors
from janus_jax.weights.torch_io import save_torch

FILE_NAME = "vq.pt"
IMAGE_SIZE = 256  # of LlamaGen's training
_FIXED: dict[str, Any] = {"norm_groups": 32, "norm_eps": 1e-6, "commitment": 0.25}  # in LlamaGen's code
_USAGE_BUFFER = ("quantize.codebook_used", 65536)  # a buffer that LlamaGen's class has and that nothing reads


class SavedTokenizer(NamedTuple):
    """An image tokenizer, and what was saved beside it."""

    config: VQConfig
    params: Params
    ema: Params | None  # average of the parameters over the steps
    discriminator: tuple[PatchDiscriminatorConfig, Params, NormStatistics] | None


def is_image_tokenizer(location: epath.PathLike) -> bool:
    """Whether something is an image tokenizer on its own: a file of tensors, or such a folder of ours."""
    location = epath.Path(location)
    if location.is_file():
        return True
    if not (location / ARCHITECTURE_FILE).exists():
        return False
    return isinstance(read_architecture(location), VQConfig | SemanticTokenizerConfig)


def read_tokenizer(location: epath.PathLike) -> SavedTokenizer:
    """Reads LlamaGen's file, whose average is its only set of parameters if it has one, or a folder of ours.

    Raises:
        UserError: nothing is there, it is damaged, or its tensors are not those of an image tokenizer.
    """
    location = existing_path(location)
    discriminator = find_discriminator(location)
    if location.is_file():
        config = _measured(location)
        return SavedTokenizer(config, load_params(open_llamagen_vq(location, config)), None, discriminator)
    saved = read_architecture(location)
    params, ema = load_params(open_params(location, saved)), None
    if (params_path(location).parent / "ema").exists():
        ema = load_params(open_params(location, saved, ema=True))
    if isinstance(saved, SemanticTokenizerConfig):
        saved, params, ema = saved.vq, params["vq"], ema and ema["vq"]
    if not isinstance(saved, VQConfig):
        raise UserError(f"{location}: holds a {type(saved).__name__}, expected an image tokenizer")
    return SavedTokenizer(saved, params, ema, discriminator)


def write_folder(output: epath.PathLike, tokenizer: SavedTokenizer, *, ema: bool = False) -> None:
    """Writes a model folder of ours with the parameters or, with `ema`, their average.

    Raises UserError when the folder is not new or empty, and when there is no average.
    """
    params = tokenizer.ema if ema else tokenizer.params
    if params is None:
        raise UserError(f"--ema, but the input of {output} keeps no average of its parameters")
    with new_folder(epath.Path(output)) as folder:
        save_params(folder, tokenizer.config, params)


def write_llamagen(output: epath.PathLike, tokenizer: SavedTokenizer) -> epath.Path:
    """Writes `output/vq.pt`, which LlamaGen's classes load strictly. Returns its path.

    Raises:
        UserError: LlamaGen's code has other constants than this tokenizer, or the folder is not new or empty.
    """
    for field, value in _FIXED.items():
        if getattr(tokenizer.config, field) != value:
            raise UserError(
                f"--to=llamagen: its {field} is {getattr(tokenizer.config, field)}, LlamaGen's code has {value}"
            )
    content: dict[str, Mapping[str, np.ndarray] | int] = {"model": to_original(tokenizer.params, tokenizer.config)}
    if tokenizer.ema is not None:
        content["ema"] = to_original(tokenizer.ema, tokenizer.config)
    if tokenizer.discriminator is not None:
        config, params, statistics = tokenizer.discriminator
        content["discriminator"] = to_llamagen(params, statistics, config)
    content["steps"] = 0
    with new_folder(epath.Path(output)) as folder:
        save_torch(folder / FILE_NAME, content)
    return epath.Path(output) / FILE_NAME


def to_original(params: Params, config: VQConfig) -> dict[str, np.ndarray]:
    """The state dict of LlamaGen's `VQModel`."""
    flat = flatten(params)
    tensors = {}
    for link in links(whole_model(config), "vq"):
        values = np.asarray(flat[link.path.removeprefix("vq/")])
        tensors[link.name] = np.ascontiguousarray(link.transform.to_theirs(values))
    name, size = _USAGE_BUFFER
    return tensors | {name: np.zeros(size, np.float32)}


def _measured(file: epath.Path) -> VQConfig:
    """The architecture of a file, from the shapes of its tensors."""
    with open_tensors(file) as files:
        shapes = {f"gen_vision_model.{name}": info.shape for name, info in files.tensors.items()}
    with checked_sizes(file):
        return VQConfig(**measure_vq(Fields(file / "vq", "", {}), shapes), **_FIXED, image_size=IMAGE_SIZE)
