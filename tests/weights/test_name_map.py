import math
import re

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, flatten
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_7B
from janus_jax.models.scan_layers import is_stacked
from janus_jax.weights.name_map import LAYOUTS, links, match_names, their_shapes
from tests.helpers.linked_tensors import assert_same_arrays, read, write
from tests.helpers.torch_weights import make_pair

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 64,
    "num_image_tokens": 16,
}
VQ = {
    "num_embeddings": 64,
    "latent_channels": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2],
    "projection_dim": 64,
    "image_token_embed_dim": 64,
}
CASES = {
    "spec": (TEXT, VISION, VQ),
    "odd": (
        {**TEXT, "num_key_value_heads": 2, "head_dim": 24, "num_hidden_layers": 3},
        {**VISION, "num_hidden_layers": 3, "depth": 1, "mlp_ratio": 3.2, "image_size": 24, "num_image_tokens": 9},
        {**VQ, "num_hidden_layers": 3, "channel_multiplier": [2, 1, 3], "num_res_blocks": 1, "embed_dim": 4},
    ),
    "deep_aligner": (
        {**TEXT, "num_key_value_heads": 1, "num_hidden_layers": 1},
        {**VISION, "num_hidden_layers": 1, "depth": 3},
        {**VQ, "num_hidden_layers": 1, "channel_multiplier": [1], "latent_channels": 16},
    ),
}
# From transformers' names to the original ones, written independently of `weights.name_map`.
TO_ORIGINAL = [
    (r"model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
    (r"model\.vision_model\.embeddings\.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
    (r"model\.vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"vision_model.vision_tower.blocks.\1.norm"),
    (r"model\.vision_model\.encoder\.layers\.(\d+)\.mlp", r"vision_model.vision_tower.blocks.\1.mlp"),
    (
        r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection_layer",
        r"vision_model.vision_tower.blocks.\1.attn.proj",
    ),
    (r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"vision_model.vision_tower.blocks.\1.attn."),
    (r"model\.vision_model\.post_layernorm", "vision_model.vision_tower.norm"),
    (r"model\.(generation_)?aligner\.fc1", lambda m: f"{'gen_' * bool(m[1])}aligner.layers.0"),
    (r"model\.(generation_)?aligner\.hidden_layers\.0", lambda m: f"{'gen_' * bool(m[1])}aligner.layers.2"),
    (r"model\.(generation_)?aligner\.hidden_layers\.1", lambda m: f"{'gen_' * bool(m[1])}aligner.layers.4"),
    (r"model\.generation_embeddings", "gen_embed"),
    (r"model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"model\.generation_head\.vision_head", "gen_head.vision_head"),
    (r"model\.vqmodel", "gen_vision_model"),
    (r"\.(encoder\.down|decoder\.up)\.", lambda m: f".{m[1].split('.')[0]}.conv_blocks."),
    (r"\.block\.", ".res."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
    (r"model\.language_model", "language_model.model"),
    (r"^lm_head", "language_model.lm_head"),
]


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """State dict of transformers' model, our architecture, our parameters by the independent mapping of the tests."""
    model, config, params = make_pair(*CASES[request.param], seed=0)
    return {name: value.numpy() for name, value in model.state_dict().items()}, config, flatten(params)


@pytest.fixture(scope="module")
def config():
    return make_pair(*CASES["odd"], seed=0)[1]


def to_original(state):
    """A state dict with the names and the fused tensors of the original code."""
    original = {}
    for name, value in state.items():
        for pattern, replacement in TO_ORIGINAL:
            name = re.sub(pattern, replacement, name)
        original[name] = value[None] if name.endswith("pos_embed") else value
    for name in [name for name in original if ".attn.q_proj." in name and "vision_tower" in name]:
        qkv = [original.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        original[name.replace("q_proj", "qkv")] = np.concatenate(qkv)
    return original


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_values_go_where_they_belong_and_come_back(pair, layout):
    state, config, params = pair
    params = {path: np.asarray(value) for path, value in params.items()}
    state = state if layout == "hf" else to_original(state)
    table = links(config, layout)
    assert_same_arrays(read(state, table), params)
    assert_same_arrays(write(params, table), state)
    assert their_shapes(config, layout) == {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_every_parameter_is_linked_once_per_layer(pair, layout):
    _, config, _ = pair
    expected = [
        (path, layer)
        for path, leaf in flatten(abstract_params(config)).items()
        for layer in (range(leaf.shape[0]) if is_stacked(path) else [None])
    ]
    assert [(link.path, link.layer) for link in links(config, layout)] == expected
    places = [(link.name, link.part) for link in links(config, layout)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("config", "layout", "tensors", "scalars"),
    [  # the original also has 13 tensors of the attention pool and a buffer
        (JANUS_PRO_1B, "hf", 964, 2_076_636_811),
        (JANUS_PRO_7B, "hf", 1018, 7_407_773_323),
        (JANUS_PRO_1B, "deepseek", 882 - 14, 2_076_636_811),
        (JANUS_PRO_7B, "deepseek", 936 - 14, 7_407_773_323),
        (JANUS_PRO_1B, "siglip", 389, 303_688_704),
        (JANUS_PRO_7B, "llm", 9 * 30 + 3, 6_910_365_696),
        (JANUS_PRO_7B, "vq", 343, 71_883_403),
    ],
)
def test_full_size_has_the_known_number_of_tensors_and_scalars(config, layout, tensors, scalars):
    shapes = their_shapes(config, layout)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (tensors, scalars)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vision_model.vision_tower.pos_embed", (1, 576, 1024)),
        ("vision_model.vision_tower.patch_embed.proj.weight", (1024, 3, 16, 16)),
        ("vision_model.vision_tower.blocks.23.attn.qkv.weight", (3072, 1024)),
        ("vision_model.vision_tower.blocks.0.attn.qkv.bias", (3072,)),
        ("aligner.layers.0.weight", (4096, 1024)),
        ("aligner.layers.2.bias", (4096,)),
        ("gen_embed.weight", (16384, 8)),
        ("gen_aligner.layers.0.weight", (4096, 8)),
        ("gen_head.vision_head.weight", (16384, 4096)),
        ("gen_vision_model.encoder.conv_blocks.4.attn.1.proj_out.weight", (512, 512, 1, 1)),
        ("gen_vision_model.encoder.conv_blocks.2.res.0.nin_shortcut.weight", (256, 128, 1, 1)),
        ("gen_vision_model.encoder.conv_blocks.3.downsample.conv.weight", (256, 256, 3, 3)),
        ("gen_vision_model.decoder.conv_blocks.0.attn.2.q.bias", (512,)),
        ("gen_vision_model.decoder.mid.1.norm.weight", (512,)),
        ("language_model.model.layers.29.mlp.down_proj.weight", (4096, 11008)),
        ("language_model.lm_head.weight", (102400, 4096)),
    ],
)
def test_original_tensors_of_the_7b(name, shape):
    assert their_shapes(JANUS_PRO_7B, "deepseek")[name] == shape


def test_stored_names_match_themselves(config):
    for layout in LAYOUTS:
        shapes = their_shapes(config, layout)
        assert match_names(shapes, config, layout, "x") == {name: name for name in shapes}


def test_bare_model_of_transformers_has_no_prefix_and_a_tied_head(config):
    shapes = their_shapes(config, "hf")
    bare = {name.removeprefix("model."): shape for name, shape in shapes.items() if name != "lm_head.weight"}
    matched = match_names(bare, config, "hf", "x")
    assert matched["model.aligner.fc1.weight"] == "aligner.fc1.weight"
    assert matched["lm_head.weight"] == "language_model.embed_tokens.weight"
    assert matched.keys() == shapes.keys()


def test_head_is_tied_only_where_it_is_missing(config):
    shapes = their_shapes(config, "deepseek")
    head = "language_model.lm_head.weight"
    assert match_names(shapes, config, "deepseek", "x")[head] == head
    shapes.pop(head)
    assert match_names(shapes, config, "deepseek", "x")[head] == "language_model.model.embed_tokens.weight"


DROPPED = [
    ("deepseek", "vision_model.vision_tower.attn_pool.mlp.fc1.weight"),
    ("deepseek", "gen_vision_model.quantize.codebook_used"),
    ("deepseek", "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"),
    ("hf", "model.vision_model.embeddings.position_ids"),
    ("vq", "quantize.codebook_used"),
    ("siglip", "logit_scale"),
]


@pytest.mark.parametrize(("layout", "name"), DROPPED)
def test_tensors_without_use_are_dropped_by_name(config, layout, name):
    shapes = their_shapes(config, layout)
    assert name not in match_names({**shapes, name: (3,)}, config, layout, "x").values()


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("hf", "logit_scale"),
        ("hf", "head.probe"),
        ("deepseek", "aligner.layers.1.weight"),
        ("vq", "discriminator.bias"),
    ],
)
def test_other_tensors_without_a_place_are_unexpected(config, layout, name):
    with pytest.raises(UserError, match=rf"unexpected \(1\): {name}$"):
        match_names({**their_shapes(config, layout), name: (3,)}, config, layout, "x")


def test_error_lists_both_sides_and_both_shapes(config):
    found = their_shapes(config, "hf")
    for layer in range(2):
        for letter in "qkvo":
            del found[f"model.language_model.layers.{layer}.self_attn.{letter}_proj.weight"]
        del found[f"model.vision_model.encoder.layers.{layer}.mlp.fc1.weight"]
        del found[f"model.vision_model.encoder.layers.{layer}.mlp.fc2.weight"]
    found |= {"lm_head.weight": (127, 64), "model.extra": (2,)}
    with pytest.raises(UserError) as error:
        match_names(found, config, "hf", "DIR/model.safetensors")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("DIR/model.safetensors: ")
    assert lines[1].startswith("  missing (12): model.language_model.layers.0.self_attn.k_proj.weight, ")
    assert lines[1].endswith(", and 2 more")
    assert lines[2:] == [
        "  unexpected (1): model.extra",
        "  of another shape (1): lm_head.weight [127, 64] (expected [128, 64])",
    ]


def test_vocabulary_may_be_shorter_only_when_asked(config):
    shapes = their_shapes(config, "llm")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (100, *shapes[name][1:])
    assert match_names(shapes, config, "llm", "x", any_vocabulary=True).keys() == shapes.keys()
    with pytest.raises(UserError, match=r"of another shape \(2\)"):
        match_names(shapes, config, "llm", "x")
    shapes["model.norm.weight"] = (100,)
    with pytest.raises(UserError, match=r"of another shape \(1\): model.norm.weight"):
        match_names(shapes, config, "llm", "x", any_vocabulary=True)


def shapes_of(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_siglip_of_transformers_with_and_without_text_tower(config):
    vision = {name: VISION[name] for name in ("hidden_size", "num_attention_heads", "patch_size")}
    vision |= {"image_size": 24, "num_hidden_layers": 3, "intermediate_size": config.siglip.mlp_dim}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
    tower = SiglipVisionModel(SiglipVisionConfig(**vision))
    both = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    for model in (tower, both):
        matched = match_names(shapes_of(model), config, "siglip", "x")
        assert matched.keys() == their_shapes(config, "siglip").keys()
    bare = {name.removeprefix("vision_model."): shape for name, shape in shapes_of(tower).items()}
    matched = match_names(bare, config, "siglip", "x")
    state = tower.state_dict()
    state = {name.removeprefix("vision_model."): value.numpy() for name, value in state.items()}
    ours = read({name: state[actual] for name, actual in matched.items()}, links(config, "siglip"))
    expected = {
        path: leaf.shape for path, leaf in flatten(abstract_params(config)).items() if path.startswith("siglip/")
    }
    assert {path: value.shape for path, value in ours.items()} == expected
    layer = state["encoder.layers.2.self_attn.out_proj.weight"]
    np.testing.assert_array_equal(ours["siglip/layers/o_proj/kernel"][2], layer.T)


def test_llama_of_transformers(config):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CASES["odd"][0]))
    assert their_shapes(config, "llm") == shapes_of(model)
    assert match_names(shapes_of(model.model), config, "llm", "x")["lm_head.weight"] == "embed_tokens.weight"
