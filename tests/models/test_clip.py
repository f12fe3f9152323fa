"""CLIP against the features of transformers' CLIPModel with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.metric_config import ClipConfig, ClipTowerConfig
from janus_jax.models.params import abstract_params, bind, build, count
from janus_jax.ops.codebook import l2_normalize
from janus_jax.weights.clip import load_clip
from tests.helpers.golden_evaluation import GOLDEN
from tests.helpers.metric_networks import CLIP_SEEDS, clip_folder

VISION = ClipTowerConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096, norm_eps=1e-5, activation="quick_gelu")
TEXT = ClipTowerConfig(width=768, depth=12, num_heads=12, mlp_dim=3072, norm_eps=1e-5, activation="quick_gelu")
VIT_L_14 = ClipConfig(
    vision=VISION,
    text=TEXT,
    image_size=224,
    patch_size=14,
    vocab_size=49408,
    max_length=77,
    end_id=None,
    embed_dim=768,
)


@pytest.mark.parametrize("name", CLIP_SEEDS)
def test_features_equal_the_reference_whatever_the_padding(name, tmp_path):
    config, params = load_clip(clip_folder(name, tmp_path))
    expected, clip = np.load(GOLDEN / name / "expected.npz"), bind(build(config), params)

    @jax.jit
    def run(pixels, ids):
        return clip(pixels, method="encode_images"), clip(ids, method="encode_texts")

    ids = expected["ids"].astype(np.int32)
    images, texts = run(expected["pixel_values"].transpose(0, 2, 3, 1), ids)
    np.testing.assert_allclose(images, expected["image_features"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(texts, expected["text_features"], rtol=0, atol=1e-4)
    logits = jnp.exp(params["logit_scale"]) * l2_normalize(images) @ l2_normalize(texts).T
    np.testing.assert_allclose(logits, expected["logits_per_image"], rtol=0, atol=1e-3)
    if name == "clip":  # whose texts end with their first token 110; what follows is padding
        padding = np.cumsum(ids == 110, axis=1) - (ids == 110) > 0
        _, again = run(expected["pixel_values"].transpose(0, 2, 3, 1), np.where(padding, 5, ids))
        np.testing.assert_allclose(again, texts, rtol=0, atol=1e-5)


def test_vit_l_14_has_its_number_of_parameters():
    assert count(abstract_params(VIT_L_14)) == 427_616_513  # of openai/clip-vit-large-patch14
