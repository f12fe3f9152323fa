"""config.json of DeepSeek's original JanusFlow <-> `JanusFlowConfig`.

A missing field has the default of the class that reads the file in the original code. A value that our code does not
compute is refused by name rather than computed differently.
"""

from collections.abc import Mapping
from typing import Any

from janus_jax.models.config import JanusFlowConfig, LlamaConfig, SiglipConfig, UViTConfig
from janus_jax.models.presets import JANUSFLOW_1P3B
from janus_jax.weights.deepseek_config import read_section, section
from janus_jax.weights.infer_sizes import TOWER_DEFAULTS, measure_siglip, tower_fields
from janus_jax.weights.json_fields import Fields
from janus_jax.weights.layout_limits import check_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, llama_fields, read_llama
from janus_jax.weights.name_map import Shape

_TOWER = "vision_und_enc_model.vision_tower."

# Defaults of the original ShallowUViTEncoder and ShallowUViTDecoder; the released model has other values.
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


def is_flow(top: Fields) -> bool:
    """Whether a config.json of DeepSeek's is JanusFlow's and not Janus'."""
    return "vision_gen_enc_config" in top.values


def read_flow_config(top: Fields, shapes: Mapping[str, Shape], prompt_style: str) -> JanusFlowConfig:
    """The architecture in a whole config.json.

    Args:
        shapes: name -> shape of the folder's tensors, from which the sizes of SigLIP are read.
        prompt_style: of the result; config.json does not contain it.

    Raises:
        UserError: a damaged field, or an architecture that our code cannot represent.
    """

    llama = read_llama(top.object("language_config", LLAMA_DEFAULTS))
    tower = read_section(top, "vision_und_enc_config", "CLIPVisionTower", TOWER_DEFAULTS)
    siglip = measure_siglip(tower, shapes, _TOWER)
    uvit = _read_uvit(
        read_section(top, "vision_gen_enc_config", "ShallowUViTEncoder", _ENCODER_DEFAULTS),
        read_section(top, "vision_gen_dec_config", "ShallowUViTDecoder", _DECODER_DEFAULTS),
        siglip,
        llama,
    )
    return JanusFlowConfig(llama=llama, siglip=siglip, uvit=uvit, prompt_style=prompt_style)


def flow_config(config: JanusFlowConfig, dtype_name: str) -> dict[str, Any]:
    """The content of config.json for the original code, which has the widths of the released model built in.

    Raises:
        UserError: the original code cannot build the architecture; names the first field.
    """
    siglip, uvit = config.siglip, config.uvit
    upsamples = uvit.patch_size.bit_length() - 1
    fixed = {
        "llama.width": (config.llama.width, JANUSFLOW_1P3B.llama.width),
        "siglip.width": (siglip.width, JANUSFLOW_1P3B.siglip.width),
        "uvit.width": (uvit.width, JANUSFLOW_1P3B.uvit.width),
        "uvit.patch_size": (uvit.patch_size, 2**upsamples),
        "uvit.grid": (uvit.grid, siglip.image_size // siglip.patch_size),
    }
    check_fields("deepseek", fixed)

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
        "vision_und_enc_config": section("vision_und_enc", "CLIPVisionTower", **tower_fields(siglip)),
        "vision_gen_enc_config": section("vision_gen_enc", "ShallowUViTEncoder", **encoder, **both),
        "vision_gen_dec_config": section("vision_gen_dec", "ShallowUViTDecoder", **decoder, **both),
        "language_config": {**llama_fields(config.llama), "torch_dtype": dtype_name},
    }


def _read_uvit(encoder: Fields, decoder: Fields, siglip: SiglipConfig, llama: LlamaConfig) -> UViTConfig:
    """The networks around the tokens of an image. Encoder and decoder must fit each other, which the original does not
    check."""
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
        # The grid of tokens is SigLIP's: the original hard-codes both for 384 pixels.
        latent_size=siglip.image_size // siglip.patch_size * patch_size,
        latent_channels=latent_channels,
        patch_size=patch_size,
        width=width,
        time_width=llama.width,
        encoder_depth=encoder.integer("layers_in_middle"),
        decoder_depth=decoder.integer("layers_in_middle"),
        norm_eps=encoder.number("norm_eps"),
    )
