"""The VAE of JanusFlow, read from a diffusers AutoencoderKL folder or from one of ours.

A model folder of ours has its VAE in a folder beside the parameters, `VAE_FOLDER`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import JanusFlowConfig, VAEConfig
from janus_jax.models.params import Params, flatten
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.json_fields import CONFIG_FILE, checked_sizes, read_fields
from janus_jax.weights.load import load_params
from janus_jax.weights.locations import existing_path
from janus_jax.weights.native import ARCHITECTURE_FILE, open_params, read_architecture
from janus_jax.weights.reader import ModelReader, TensorReader
from janus_jax.weights.tensor_files import open_tensors

VAE_FOLDER = "vae"
_TENSOR_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_DEFAULTS = {  # defaults of diffusers' AutoencoderKL
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_NORM_EPS = 1e-6  # in diffusers' code
_FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_NEVER = ("shift_factor", "latents_mean", "latents_std")
# Names of the attention's projections in diffusers before 0.15 -> since.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_vae(folder: epath.PathLike, dtype: DTypeLike | None = None) -> tuple[VAEConfig, Params]:
    """The architecture and the parameters of a VAE; `dtype` None keeps the stored one.

    Raises:
        UserError: the folder is of neither kind, holds no VAE, is damaged, or its tensors are not those of its config.
    """
    config, tensors = open_vae(folder)
    return config, load_params(tensors, dtype)


def open_vae(folder: epath.PathLike) -> tuple[VAEConfig, TensorReader]:
    """The architecture of a VAE and a reader of its parameters. Raises UserError as `load_vae` does."""
    folder = existing_path(folder)
    if (folder / ARCHITECTURE_FILE).exists():
        config = read_architecture(folder)
        if not isinstance(config, VAEConfig):
            raise UserError(f"{folder}: holds a {type(config).__name__}, expected a VAE")
        return config, open_params(folder, config)
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder}: not a VAE folder (neither {ARCHITECTURE_FILE} nor {CONFIG_FILE} is there)")
    config = read_vae_config(folder)
    path = next((folder / name for name in _TENSOR_FILES if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder}: no weights found (expected {' or '.join(_TENSOR_FILES)})")
    files = open_tensors(path)
    return config, ForeignTensors(files, config, "vae", path, stored_names=_with_present_names(files.tensors))


def find_vae(reader: ModelReader, model: epath.PathLike, vae: epath.PathLike | None) -> epath.Path | None:
    """The folder of the VAE that belongs to an opened model, None if there is none.

    Args:
        model: the folder of the model, which may contain its VAE.
        vae: the folder that a user asked for; it takes precedence.

    Raises:
        UserError: a VAE is given that does not exist, or for a model that generates image tokens and therefore cannot
            use it.
    """
    is_flow = isinstance(reader.config, JanusFlowConfig)
    if vae is not None:
        if not is_flow:
            raise UserError(f"vae={vae}: the model in {model} generates image tokens, only JanusFlow has a VAE")
        return existing_path(vae)
    beside = epath.Path(model) / VAE_FOLDER
    return beside if is_flow and beside.exists() else None


def require_vae(config: JanusFlowConfig, vae: VAEConfig) -> None:
    """Raises UserError when a VAE has other latents or images than a JanusFlow model was trained with."""
    uvit = config.uvit
    if vae.latent_channels != uvit.latent_channels:
        raise UserError(f"the VAE has {vae.latent_channels} latent channels, expected {uvit.latent_channels}")
    size = uvit.latent_size * vae.downsampling
    if size != config.siglip.image_size:  # generated images have the size of those that the model understands
        raise UserError(
            f"the VAE enlarges {uvit.latent_size} latents to {size} pixels, expected {config.siglip.image_size}"
        )


def compare_vaes(wanted: tuple[VAEConfig, Params], found: tuple[VAEConfig, Params], origin: str) -> int:
    """Compares a VAE with what was written of it; returns how many tensors are equal bit for bit.

    Raises UserError naming the first thing that differs.
    """
    if wanted[0] != found[0]:
        raise UserError(f"{origin}: what was written is a VAE of another architecture: {found[0]}, not {wanted[0]}")
    flat, read = flatten(wanted[1]), flatten(found[1])
    for path, leaf in flat.items():
        if leaf.dtype != read[path].dtype or np.asarray(leaf).tobytes() != np.asarray(read[path]).tobytes():
            raise UserError(f"{origin}: what was written is not its {path}")
    return len(flat)


def read_vae_config(folder: epath.PathLike) -> VAEConfig:
    """The architecture of a diffusers AutoencoderKL folder.

    Raises:
        UserError: no readable config.json, another kind of model, or one that our code cannot represent.
    """
    fields = read_fields(epath.Path(folder) / CONFIG_FILE)
    if fields.values.get("_class_name") != "AutoencoderKL":
        raise fields.wrong("_class_name", "'AutoencoderKL', the VAE of diffusers")
    fields = fields.filled(_DEFAULTS)
    channels = fields.integer_list("block_out_channels")
    if any(size % channels[0] for size in channels):
        raise fields.wrong("block_out_channels", "multiples of the first")
    fields.only(
        **_FIXED,
        **dict.fromkeys(_NEVER),
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
    )
    with checked_sizes(fields.path):
        return VAEConfig(
            base_channels=channels[0],
            channel_multipliers=tuple(size // channels[0] for size in channels),
            num_res_blocks=fields.integer("layers_per_block"),
            latent_channels=fields.integer("latent_channels"),
            norm_groups=fields.integer("norm_num_groups"),
            norm_eps=_NORM_EPS,
            scaling_factor=fields.number("scaling_factor"),
        )


def _with_present_names(found: Mapping[str, Any]) -> dict[str, str]:
    """The name that diffusers' VAE gives a tensor today -> its name in the file, which may be an older one."""

    def present(name: str) -> str:
        return re.sub(
            rf"(mid_block\.attentions\.0\.)({'|'.join(_OLD_ATTENTION)})\.",
            lambda match: f"{match[1]}{_OLD_ATTENTION[match[2]]}.",
            name,
        )

    return {present(name): name for name in found}
