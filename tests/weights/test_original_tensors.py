"""What the code of others builds from our config.json, and that exports are refused which it cannot build."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from etils import epath
from transformers import JanusConfig as TorchConfig
from transformers import JanusForConditionalGeneration

from examples.digits import data as digits
from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_7B, JANUS_PRO_TINY, JANUSFLOW_1P3B, JANUSFLOW_TINY
from janus_jax.weights.deepseek_config import deepseek_config
from janus_jax.weights.foreign import read_config
from janus_jax.weights.hf_config import hf_config
from janus_jax.weights.infer_sizes import TOWERS
from janus_jax.weights.janusflow_config import flow_config
from janus_jax.weights.json_fields import Fields
from janus_jax.weights.name_map import table_of, their_shapes
from janus_jax.weights.original_tensors import check_loads, original_tensors
from janus_jax.weights.reader import TensorInfo, model_in_memory
from janus_jax.weights.safetensors_io import SafetensorsWriter
from janus_jax.weights.write_model import describe, write_model
from tests.helpers import REPOSITORY
from tests.helpers.small_folders import TEXT, VISION, VQ, make_small, save_small

IDS = {"bos": 1, "eos": 2, "pad": 3, "image": 5}
DATA = REPOSITORY / "tests" / "data_files"


def tensors_of(content):
    return original_tensors(Fields(epath.Path("DIR/config.json"), "", content))


def with_siglip(config=JANUS_PRO_1B, **sizes):
    return dataclasses.replace(config, siglip=dataclasses.replace(config.siglip, **sizes))


@pytest.mark.parametrize(
    ("content", "tensors", "parameters"),
    [
        (deepseek_config(JANUS_PRO_1B, "bfloat16"), 882, 2_089_232_011),
        (deepseek_config(JANUS_PRO_7B, "bfloat16"), 936, 7_420_368_523),
        (flow_config(JANUSFLOW_1P3B, "bfloat16"), 587, 2_046_367_504),
        (hf_config(JANUS_PRO_1B, "bfloat16", IDS), 964, 2_076_636_811),
        (hf_config(JANUS_PRO_7B, "bfloat16", IDS), 1018, 7_407_773_323),
    ],
)
def test_released_models_have_the_counts_of_the_original_code(content, tensors, parameters):
    shapes = tensors_of(content)
    buffers = {name: shape for name, shape in shapes.items() if name.endswith("codebook_used")}
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) - sum(map(math.prod, buffers.values())) == parameters


def stored(file):
    arrays = np.load(DATA / file)
    shapes = [tuple(map(int, str(shape).split("x"))) for shape in arrays["weights/shape"]]
    return dict(zip(map(str, arrays["weights/key"]), shapes, strict=True))


def test_janusflow_s_names_and_shapes_are_those_of_the_original_code():
    llama = dataclasses.replace(JANUSFLOW_1P3B.llama, vocab_size=256, mlp_dim=512, depth=2)
    config = with_siglip(dataclasses.replace(JANUSFLOW_1P3B, llama=llama), depth=1)
    assert tensors_of(flow_config(config, "float32")) == stored("janusflow_chain.npz")


def test_the_image_tokenizer_s_names_and_shapes_are_those_of_the_original_code():
    prefix = "gen_vision_model."
    found = tensors_of(deepseek_config(JANUS_PRO_1B, "float32"))
    found = {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}
    del found["quantize.codebook_used"]
    assert found == stored("vq_nonunit_codebook.npz")


def test_transformers_builds_exactly_these_names_and_shapes():
    config = TorchConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=VISION, vq_config=VQ, tie_word_embeddings=False
    )
    with torch.device("meta"):
        state = JanusForConditionalGeneration(config).state_dict()
    assert tensors_of(config.to_dict()) == {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("config", "depth", "layer"), [(JANUS_PRO_1B, 24, -1), (JANUS_PRO_1B, 2, 2), (JANUSFLOW_1P3B, 1, 1)]
)
def test_fewer_blocks_are_written_as_the_layer_that_the_original_selects(config, depth, layer):
    config = with_siglip(config, depth=depth)
    if config.prompt_style == JANUS_PRO_1B.prompt_style:
        content, section = deepseek_config(config, "float32"), "vision_config"
    else:
        content, section = flow_config(config, "float32"), "vision_und_enc_config"
    params = content[section]["params"]
    assert (params["model_name"], params["select_layer"]) == ("siglip_large_patch16_384", layer)
    used = {name: shape for name, shape in tensors_of(content).items() if "attn_pool" not in name}
    used.pop("gen_vision_model.quantize.codebook_used", None)
    assert used == their_shapes(config, table_of(config, "deepseek"))


def test_a_so400m_has_its_name_and_reads_back(tmp_path):
    sizes = TOWERS["siglip_so400m_patch14_384"]._replace(depth=5)._asdict()
    config = with_siglip(image_size=336, **sizes)
    content = deepseek_config(config, "float32")
    assert content["vision_config"]["params"]["model_name"] == "siglip_so400m_patch14_384"
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path, their_shapes(config, "deepseek"))[1] == config


def replace(config, path, value):
    part, _, field = path.partition(".")
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{field: value})})


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (JANUS_PRO_1B, "siglip.depth", 25),
        (JANUS_PRO_1B, "siglip.width", 512),
        (JANUS_PRO_1B, "siglip.num_heads", 8),
        (JANUS_PRO_1B, "siglip.mlp_dim", 4304),
        (JANUS_PRO_1B, "siglip.norm_eps", 1e-5),
        (JANUS_PRO_1B, "vq.base_channels", 64),
        (JANUS_PRO_1B, "vq.channel_multipliers", (1, 2, 2, 2, 4)),
        (JANUS_PRO_1B, "vq.num_codes", 8192),
        (JANUS_PRO_1B, "vq.z_channels", 128),
        (JANUS_PRO_1B, "vq.num_res_blocks", 3),
        (JANUSFLOW_1P3B, "siglip.depth", 27),
        (JANUSFLOW_1P3B, "siglip.width", 1152),
        (JANUSFLOW_1P3B, "uvit.width", 512),
        (JANUSFLOW_TINY, "llama.width", 96),
    ],
)
def test_what_the_original_cannot_build_is_refused_by_its_field(config, field, value):
    write = flow_config if hasattr(config, "uvit") else deepseek_config
    with pytest.raises(UserError, match=rf"{field}=.* cannot be written in the deepseek layout") as error:
        write(replace(config, field, value), "float32")
    assert f"{field}={value}" in str(error.value)


def make_reader(config):
    """A model without values, which nothing reads."""
    tokenizer = digits.build_tokenizer(digits.text_records(), 384, config.prompt_style)
    return model_in_memory(config, abstract_params(config), tokenizer)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (JANUS_PRO_TINY, "hf", r"vq\.norm_groups=8 cannot be written in the hf layout"),
        (JANUSFLOW_TINY, "hf", "transformers does not have it"),
        (dataclasses.replace(JANUS_PRO_TINY, prompt_style="janus_pro"), "deepseek", r"vq\.norm_groups=8"),
        (JANUS_PRO_TINY, "deepseek", "prompt_style='janus_pro_tiny'"),
        (JANUS_PRO_TINY, "gguf", "format 'gguf' is not one of"),
    ],
)
def test_a_dry_run_refuses_what_writing_refuses(config, layout, message, tmp_path):
    reader = make_reader(config)
    with pytest.raises(UserError, match=message):
        list(describe(reader, layout))
    with pytest.raises(UserError, match=message):
        write_model(reader, tmp_path / "x", layout)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_loads_only_with_every_name_and_shape(tmp_path):
    model, config, _, tokenizer = make_small()
    folder = save_small(tmp_path / "hf", model, config, tokenizer)
    count = len(model.state_dict())
    assert check_loads(folder) == f"all {count} tensors that its code reads are there, in its names and shapes"
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    name, other = "model.aligner.fc1.bias", "model.aligner.fc9.bias"
    for change, said in (
        ({other: (24,)}, f"{other} is unknown there"),
        ({name: None}, f"{name} is missing"),
        ({name: (25,)}, rf"{name} has the shape \[25\], expected \[24\]"),
    ):
        changed = {key: shape for key, shape in (shapes | change).items() if shape}
        with SafetensorsWriter(
            folder, {key: TensorInfo(shape, np.dtype(np.float32)) for key, shape in changed.items()}
        ) as writer:
            for key, shape in changed.items():
                writer.write(key, np.zeros(shape, np.float32))
        with pytest.raises(UserError, match=said):
            check_loads(folder)
