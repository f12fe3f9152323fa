"""Folders with random weights: any layout reads them back, and no slice needs the memory of a whole parameter."""

import json

import numpy as np
import pytest

from janus_jax.data.prompts import STYLES, SYSTEM_PROMPT
from janus_jax.models.presets import JANUS_PRO_7B, JANUS_PRO_MINI, JANUSFLOW_TINY, PRESETS
from janus_jax.weights.open_model import open_model
from janus_jax.weights.random_model import RandomTensors, random_model
from janus_jax.weights.reader import TensorSlice, all_slices
from janus_jax.weights.write_model import compare, write_model


@pytest.mark.parametrize(
    ("config", "layout"), [(JANUS_PRO_MINI, "hf"), (JANUS_PRO_MINI, "orbax"), (JANUSFLOW_TINY, "orbax")]
)
def test_a_folder_has_the_architecture_and_the_weights_of_its_seed(config, layout, tmp_path):
    source = random_model(config, seed=3)
    write_model(source, tmp_path / "model", layout)
    written = open_model(tmp_path / "model")
    assert (written.layout, written.config) == (layout, config)
    assert compare(source, written) == len(list(all_slices(source.parameters)))


def test_another_seed_and_another_layer_have_other_values():
    first, second = RandomTensors(JANUS_PRO_MINI, seed=0), RandomTensors(JANUS_PRO_MINI, seed=1)
    path = "llm/decoder/layers/mlp/up_proj/kernel"
    layers = [first.read(TensorSlice(path, layer)) for layer in range(3)] + [second.read(TensorSlice(path, 0))]
    assert len({values.tobytes() for values in layers}) == 4
    assert np.std(np.stack(layers)) == pytest.approx(JANUS_PRO_MINI.llama.init_std, rel=0.02)


def test_a_slice_of_the_7b_is_one_layer():
    tensors = RandomTensors(JANUS_PRO_7B, seed=0)
    assert tensors.parameters["siglip/layers/fc1/kernel"].shape == (24, 1024, 4096)
    assert tensors.read(TensorSlice("siglip/layers/fc1/kernel", 5)).shape == (1024, 4096)


@pytest.mark.parametrize("name", ["janus_pro_1b", "janusflow_1p3b", "janus_pro_tiny"])
def test_the_tokenizer_fits_the_prompts_of_the_model_and_loses_nothing(name):
    config = PRESETS[name]
    model = random_model(config, seed=0)
    model.tokenizer.check_roles(STYLES[config.prompt_style])
    assert model.tokenizer.vocab_size <= config.llama.vocab_size
    ids = model.tokenizer.encode(SYSTEM_PROMPT)
    assert len(ids) < 80  # leaves room in a row of 256
    text = "Größe 3 µm — 漢字 🙂\n  two  spaces"
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text


def test_stock_files_name_the_tokens(tmp_path):
    write_model(random_model(JANUS_PRO_MINI, seed=0), tmp_path / "model", "hf", dtype="bfloat16")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("janus", "bfloat16")
    assert config["image_token_id"] == open_model(tmp_path / "model").tokenizer.image_id
