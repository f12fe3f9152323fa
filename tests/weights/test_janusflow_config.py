"""config.json of JanusFlow and of the VAE: what is read, written and refused."""

import copy
import json

import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.presets import JANUSFLOW_1P3B, SDXL_VAE
from janus_jax.weights.janusflow_config import flow_config, is_flow, read_flow_config
from janus_jax.weights.json_fields import Fields, read_fields
from janus_jax.weights.name_map import their_shapes
from janus_jax.weights.vae import read_vae_config
from tests.helpers.deepseek_sizes import flow_content
from tests.helpers.small_models import SMALL_FLOW

# What is known of the released file: partial, and with other values than the defaults of the code.
RELEASED = {
    "model_type": "multi_modality",
    "vision_und_enc_config": {
        "cls": "CLIPVisionTower",
        "params": {"model_name": "siglip_large_patch16_384", "image_size": 384, "select_layer": -1},
    },
    "vision_gen_enc_config": {
        "cls": "ShallowUViTEncoder",
        "params": {"input_channels": 4, "kernel_size": 2, "stride": 2, "padding": 0, "layers_in_middle": 2},
    },
    "vision_gen_dec_config": {
        "cls": "ShallowUViTDecoder",
        "params": {"in_channels": 768, "out_channels": 4, "upsamples": 1},
    },
    "language_config": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 16384,
    },
}
SDXL = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


def fields(content):
    return Fields(epath.Path("DIR/config.json"), "", content)


def read(content, config=JANUSFLOW_1P3B):
    return read_flow_config(fields(content), their_shapes(config, "janusflow"), config.prompt_style)


def test_released_fields_give_the_preset():
    assert is_flow(fields(RELEASED)) and not is_flow(fields({"model_type": "multi_modality"}))
    assert read(RELEASED) == JANUSFLOW_1P3B


@pytest.mark.parametrize(("config", "write"), [(JANUSFLOW_1P3B, flow_config), (SMALL_FLOW, flow_content)])
def test_what_is_written_reads_back(config, write, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write(config, "bfloat16")))
    top = read_fields(epath.Path(tmp_path) / "config.json")
    assert read_flow_config(top, their_shapes(config, "janusflow"), config.prompt_style) == config


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("vision_gen_enc_config", "stride", 4, r"vision_gen_enc_config\.params\.stride=4, expected 2"),
        ("vision_gen_enc_config", "padding", 1, r"params\.padding=1, expected 0"),
        ("vision_gen_enc_config", "kernel_size", 3, r"kernel_size=3, expected a power of 2"),
        ("vision_gen_enc_config", "block_out_channels", [768, 768], r"expected one number"),
        ("vision_gen_enc_config", "use_mid_block", False, r"use_mid_block=False, expected True"),
        ("vision_gen_enc_config", "hidden_size", 1024, r"hidden_size=1024, expected 2048"),
        ("vision_gen_enc_config", "dropout", 0.1, r"dropout=0\.1"),
        ("vision_gen_dec_config", "in_channels", 512, r"in_channels=512, expected 768"),
        ("vision_gen_dec_config", "upsamples", 2, r"upsamples=2, expected 1"),
        ("vision_gen_dec_config", "out_channels", 3, r"out_channels=3, expected 4"),
        ("vision_gen_dec_config", "layers_in_middle", 0, r"layers_in_middle=0, expected a whole number"),
        ("vision_und_enc_config", "image_size", 336, r"image_size=336"),
    ],
)
def test_what_we_do_not_compute_is_refused(part, field, value, message):
    content = copy.deepcopy(RELEASED)
    content[part]["params"][field] = value
    with pytest.raises(UserError, match=message):
        read(content)


def test_left_out_fields_have_the_code_s_defaults_which_are_not_the_released_values():
    content = copy.deepcopy(RELEASED)
    del content["vision_gen_enc_config"]["params"]["kernel_size"]
    with pytest.raises(UserError, match=r"kernel_size=7, expected a power of 2"):
        read(content)


def test_sdxl_s_file_gives_the_preset(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SDXL))
    assert read_vae_config(tmp_path) == SDXL_VAE


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("_class_name", "AutoencoderTiny", r"_class_name='AutoencoderTiny', expected 'AutoencoderKL'"),
        ("block_out_channels", [128, 200], "expected multiples of the first"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4, "down_block_types="),
        ("shift_factor", 0.1, r"shift_factor=0\.1"),
        ("latents_mean", [0.0] * 4, "latents_mean="),
        ("use_quant_conv", False, "use_quant_conv=False"),
        ("norm_num_groups", 24, "base_channels=128 must be a positive multiple of norm_groups=24"),
        ("scaling_factor", 0, r"scaling_factor=0, expected a positive number"),
    ],
)
def test_another_vae_is_refused(tmp_path, field, value, message):
    (tmp_path / "config.json").write_text(json.dumps(SDXL | {field: value}))
    with pytest.raises(UserError, match=message):
        read_vae_config(tmp_path)
