"""config.json of DeepSeek's JanusFlow <-> `JanusFlowConfig`, and of diffusers' AutoencoderKL <-> `VAEConfig`.

As in `config_files`: a missing field has the default of the class that would read the file there, and what our code
does not compute is refused by name and value.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import JanusFlowConfig, LlamaConfig, SiglipConfig, UViTConfig, VAEConfig
from janus_jax.weights.infer_sizes import (
    SIGLIP_NORM_EPS,
    TOWER_DEFAULTS,
    measure_siglip,
    tower_fields,
)
from janus_jax.weights.json_fields import Fields, read_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, llama_fields, read_llama
from janus_jax.weights.name_map import Shape

FILE_NAME = "config.json"
_TOWER = "vision_und_enc_model.vision_tower."

# Of the original ShallowUViTEncoder and ShallowUViTDecoder, which are not the values of the released model.
_ENCODER_DEFAULTS = {
    "input_channels": 3,
    "kernel_size": 7,
    "stride": 4,
    "block_out_channels": [768],
    "layers_in_middle": 2,
    "hidden_size": 2048,
    "norm_eps": 1e-6,
}
_DECODER_DEFAULTS = {
    "in_channels": 768,
    "out_channels": 3,
    "block_out_channels": [768],
    "upsamples": 2,
    "layers_in_middle": 2,
    "hidden_size": 2048,
    "norm_eps": 1e-6,
}
_BOTH_FIXED = {"use_bias": True, "use_mid_block": True, "elementwise_affine": True, "dropout": 0.0}
_VAE_DEFAULTS = {  # of diffusers' AutoencoderKL
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_VAE_NORM_EPS = 1e-6  # in diffusers' code
_VAE_FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_VAE_NEVER = ("shift_factor", "latents_mean", "latents_std")


def is_flow(top: Fields) -> bool:
    """Whether the config.json of a DeepSeek folder is JanusFlow's."""
    return "vision_gen_enc_config" in top.values


def read_flow_config(top: Fields, shapes: Mapping[str, Shape], prompt_style: str) -> JanusFlowConfig:
    """The architecture of DeepSeek's JanusFlow.

    Args:
        top: the whole config.json.
        shapes: name -> shape of the folder's tensors; SigLIP's sizes are read off them.
        prompt_style: of the result; config.json does not tell it.

    Raises:
        UserError: a damaged field, or an architecture that our code cannot represent.
    """

    def params(part: str, cls: str, defaults: Mapping[str, Any]) -> Fields:
        section = top.object(part)
        section.only(cls=cls)
        return section.object("params", defaults)

    try:
        llama = read_llama(top.object("language_config", LLAMA_DEFAULTS))
        tower = params("vision_und_enc_config", "CLIPVisionTower", TOWER_DEFAULTS)
        siglip = measure_siglip(tower, shapes, _TOWER)
        uvit = _read_uvit(
            params("vision_gen_enc_config", "ShallowUViTEncoder", _ENCODER_DEFAULTS),
            params("vision_gen_dec_config", "ShallowUViTDecoder", _DECODER_DEFAULTS),
            siglip,
            llama,
        )
        return JanusFlowConfig(llama=llama, siglip=siglip, uvit=uvit, prompt_style=prompt_style)
    except UserError:
        raise
    except ValueError as error:  # sizes that do not go together, from the config classes
        raise UserError(f"{top.path}: {error}") from error


