"""JanusFlow's and the VAE's tensors: names, round trip, old names; tests of models compare the numbers."""

import math

import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.models.params import flatten
from janus_jax.models.presets import JANUSFLOW_1P3B, SDXL_VAE, VAE_TINY
from janus_jax.weights.name_map import links, match_names, their_shapes
from tests.helpers.linked_tensors import assert_same_arrays, read, write
from tests.helpers.small_models import SMALL_FLOW, random_params


@pytest.mark.parametrize(("config", "layout"), [(SMALL_FLOW, "janusflow"), (VAE_TINY, "vae")])
def test_values_come_back(config, layout):
    params = {path: np.asarray(value) for path, value in flatten(random_params(config)).items()}
    table = links(config, layout)
    state = write(params, table)
    assert {name: value.shape for name, value in state.items()} == their_shapes(config, layout)
    assert_same_arrays(read(state, table), params)


@pytest.mark.parametrize(
    ("config", "layout", "tensors", "scalars"),
    [  # the original also has 13 tensors of the attention pool
        (JANUSFLOW_1P3B, "janusflow", 587 - 13, 2_046_367_504 - 12_595_200),
        (SDXL_VAE, "vae", 248, 83_653_863),
    ],
)
def test_full_size_has_the_known_number_of_tensors_and_scalars(config, layout, tensors, scalars):
    shapes = their_shapes(config, layout)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (tensors, scalars)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("beg_of_und_embed", (1, 2048)),
        ("vision_und_enc_model.vision_tower.blocks.23.attn.qkv.weight", (3072, 1024)),
        ("vision_und_enc_aligner.weight", (2048, 1024)),
        ("vision_gen_enc_model.time_embed.linear_1.weight", (2048, 768)),
        ("vision_gen_enc_model.in_conv.weight", (768, 4, 2, 2)),
        ("vision_gen_enc_model.mid_block.res_blocks.1.depthwise.weight", (768, 1, 7, 7)),
        ("vision_gen_enc_model.mid_block.res_blocks.0.norm.weight", (768,)),
        ("vision_gen_enc_model.mid_block.res_blocks.0.channelwise_norm.bias", (1, 1, 1, 3072)),
        ("vision_gen_enc_model.mid_block.res_blocks.0.cond_embeds_mapper.weight", (1536, 2048)),
        ("vision_gen_enc_aligner.weight", (2048, 768)),
        ("vision_gen_dec_model.input_norm.weight", (768,)),
        ("vision_gen_dec_model.mid_block.res_blocks.1.channelwise_linear_2.weight", (1536, 6144)),
        ("vision_gen_dec_model.out_convs.0.norm.weight", (1536,)),
        ("vision_gen_dec_model.out_convs.0.unpatch_conv.weight", (16, 1536, 1, 1)),
        ("vision_gen_dec_aligner_norm.weight", (2048,)),
        ("vision_gen_dec_aligner.bias", (768,)),
        ("language_model.lm_head.weight", (102400, 2048)),
    ],
)
def test_original_tensors(name, shape):
    assert their_shapes(JANUSFLOW_1P3B, "janusflow")[name] == shape


def test_attention_pool_is_dropped_and_the_other_tower_unexpected():
    shapes = their_shapes(SMALL_FLOW, "janusflow")
    pool = "vision_und_enc_model.vision_tower.attn_pool.latent"
    assert pool not in match_names({**shapes, pool: (1, 1, 16)}, SMALL_FLOW, "janusflow", "x").values()
    with pytest.raises(UserError, match=r"unexpected \(1\): vision_model\.vision_tower\.pos_embed$"):
        match_names({**shapes, "vision_model.vision_tower.pos_embed": (1, 4, 16)}, SMALL_FLOW, "janusflow", "x")


def test_missing_keys_are_listed():
    shapes = their_shapes(SMALL_FLOW, "janusflow")
    del shapes["beg_of_und_embed"], shapes["vision_gen_dec_aligner.bias"]
    with pytest.raises(UserError, match=r"missing \(2\): beg_of_und_embed, vision_gen_dec_aligner\.bias"):
        match_names(shapes, SMALL_FLOW, "janusflow", "x")
