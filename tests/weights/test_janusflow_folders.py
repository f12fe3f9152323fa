"""Whole JanusFlow folders: the original's layout and ours, with the VAE beside it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.digits import data as digits
from janus_jax.errors import UserError
from janus_jax.models.params import flatten
from janus_jax.models.presets import VAE_TINY
from janus_jax.weights.load import load_params
from janus_jax.weights.name_map import their_shapes
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import all_slices, model_in_memory
from janus_jax.weights.vae import VAE_FOLDER, compare_vaes, load_vae
from janus_jax.weights.write_model import compare, write_model
from tests.helpers.deepseek_sizes import any_size
from tests.helpers.small_folders import read_tensors
from tests.helpers.small_models import SMALL_FLOW, random_params
from tests.helpers.tiny_runs import cache_folder, start_command

CONFIG = dataclasses.replace(SMALL_FLOW, llama=dataclasses.replace(SMALL_FLOW.llama, vocab_size=384))
VAE = dataclasses.replace(VAE_TINY, latent_channels=CONFIG.uvit.latent_channels)


@pytest.fixture(scope="module", autouse=True)
def small_models_in_the_original_layout():
    with any_size():
        yield


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our folder with its VAE, which is in bfloat16."""
    assert CONFIG.uvit.latent_size * VAE.downsampling == CONFIG.siglip.image_size
    tokenizer = digits.build_tokenizer(digits.text_records(), CONFIG.llama.vocab_size, CONFIG.prompt_style)
    source = model_in_memory(CONFIG, random_params(CONFIG), tokenizer)
    output = tmp_path_factory.mktemp("flow") / "ours"
    write_model(source, output, "orbax", vae=(VAE, random_vae()))
    return output


def random_vae():
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(VAE))


@pytest.fixture(scope="module")
def deepseek(ours, tmp_path_factory):
    output = tmp_path_factory.mktemp("flow") / "deepseek"
    write_model(open_model(ours), output, "deepseek")
    return output


def test_the_original_layout_has_the_original_tensors_and_reads_back_bit_for_bit(ours, deepseek, tmp_path):
    tensors = read_tensors(deepseek)
    assert {name: shape for name, (_, shape, _) in tensors.items()} == their_shapes(CONFIG, "janusflow")
    source = open_model(deepseek)
    assert (source.layout, source.config) == ("deepseek", CONFIG)
    loaded, expected = flatten(load_params(source)), flatten(random_params(CONFIG))
    assert loaded.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
    assert compare(open_model(ours), source) == len(list(all_slices(source.parameters)))
    write_model(source, tmp_path / "back", "orbax")
    write_model(open_model(tmp_path / "back"), tmp_path / "again", "deepseek")
    assert read_tensors(tmp_path / "again") == tensors
    assert json.loads((deepseek / "processor_config.json").read_text())["image_gen_tag"] == "<begin_of_image>"


def test_the_vae_travels_in_our_folder(ours):
    config, params = load_vae(ours / VAE_FOLDER)
    assert config == VAE
    for path, leaf in flatten(random_vae()).items():
        assert flatten(params)[path].dtype == leaf.dtype
        np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)


def test_the_command_takes_the_vae_along_and_verifies_it(ours, tmp_path, tmp_path_factory):
    flags = (f"--input={ours}", f"--output={tmp_path / 'half'}", "--to=orbax", "--dtype=float16", "--verify")
    process = start_command("launch.convert", *flags, cache=cache_folder(tmp_path_factory))
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert f"verified: {len(flatten(random_params(VAE)))} tensors of the VAE are equal bit for bit" in out
    assert compare_vaes(load_vae(ours / "vae"), load_vae(tmp_path / "half" / "vae"), "") > 0


def test_what_cannot_be_is_refused_before_the_work(ours, tmp_path):
    source = open_model(ours)
    with pytest.raises(UserError, match="transformers does not have it"):
        write_model(source, tmp_path / "hf", "hf")
    with pytest.raises(UserError, match="in the orbax layout only"):
        write_model(source, tmp_path / "x", "deepseek", vae=(VAE, random_params(VAE)))
    with pytest.raises(UserError, match="the VAE has 4 latent channels, expected 3"):
        write_model(source, tmp_path / "x", "orbax", vae=(dataclasses.replace(VAE, latent_channels=4), {}))
    larger = dataclasses.replace(VAE, channel_multipliers=(*VAE.channel_multipliers, 1))
    with pytest.raises(UserError, match="the VAE enlarges 4 latents to 32 pixels, expected 16"):
        write_model(source, tmp_path / "x", "orbax", vae=(larger, {}))
    assert list(tmp_path.iterdir()) == []


def test_missing_tensors_are_listed(deepseek, tmp_path):
    from safetensors.numpy import load_file, save_file

    state = load_file(deepseek / "model.safetensors")
    del state["beg_of_und_embed"]
    for path in deepseek.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing \(1\): beg_of_und_embed"):
        open_model(tmp_path)
