"""Training starts from parts saved by transformers and LlamaGen: all of a part arrives; a table says what is fresh."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from configs.base import base_config
from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, flatten, init_params
from janus_jax.models.presets import PRESETS
from janus_jax.sharding import make_mesh
from janus_jax.training import initialization
from janus_jax.training.initialization import format_origins, initial_params
from janus_jax.weights.load import load_params
from janus_jax.weights.native import save_params, write_architecture
from janus_jax.weights.open_model import open_model
from janus_jax.weights.pretrained_parts import open_part
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.write_model import write_model
from tests.helpers.deepseek_sizes import any_size
from tests.helpers.small_folders import make_small, save_small

VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 32,
    "patch_size": 8,
    "intermediate_size": 96,
}

TEXT_TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50000}


def load_part(part, location, config):
    """Path -> values of everything in a part."""
    return flatten(load_params(open_part(part, location, config)))


@pytest.fixture(scope="module")
def small():
    return make_small()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A Llama with 300 of our 384 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
    )
    folder = tmp_path_factory.mktemp("llm")
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder, model


def test_a_llama_with_fewer_tokens_fills_the_first_rows(small, llm):
    config, (folder, model) = small[1], llm
    values = load_part("llm", folder, config)
    assert values.keys() == {path for path in flatten(abstract_params(config)) if path.startswith("llm/")}
    layer = model.model.layers[2]
    down = layer.mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(values["llm/decoder/layers/mlp/down_proj/kernel"][2], down.T)
    params, fresh = init_params(config, 7, known=values)["llm"], init_params(config, 7)["llm"]
    np.testing.assert_array_equal(params["embed_tokens"][:300], model.model.embed_tokens.weight.detach().numpy())
    np.testing.assert_array_equal(params["lm_head"]["kernel"][:, :300], model.lm_head.weight.detach().numpy().T)
    np.testing.assert_array_equal(params["embed_tokens"][300:], fresh["embed_tokens"][300:])
    np.testing.assert_array_equal(params["lm_head"]["kernel"][:, 300:], fresh["lm_head"]["kernel"][:, 300:])


@pytest.mark.parametrize("whole", [True, False], ids=["SiglipModel", "SiglipVisionModel"])
def test_siglip_arrives_without_its_pooling_head_and_text_tower(small, tmp_path, whole):
    torch.manual_seed(1)
    if whole:
        model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT_TOWER))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**VISION))
    model.save_pretrained(tmp_path)
    values = load_part("siglip", tmp_path, small[1])
    state = {name.removeprefix("vision_model."): value.numpy() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(values["siglip/pos_embed"], state["embeddings.position_embedding.weight"])
    np.testing.assert_array_equal(
        values["siglip/layers/o_proj/kernel"][1], state["encoder.layers.1.self_attn.out_proj.weight"].T
    )
    assert values.keys() == {path for path in flatten(abstract_params(small[1])) if path.startswith("siglip/")}


@pytest.fixture(scope="module")
def llamagen(small, tmp_path_factory):
    """The VQ of the small model as LlamaGen saves one: {"model": state dict with the original's names}."""
    model, config, _, tokenizer = small
    folder = tmp_path_factory.mktemp("vq")
    hf = save_small(folder / "hf", model, config, tokenizer)
    with any_size():
        write_model(open_model(hf), folder / "deepseek", "deepseek")
    from safetensors.torch import load_file

    prefix = "gen_vision_model."
    state = load_file(folder / "deepseek" / "model.safetensors")
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    state["quantize.codebook_used"] = torch.zeros(65536)
    torch.save({"model": state, "steps": 1}, folder / "vq_ds16.pt")
    return folder / "vq_ds16.pt"


def test_llamagens_file_holds_the_image_tokenizer(small, llamagen):
    values, expected = load_part("vq", llamagen, small[1]), flatten(small[2]["vq"])
    assert values.keys() == {f"vq/{path}" for path in expected}
    for path, leaf in expected.items():
        np.testing.assert_array_equal(values[f"vq/{path}"], leaf, err_msg=path)


@pytest.fixture
def experiment(small, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", small[1])
    config = base_config("small", "small")
    config.mesh.fsdp = 1
    return config


def start(experiment, architecture):
    return initial_params(experiment, architecture, make_mesh({"data": 1, "fsdp": -1, "tensor": 1}))[:2]


def test_an_image_tokenizer_starts_from_llamagens_file(small, experiment, llamagen):
    experiment.init.checkpoint = str(llamagen)
    params, origins = start(experiment, small[1].vq)
    for path, leaf in flatten(small[2]["vq"]).items():
        np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)
    assert {origin.source for origin in origins} == {f"init.checkpoint={llamagen}"}
    with pytest.raises(UserError, match=r"init\.checkpoint=.*do not fit the architecture"):
        start(experiment, dataclasses.replace(small[1].vq, num_res_blocks=2))


def test_a_run_starts_from_parts_and_says_what_is_fresh(small, experiment, llm, llamagen):
    experiment.init.update(llm=str(llm[0]), vq=str(llamagen))
    params, origins = start(experiment, small[1])
    flat, fresh = flatten(params), flatten(init_params(small[1], experiment.seed))
    np.testing.assert_array_equal(flat["vq/codebook"], small[2]["vq"]["codebook"])
    np.testing.assert_array_equal(flat["siglip/pos_embed"], fresh["siglip/pos_embed"])
    assert sum(origin.parameters for origin in origins) == sum(leaf.size for leaf in jax.tree.leaves(params))
    by_module = {(origin.module, origin.source): origin.parameters for origin in origins}
    assert by_module["llm", "fresh"] == 2 * 84 * 24  # rows of tokens that the Llama does not have
    assert by_module["vq", f"init.vq={llamagen}"] == sum(leaf.size for leaf in jax.tree.leaves(params["vq"]))
    assert by_module["siglip", "fresh"] == sum(leaf.size for leaf in jax.tree.leaves(params["siglip"]))
    assert f"init.llm={llm[0]}" in format_origins(origins)


def test_a_run_starts_from_a_whole_hugging_face_folder(small, experiment, tmp_path):
    model, config, expected, tokenizer = small
    experiment.init.checkpoint = str(save_small(tmp_path / "hf", model, config, tokenizer))
    params, origins = start(experiment, config)
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)
    assert {origin.source for origin in origins} == {f"init.checkpoint={tmp_path / 'hf'}"}


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu", None, "quick_gelu"])
def test_the_activation_of_a_siglip_is_looked_at(small, tmp_path, caplog, act):
    """transformers' SigLIP files declare the approximate GELU, their class too; Janus computes the exact one."""
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"hidden_act": act}
    (tmp_path / "config.json").write_text(json.dumps(content))
    if act == "quick_gelu":
        with pytest.raises(UserError, match=r"config\.json: hidden_act='quick_gelu', expected 'gelu'"):
            load_part("siglip", tmp_path, small[1])
        return
    with caplog.at_level(logging.WARNING, "absl"):
        load_part("siglip", tmp_path, small[1])
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (act != "gelu")
    assert all("hidden_act='gelu_pytorch_tanh', but Janus computes the exact GELU" in line for line in warnings)


