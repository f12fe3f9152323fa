import copy
import dataclasses
import json

import pytest
import torch
from transformers import JanusConfig as TorchConfig
from transformers import JanusForConditionalGeneration

from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUS_PRO_TINY
from janus_jax.weights.deepseek_config import deepseek_config
from janus_jax.weights.foreign import read_config
from janus_jax.weights.hf_config import hf_config
from janus_jax.weights.name_map import their_shapes
from tests.helpers.deepseek_sizes import janus_content
from tests.helpers.torch_weights import make_pair

IDS = {"bos": 1, "eos": 2, "pad": 3, "image": 5}
TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
}
VISION = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "mlp_ratio": 3.3,
    "projection_dim": 64,
    "num_image_tokens": 9,
    "depth": 1,
}
VQ = {
    "num_embeddings": 64,
    "latent_channels": 16,
    "base_channels": 32,
    "channel_multiplier": [2, 1, 3],
    "num_res_blocks": 1,
    "embed_dim": 4,
    "projection_dim": 64,
    "image_token_embed_dim": 64,
    "num_hidden_layers": 3,
}
# Like the released files of the original code, the partial language_config included.
ORIGINAL_7B = {
    "model_type": "multi_modality",
    "architectures": ["MultiModalityCausalLM"],
    "torch_dtype": "bfloat16",
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_vision_config": {
        "cls": "VQ-16",
        "model_type": "gen_vision",
        "params": {"image_token_size": 16384, "n_embed": 8},
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": 8, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "model_type": "gen_head",
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096},
    },
    "language_config": {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
}


@pytest.fixture(scope="module")
def pair():
    """transformers' model and our architecture; it generates 3 x 3 tokens, which its VQ decodes to 12 x 12 pixels."""
    model, config, _ = make_pair(TEXT, VISION, VQ, seed=0)
    return model, dataclasses.replace(config, vq=dataclasses.replace(config.vq, image_size=12))


@pytest.fixture
def read(tmp_path):
    """A config.json's content -> what `read_config` makes of it."""

    def run(content, shapes=None):
        (tmp_path / "config.json").write_text(json.dumps(content))
        return read_config(tmp_path, shapes)

    return run


