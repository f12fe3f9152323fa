"""The VAE of JanusFlow, from a diffusers AutoencoderKL folder or one of ours."""

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import VAEConfig
from janus_jax.models.params import Params, flatten, unflatten
from janus_jax.weights.janusflow_config import FILE_NAME, read_vae_config
from janus_jax.weights.janusflow_name_map import with_present_names
from janus_jax.weights.name_map import links, match_names
from janus_jax.weights.native import read_architecture
from janus_jax.weights.open_model import block_of
from janus_jax.weights.orbax_io import open_params
from janus_jax.weights.safetensors_io import open_tensors

_TENSOR_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def load_vae(folder: epath.PathLike, dtype: DTypeLike | None = None) -> tuple[VAEConfig, Params]:
    """Architecture and parameters; `dtype` None keeps what was saved.

    Raises:
        UserError: neither kind of folder, not a VAE, damaged, or tensors that are not those of its config.
    """
    folder = epath.Path(folder)
    if (folder / "model.json").exists():
        config = read_architecture(folder)
        if not isinstance(config, VAEConfig):
            raise UserError(f"{folder}: holds a {type(config).__name__}, expected a VAE")
        reader = open_params(folder, config)
        return config, unflatten({path: jnp.asarray(reader.read(path, None), dtype) for path in reader.shapes})
    if not (folder / FILE_NAME).exists():
        raise UserError(f"{folder}: not a VAE folder (neither model.json nor {FILE_NAME} is there)")
    config = read_vae_config(folder)
    path = next((folder / name for name in _TENSOR_FILES if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder}: no weights found (expected {' or '.join(_TENSOR_FILES)})")
    with open_tensors(path) as tensors:
        in_file = with_present_names(tensors.shapes)
        shapes = {present: tensors.shapes[name].shape for present, name in in_file.items()}
        names = match_names(shapes, config, "vae", str(path))
        flat = {
            link.path: jnp.asarray(block_of(tensors.read(in_file[names[link.name]]), link), dtype)
            for link in links(config, "vae")
        }
    return config, unflatten(flat)


def compare_vaes(wanted: tuple[VAEConfig, Params], found: tuple[VAEConfig, Params], origin: str) -> int:
    """How many tensors are equal bit for bit. Raises UserError naming the first thing that differs."""
    if wanted[0] != found[0]:
        raise UserError(f"{origin}: what was written is a VAE of another architecture: {found[0]}, not {wanted[0]}")
    flat, read = flatten(wanted[1]), flatten(found[1])
    for path, leaf in flat.items():
        if leaf.dtype != read[path].dtype or np.asarray(leaf).tobytes() != np.asarray(read[path]).tobytes():
            raise UserError(f"{origin}: what was written is not its {path}")
    return len(flat)