def test_a_siglip_with_another_epsilon_is_refused(small, tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**VISION, layer_norm_eps=1e-5)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: layer_norm_eps=1e-05, expected 1e-06"):
        load_part("siglip", tmp_path, small[1])


def test_what_parameters_do_not_depend_on_may_differ(small, experiment, tmp_path, monkeypatch):
    _, config, params, tokenizer = small
    monkeypatch.setattr(initialization, "init_params", lambda architecture, seed, shardings, given, lora: given)

    def start_from(saved):
        source = model_in_memory(saved, params, tokenizer)
        monkeypatch.setattr(initialization, "open_model", lambda folder: source)
        experiment.init.checkpoint = "whole"
        return start(experiment, config)[0]

    llama = dataclasses.replace(config.llama, max_length=77, init_std=0.5)
    saved = dataclasses.replace(config, llama=llama, vq=dataclasses.replace(config.vq, commitment=0.1))
    assert start_from(saved).keys() == flatten(params).keys()
    with pytest.raises(UserError, match=r"another architecture than the config's: prompt_style janus_pro_tiny"):
        start_from(dataclasses.replace(saved, prompt_style="janus_pro_tiny"))


def test_an_image_tokenizer_may_have_been_trained_at_another_size(small, tmp_path):
    _, config, params, _ = small
    saved = dataclasses.replace(config.vq, image_size=2 * config.vq.image_size, commitment=0.1)
    save_params(tmp_path, saved, params["vq"])
    np.testing.assert_array_equal(load_part("vq", tmp_path, config)["vq/codebook"], params["vq"]["codebook"])
    write_architecture(tmp_path, dataclasses.replace(saved, norm_eps=1e-5))
    with pytest.raises(UserError, match="another architecture than the config's image tokenizer"):
        load_part("vq", tmp_path, config)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("llm", {"rope_theta": 500000.0}, r"rope_theta is 10000\.0, the config's is 500000\.0"),
        ("llm", {"vocab_size": 299}, r"embeds 300 tokens, more than the 299"),
        ("llm", {"mlp_dim": 48}, r"gate_proj\.weight \[40, 24\] \(expected \[48, 24\]\)"),
    ],
)
def test_a_part_of_another_architecture_is_refused_by_its_field(small, experiment, llm, field, change, message):
    config = dataclasses.replace(small[1], llama=dataclasses.replace(small[1].llama, **change))
    experiment.init[field] = str(llm[0])
    with pytest.raises(UserError, match=rf"init\.{field}='{llm[0]}': [\s\S]*{message}"):
        start(experiment, config)