def flow_config(config: JanusFlowConfig, dtype_name: str) -> dict[str, Any]:
    """config.json for the original code, which itself builds only the released widths.

    Raises:
        UserError: the layout cannot express the architecture.
    """
    siglip, uvit = config.siglip, config.uvit
    upsamples = uvit.patch_size.bit_length() - 1
    fixed = {
        "siglip.norm_eps": (siglip.norm_eps, SIGLIP_NORM_EPS),
        "uvit.patch_size": (uvit.patch_size, 2**upsamples),
        "uvit.grid": (uvit.grid, siglip.image_size // siglip.patch_size),
    }
    for name, (ours, theirs) in fixed.items():
        if ours != theirs:
            raise UserError(f"{name}={ours} cannot be written in the deepseek layout, which has {theirs}")

    def part(kind: str, cls: str, **params: Any) -> dict[str, Any]:
        return {"model_type": kind, "cls": cls, "params": params}

    both = {
        "block_out_channels": [uvit.width],
        "hidden_size": uvit.time_width,
        "norm_eps": uvit.norm_eps,
        **_BOTH_FIXED,
    }
    encoder = {
        "input_channels": uvit.latent_channels,
        "kernel_size": uvit.patch_size,
        "stride": uvit.patch_size,
        "padding": 0,
        "layers_in_middle": uvit.encoder_depth,
    }
    decoder = {
        "in_channels": uvit.width,
        "out_channels": uvit.latent_channels,
        "upsamples": upsamples,
        "layers_in_middle": uvit.decoder_depth,
    }
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype_name,
        "vision_und_enc_config": part("vision_und_enc", "CLIPVisionTower", **tower_fields(siglip)),
        "vision_gen_enc_config": part("vision_gen_enc", "ShallowUViTEncoder", **encoder, **both),
        "vision_gen_dec_config": part("vision_gen_dec", "ShallowUViTDecoder", **decoder, **both),
        "language_config": {**llama_fields(config.llama), "torch_dtype": dtype_name},
    }


def read_vae_config(folder: epath.PathLike) -> VAEConfig:
    """The architecture of a diffusers AutoencoderKL folder.

    Raises:
        UserError: no readable config.json, another kind of model, or one that our code cannot represent.
    """
    fields = read_fields(epath.Path(folder) / FILE_NAME)
    if fields.values.get("_class_name") != "AutoencoderKL":
        raise fields.wrong("_class_name", "'AutoencoderKL', the VAE of diffusers")
    fields = fields.filled(_VAE_DEFAULTS)
    channels = fields.integer_list("block_out_channels")
    if any(size % channels[0] for size in channels):
        raise fields.wrong("block_out_channels", "multiples of the first")
    fields.only(
        **_VAE_FIXED,
        **dict.fromkeys(_VAE_NEVER),
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
    )
    try:
        return VAEConfig(
            base_channels=channels[0],
            channel_multipliers=tuple(size // channels[0] for size in channels),
            num_res_blocks=fields.integer("layers_per_block"),
            latent_channels=fields.integer("latent_channels"),
            norm_groups=fields.integer("norm_num_groups"),
            norm_eps=_VAE_NORM_EPS,
            scaling_factor=fields.number("scaling_factor"),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{fields.path}: {error}") from error


def _read_uvit(encoder: Fields, decoder: Fields, siglip: SiglipConfig, llama: LlamaConfig) -> UViTConfig:
    """Encoder and decoder must fit each other, as they do in the original only where it is used as released."""
    (width, *more), patch_size = encoder.integer_list("block_out_channels"), encoder.integer("kernel_size")
    if more:
        raise encoder.wrong("block_out_channels", "one number, the width of the tokens")
    if patch_size & (patch_size - 1):
        raise encoder.wrong("kernel_size", "a power of 2, which the decoder's upsamples can undo")
    latent_channels = encoder.integer("input_channels")
    encoder.only(stride=patch_size, padding=0, hidden_size=llama.width, **_BOTH_FIXED)
    decoder.only(
        in_channels=width,
        out_channels=latent_channels,
        block_out_channels=[width],
        upsamples=patch_size.bit_length() - 1,
        hidden_size=llama.width,
        norm_eps=encoder.number("norm_eps"),
        **_BOTH_FIXED,
    )
    return UViTConfig(
        # As many tokens as SigLIP has: the original hard-codes both for 384 pixels.
        latent_size=siglip.image_size // siglip.patch_size * patch_size,
        latent_channels=latent_channels,
        patch_size=patch_size,
        width=width,
        time_width=llama.width,
        encoder_depth=encoder.integer("layers_in_middle"),
        decoder_depth=decoder.integer("layers_in_middle"),
        norm_eps=encoder.number("norm_eps"),
    )
