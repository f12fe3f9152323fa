"""A VAE that diffusers saved, read from its folder; also with the attention names of its old releases."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten
from janus_jax.models.presets import JANUSFLOW_TINY
from janus_jax.weights.native import save_params, write_architecture
from janus_jax.weights.vae import compare_vaes, load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_old_names_new_names_and_our_folder_give_the_same_parameters(folder, tmp_path):
    config, params = load_vae(folder)
    assert (config.base_channels, config.channel_multipliers, config.scaling_factor) == (8, (1, 2), 0.5)
    state = load_file(folder / WEIGHTS)
    query = state["decoder.mid_block.attentions.0.to_q.weight"].numpy()
    np.testing.assert_array_equal(params["decoder"]["mid"]["attn_1"]["q"]["kernel"][0, 0], query.T)

    def old(name):
        for new, before in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    save_file({old(name): tensor for name, tensor in state.items()}, folder / WEIGHTS)
    save_params(tmp_path / "ours", config, params)
    for other_folder in (folder, tmp_path / "ours"):
        other_config, other = load_vae(other_folder)
        assert other_config == config
        assert flatten(other).keys() == flatten(params).keys()
        for path, value in flatten(params).items():
            np.testing.assert_array_equal(flatten(other)[path], value, err_msg=path)


def test_a_vae_that_was_written_otherwise_is_told_by_its_first_difference(folder):
    config, params = load_vae(folder)
    again = unflatten(flatten(params))
    assert compare_vaes((config, params), (config, again), "vae") == len(flatten(params))
    again["quant_conv"]["bias"] = params["quant_conv"]["bias"].at[3].add(1e-6)
    with pytest.raises(UserError, match="vae: what was written is not its quant_conv/bias"):
        compare_vaes((config, params), (config, again), "vae")
    with pytest.raises(UserError, match="another architecture"):
        compare_vaes((config, params), (dataclasses.replace(config, scaling_factor=1.0), params), "vae")


def test_other_folders_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="neither model.json nor config.json"):
        load_vae(tmp_path)
    write_architecture(tmp_path, JANUSFLOW_TINY)
    with pytest.raises(UserError, match="holds a JanusFlowConfig, expected a VAE"):
        load_vae(tmp_path)
    state = load_file(folder / WEIGHTS)
    del state["quant_conv.bias"]
    save_file(state, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"missing \(1\): quant_conv\.bias"):
        load_vae(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no weights found"):
        load_vae(folder)
