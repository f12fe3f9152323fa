"""Mask2Former against transformers with random weights, from its folder and under the names of mmdet."""

import jax
import numpy as np
import pytest
import torch

from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, bind, build, count, flatten
from janus_jax.weights.mask2former import OFFICIAL, SWIN_SMALL, TRANSFORMERS, load_mask2former
from janus_jax.weights.name_map import links, match_names, their_shapes
from tests.helpers.linked_tensors import assert_same_arrays, read, write
from tests.helpers.small_detector import make_detector


@pytest.fixture(scope="module")
def model():
    return make_detector(num_labels=5)


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    return load_mask2former(folder)


@torch.no_grad()
def test_classes_and_masks_equal_transformers(model, loaded):
    """The sides are no multiples of the window, so that windows are filled up and shifted."""
    assert loaded.layout == TRANSFORMERS
    pixels = np.random.default_rng(0).standard_normal((2, 96, 128, 3)).astype(np.float32)
    expected = model(pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2))
    found = jax.jit(bind(build(loaded.config), loaded.params))(pixels)
    np.testing.assert_allclose(found.class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
    assert float(np.abs(expected.masks_queries_logits).max()) > 1


def test_names_of_mmdet_reach_every_parameter_and_come_back(loaded):
    """Also the other order of the channels that are merged, which only mmdet has."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(loaded.params).items()}
    table = links(loaded.config, OFFICIAL)
    state = write(flat, table)
    assert {name: value.shape for name, value in state.items()} == their_shapes(loaded.config, OFFICIAL)
    assert_same_arrays(read(state, table), flat)
    names = {f"{name}.relative_position_index" for name in state if name.endswith("w_msa")} | set(state)
    assert "backbone.stages.1.blocks.0.attn.w_msa.qkv.weight" in names
    merge = flat["swin/stage_0_merge/reduction/kernel"]  # [columns, rows, channels of the four neighbours, out]
    channels = merge.shape[0] // 4
    unfold = state["backbone.stages.0.downsample.reduction.weight"]
    for column, row, channel in ((0, 1, 3), (1, 0, 5), (1, 1, 0)):
        ours, theirs = (2 * column + row) * channels + channel, channel * 4 + 2 * row + column
        np.testing.assert_array_equal(merge[ours], unfold[:, theirs])


def test_names_of_mmdet_are_those_of_its_checkpoints():
    """Written down from a public converter (`convert_lineformer_to_hf.py`) that uses up a file of mmdet 2.28."""
    pairs, weights = [], ["level_encoding", "lateral_convs.0.conv", "output_convs.0.conv"]  # with and without a bias
    pairs += [f"input_convs.{i}.{part}" for i in range(3) for part in ("conv", "gn")]
    pairs += ["lateral_convs.0.gn", "output_convs.0.gn", "mask_feature"]
    layer = [f"attentions.0.{part}" for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")]
    layer += ["norms.0", "norms.1", "ffns.0.layers.0.0", "ffns.0.layers.1"]
    pairs += [f"encoder.layers.{i}.{part}" for i in range(6) for part in layer]
    pairs, weights = ([f"pixel_decoder.{name}" for name in names] for names in (pairs, weights))
    layer = ["attentions.0.attn.out_proj", "attentions.1.attn.out_proj", "norms.0", "norms.1", "norms.2"]
    layer += ["ffns.0.layers.0.0", "ffns.0.layers.1"]
    pairs += [f"transformer_decoder.layers.{i}.{part}" for i in range(9) for part in layer]
    pairs += ["transformer_decoder.post_norm", "cls_embed", "mask_embed.0", "mask_embed.2", "mask_embed.4"]
    weights += ["query_embed", "query_feat", "level_embed"]
    fused = [f"transformer_decoder.layers.{i}.attentions.{j}.attn.in_proj." for i in range(9) for j in range(2)]
    pairs, weights, fused = ([f"panoptic_head.{name}" for name in names] for names in (pairs, weights, fused))
    pairs += ["backbone.patch_embed.projection", "backbone.patch_embed.norm", *(f"backbone.norm{i}" for i in range(4))]
    block = ["norm1", "norm2", "attn.w_msa.qkv", "attn.w_msa.proj", "ffn.layers.0.0", "ffn.layers.1"]
    blocks = [f"backbone.stages.{s}.blocks.{i}." for s, depth in enumerate((2, 2, 18, 2)) for i in range(depth)]
    pairs += [f"{name}{part}" for name in blocks for part in block]
    pairs += [f"backbone.stages.{s}.downsample.norm" for s in range(3)]
    weights += [f"backbone.stages.{s}.downsample.reduction" for s in range(3)]
    names = {f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")} | {f"{name}.weight" for name in weights}
    names |= {f"{name}{kind}" for name in fused for kind in ("weight", "bias")}
    names |= {f"{name}attn.w_msa.relative_position_bias_table" for name in blocks}
    assert set(their_shapes(SWIN_SMALL, OFFICIAL)) == names


def test_swin_small_has_the_number_of_parameters_of_the_paper():
    assert count(abstract_params(SWIN_SMALL)) == pytest.approx(68.7e6, rel=2e-3)  # 69M in table 1 of the paper
    shapes = their_shapes(SWIN_SMALL, OFFICIAL)
    assert shapes["backbone.stages.2.blocks.17.attn.w_msa.relative_position_bias_table"] == (169, 12)
    more = {
        "panoptic_head.loss_cls.class_weight": (81,),
        "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": (49, 49),
    }
    match_names(shapes | more, SWIN_SMALL, OFFICIAL, "official")


def test_sides_that_do_not_fit_and_other_files_are_errors(loaded, tmp_path):
    model = build(loaded.config)
    with pytest.raises(ValueError, match="Mask2Former got pixels"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), np.zeros((1, 96, 100, 3), np.float32))
    torch.save({"state_dict": {"backbone.norm0.weight": torch.zeros(96)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: the tensors do not fit"):
        load_mask2former(tmp_path / "other.pth")
    with pytest.raises(UserError, match="no such file"):
        load_mask2former(tmp_path / "none.pth")
    (tmp_path / "config.json").write_text('{"model_type": "maskformer"}')
    with pytest.raises(UserError, match="model_type='maskformer'"):
        load_mask2former(tmp_path)