def changed(content, path, value):
    """A copy of a nested dict with another value at "a.b.c"."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    return content


def test_reads_what_transformers_saves(pair, tmp_path):
    model, config = pair
    model.config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == ("hf", config)


def test_reads_the_spelling_of_transformers_4(pair, read):
    _, config = pair
    text = {name: value for name, value in TEXT.items() if name not in ("rope_parameters", "head_dim")}
    text |= {"model_type": "llama", "rope_theta": 5000.0, "rope_scaling": None, "torch_dtype": "float32"}
    content = {
        "model_type": "janus",
        "architectures": ["JanusForConditionalGeneration"],
        "transformers_version": "4.53.3",
        "text_config": text,
        "vision_config": VISION,
        "vq_config": {**VQ, "depth": 7, "num_patches": 32},  # a stray field of converted files
    }
    llama = dataclasses.replace(config.llama, head_dim=16)
    assert read(content) == ("hf", dataclasses.replace(config, llama=llama))


def test_missing_fields_have_transformers_defaults(read):
    default = TorchConfig()
    _, config = read(
        {
            "model_type": "janus",
            "vision_config": {"projection_dim": 4096},
            "vq_config": {"projection_dim": 4096, "image_token_embed_dim": 4096},
        }
    )
    llama = default.text_config
    assert config.llama.width == llama.hidden_size
    assert config.llama.mlp_dim == llama.intermediate_size
    assert config.llama.num_kv_heads == llama.num_key_value_heads
    assert config.llama.vocab_size == llama.vocab_size
    assert config.llama.max_length == llama.max_position_embeddings
    assert config.llama.norm_eps == llama.rms_norm_eps
    assert config.llama.rope_theta == llama.rope_parameters["rope_theta"]
    assert (config.siglip, config.vq) == (JANUS_PRO_7B.siglip, JANUS_PRO_7B.vq)


def test_transformers_builds_the_model_from_what_we_write(pair, tmp_path):
    _, config = pair
    content = hf_config(config, "bfloat16", IDS)
    (tmp_path / "config.json").write_text(json.dumps(content))
    theirs = TorchConfig.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert theirs.image_token_id == 5
    assert (theirs.text_config.bos_token_id, theirs.text_config.eos_token_id, theirs.text_config.pad_token_id) == (
        1,
        2,
        3,
    )
    assert theirs.text_config.rope_parameters == {"rope_theta": 5000.0, "rope_type": "default"}
    assert not theirs.tie_word_embeddings
    with torch.device("meta"):
        state = JanusForConditionalGeneration(theirs).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == their_shapes(config, "hf")
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path) == ("hf", config)


@pytest.mark.parametrize("config", [JANUS_PRO_1B, JANUS_PRO_7B])
def test_released_models_round_trip(config, read):
    assert read(hf_config(config, "bfloat16", IDS)) == ("hf", config)
    assert read(deepseek_config(config, "bfloat16")) == ("deepseek", config)


def test_prompt_style_is_the_callers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_7B))
    assert read_config(tmp_path, prompt_style="janus")[1].prompt_style == JANUS_1P3B.prompt_style


def test_every_mlp_width_survives_the_ratio(pair, read):
    _, config = pair
    for width, mlp_dim in [(1152, 4304), (49, 2), (40, 161), *((w, 3 * w + 1) for w in range(7, 400, 31))]:
        siglip = dataclasses.replace(config.siglip, width=width, num_heads=1, mlp_dim=mlp_dim)
        assert read(hf_config(dataclasses.replace(config, siglip=siglip), "float32", IDS))[1].siglip == siglip


def test_original_file_of_the_7b_relies_on_llama_defaults(read):
    assert read(ORIGINAL_7B) == ("deepseek", JANUS_PRO_7B)
    written = deepseek_config(JANUS_PRO_7B, "bfloat16")
    assert ORIGINAL_7B["language_config"].items() <= written["language_config"].items()
    assert {**written, "language_config": ORIGINAL_7B["language_config"]} == ORIGINAL_7B


def test_original_sizes_come_from_the_tensors(pair, read):
    _, config = pair
    shapes = their_shapes(config, "deepseek")
    assert read(janus_content(config), shapes) == ("deepseek", config)
    wide_head = dataclasses.replace(config, image_head_width=48)
    assert read(janus_content(wide_head), their_shapes(wide_head, "deepseek"))[1] == wide_head


@pytest.mark.parametrize(
    ("name", "width", "params", "heads"),
    [
        ("siglip_large_patch16_384", 1024, {}, 16),
        ("siglip_so400m_patch14_384", 1152, {}, 16),
        ("siglip_large_patch16_384", 64, {"heads": 2}, 2),
        ("siglip_large_patch16_384", 64, {"num_heads": 8}, 8),
        ("siglip", 64, {"num_attention_heads": 4}, 4),
        ("siglip_large_patch16_384", 64, {}, None),
        ("siglip_so400m_patch14_384", 1024, {}, None),
        ("siglip", 1024, {}, None),
    ],
)
def test_heads_of_an_original_siglip_come_from_a_field_or_from_its_name_and_width(
    pair, read, name, width, params, heads
):
    _, config = pair
    siglip = dataclasses.replace(config.siglip, width=width, num_heads=heads or 1)
    content = janus_content(dataclasses.replace(config, siglip=siglip))
    content["vision_config"]["params"] = {"model_name": name, "image_size": 24, "select_layer": -1} | params
    shapes = their_shapes(dataclasses.replace(config, siglip=siglip), "deepseek")
    if heads:
        assert read(content, shapes)[1].siglip == siglip
    else:
        message = rf"params\.heads is missing, .*'{name}'.* {width}"
        with pytest.raises(UserError, match=message):
            read(content, shapes)


@pytest.mark.parametrize(
    ("layer", "depth"), [(-1, 24), (-2, 23), (-24, 1), (0, 24), (1, 1), (23, 23), (24, 24), (30, 24), (None, 23)]
)
def test_select_layer_tells_how_many_blocks_are_used(layer, depth, read):
    content = changed(ORIGINAL_7B, "vision_config.params.select_layer", layer)
    assert read(content)[1].siglip.depth == depth


HF = hf_config(JANUS_PRO_1B, "bfloat16", IDS)


@pytest.mark.parametrize(
    ("content", "field", "value"),
    [
        (HF, "text_config.hidden_act", "gelu"),
        (HF, "text_config.attention_bias", True),
        (HF, "text_config.mlp_bias", True),
        (HF, "text_config.model_type", "qwen2"),
        (HF, "text_config.rope_parameters.rope_type", "linear"),
        (HF, "text_config.rope_parameters.rope_theta", 500.0),  # not the one at the top level
        (HF, "text_config.rope_parameters.partial_rotary_factor", 0.5),
        (HF, "text_config.num_hidden_layers", 0),
        (HF, "text_config.num_hidden_layers", 10**6),
        (HF, "text_config.vocab_size", "102400"),
        (HF, "text_config.hidden_size", 2048.0),
        (HF, "text_config.num_attention_heads", True),
        (HF, "text_config.rms_norm_eps", -1e-6),
        (HF, "text_config.rms_norm_eps", float("nan")),
        (HF, "text_config.rope_theta", float("inf")),
        (HF, "text_config", [1]),
        (HF, "vision_config.hidden_act", "gelu_pytorch_tanh"),
        (HF, "vision_config.use_qk_norm", True),
        (HF, "vision_config.num_image_tokens", 575),
        (HF, "vision_config.projection_dim", 4096),
        (HF, "vision_config.image_size", [384, 384]),
        (HF, "vq_config.double_latent", True),
        (HF, "vq_config.image_token_embed_dim", 8),
        (HF, "vq_config.channel_multiplier", []),
        (HF, "vq_config.channel_multiplier", [1, 2.0]),
        (HF, "vq_config.channel_multiplier", [1] * 100),
        (ORIGINAL_7B, "vision_config.cls", "SAMTower"),
        (ORIGINAL_7B, "vision_config.params.model_name", "sam_b_downsample"),
        (ORIGINAL_7B, "vision_config.params.select_layer", -25),
        (ORIGINAL_7B, "vision_config.params.image_size", 400),
        (ORIGINAL_7B, "vision_config.params.pixel_mean", [0.5, 0.5, 0.5]),
        (ORIGINAL_7B, "aligner_config.params.projector_type", "low_high_hybrid_split_mlp_gelu"),
        (ORIGINAL_7B, "aligner_config.params.input_dim", 1152),
        (ORIGINAL_7B, "gen_aligner_config.params.n_embed", 2048),
        (ORIGINAL_7B, "gen_vision_config.params.image_token_size", 8192),
        (ORIGINAL_7B, "gen_head_config.params.image_token_embed", None),
        (ORIGINAL_7B, "model_type", "llava"),
    ],
)
def test_what_we_cannot_run_is_refused_by_name_and_value(content, field, value, read):
    with pytest.raises(UserError) as error:
        read(changed(content, field, value))
    assert "config.json: " in str(error.value)
    shown = " is missing" if value is None else f"={value!r}"
    assert f"{field}{shown}"[:40] in str(error.value)


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_sizes_that_do_not_go_together_name_the_file(layout, read):
    content = HF if layout == "hf" else ORIGINAL_7B
    section = "text_config" if layout == "hf" else "language_config"
    with pytest.raises(UserError, match=r"config.json: num_heads=.* must be a positive multiple of num_kv_heads=7"):
        read(changed(content, f"{section}.num_key_value_heads", 7))


def test_heads_that_do_not_divide_the_width_need_a_head_dim(read):
    with pytest.raises(UserError, match=r"language_config.num_attention_heads=24, expected a divisor"):
        read(changed(ORIGINAL_7B, "language_config.num_attention_heads", 24))


def test_missing_tensor_and_wrong_image_size_in_an_original_folder(pair, read):
    _, config = pair
    shapes = their_shapes(config, "deepseek")
    content = janus_content(config)
    with pytest.raises(UserError, match=r"image_size=32, expected the size of 9 patches of 8 x 8"):
        read(changed(content, "vision_config.params.image_size", 32), shapes)
    del shapes["gen_vision_model.quantize.embedding.weight"]
    with pytest.raises(UserError, match=r"gen_vision_model.quantize.embedding.weight, .* is missing"):
        read(content, shapes)


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_scaled_rope_is_refused(scaling, read):
    with pytest.raises(UserError, match=r"rope_scaling.*type='(linear|yarn)', expected 'default'"):
        read(changed(ORIGINAL_7B, "language_config.rope_scaling", scaling))
    with pytest.raises(UserError, match=r"rope_parameters.*type='(linear|yarn)', expected 'default'"):
        read(changed(HF, "text_config.rope_parameters", scaling))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "expected a JSON object"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b" " * (2 << 20), "larger than"),
        (b"{}", "model_type is missing"),
    ],
)
def test_damaged_file(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"config.json is missing"):
        read_config(tmp_path)


@pytest.mark.parametrize("write", [lambda c: hf_config(c, "float32", IDS), lambda c: deepseek_config(c, "float32")])
def test_what_a_layout_cannot_express_is_not_written(write):
    with pytest.raises(UserError, match=r"vq.norm_groups=8 cannot be written in the .* layout, which has 32"):
        write(JANUS_PRO_TINY)
    vq = dataclasses.replace(JANUS_PRO_1B.vq, image_size=192)
    with pytest.raises(UserError, match="tokens per generated image=144"):
        write(dataclasses.replace(JANUS_PRO_1B, vq=vq))


def test_a_field_that_only_one_layout_has(pair):
    _, config = pair
    with pytest.raises(UserError, match="image_head_width=48"):
        hf_config(dataclasses.replace(config, image_head_width=48), "float32", IDS)
