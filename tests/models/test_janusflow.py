"""Sizes and wiring of JanusFlow. Its outputs are compared in tests/inference/test_janusflow_reference.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batches import Modality
from janus_jax.models.params import abstract_params, bind, build, flatten, init_params
from janus_jax.models.presets import JANUSFLOW_1P3B, SDXL_VAE
from tests.helpers.small_models import SMALL_FLOW, random_array, random_params

TEXT, IMAGE = Modality.TEXT, Modality.UNDERSTANDING_IMAGE
# Counts of the released checkpoints, without the 12,595,200 parameters of SigLIP's unused attention pool.
SIZES = {
    "siglip": 303_688_704,
    "aligner": 2_099_200,
    "begin_of_understanding": 2_048,
    "gen_encoder": 21_614_336,
    "gen_encoder/time_embed": 5_771_264,
    "gen_encoder/patch_embed": 13_056,
    "gen_encoder/block_": 15_830_016,
    "gen_aligner": 1_574_912,
    "gen_decoder_norm": 2_048,
    "gen_decoder_aligner": 1_573_632,
    "gen_decoder/input_norm": 768,
    "gen_decoder/block_": 50_534_400,
    "gen_decoder/unpatch": 26_128,
    "llm": 1_652_656_128,
    "": 2_046_367_504 - 12_595_200,
}
VAE_SIZES = {
    "encoder": 34_163_592,
    "decoder": 49_490_179,
    "quant_conv": 72,
    "post_quant_conv": 20,
    "": 83_653_863,
}


@pytest.mark.parametrize(("config", "expected"), [(JANUSFLOW_1P3B, SIZES), (SDXL_VAE, VAE_SIZES)], ids=["flow", "vae"])
def test_full_size_counts_equal_the_reference(config, expected):
    sizes = {path: leaf.size for path, leaf in flatten(abstract_params(config)).items()}
    counts = {
        part: sum(
            size for path, size in sizes.items() if f"{path}/".startswith(part if part[-1:] in "_h" else f"{part}/")
        )
        if part
        else sum(sizes.values())
        for part in expected
    }
    assert counts == expected


def test_understanding_images_start_with_the_learned_vector():
    """The vector takes the place of <begin_of_image>, and N features follow."""
    params = random_params(SMALL_FLOW)
    apply = bind(build(SMALL_FLOW), params)
    tokens = jnp.array([[1, 7, 5, 5, 5, 5, 8, 9], [1, 9, 7, 5, 5, 5, 5, 8]])
    modality = jnp.array([[TEXT, *[IMAGE] * 5, TEXT, TEXT], [TEXT, TEXT, *[IMAGE] * 5, TEXT]])
    pixels = random_array(2, 1, 16, 16, 3)

    @jax.jit
    def run(tokens, pixels):
        x = apply(tokens, modality, pixels, method="embed")
        return x, apply(tokens, method="embed_text"), apply(pixels[:, 0], method="embed_images")

    x, text, images = run(tokens, pixels)
    assert images.shape == (2, 5, 24)
    for row, first in ((0, 1), (1, 2)):
        expected = text[row].at[first : first + 5].set(images[row])
        np.testing.assert_array_equal(x[row], expected)
        np.testing.assert_array_equal(x[row, first], params["begin_of_understanding"][0])


def test_gradient_reaches_the_learned_vector_and_all_modules_of_generation():
    """The code of the original detaches the vector, so that it is never trained. Ours trains it."""
    params = random_params(SMALL_FLOW)
    model = build(SMALL_FLOW)
    modality = jnp.array([[TEXT, *[IMAGE] * 5, TEXT]])
    pixels, latents, weights = random_array(1, 1, 16, 16, 3), random_array(2, 4, 4, 3), random_array(2, 4, 4, 3, seed=1)

    @jax.jit
    @jax.grad
    def gradient(part):
        apply = bind(model, params | part)
        x = apply(jnp.zeros((1, 7), jnp.int32), modality, pixels, method="embed")
        understood, _ = apply(x, jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32))
        encoded = apply(latents, jnp.array([100.0, 700.0]), method="encode_latents")
        x = apply(encoded, method="embed_latents")
        positions = jnp.tile(jnp.arange(5), (2, 1))
        hidden, _ = apply(x, positions, jnp.ones_like(positions))
        velocity = apply(hidden[:, 1:], encoded, method="velocity")
        return jnp.sum(velocity * weights) + jnp.sum(apply(understood, method="text_logits")[0, -1, :3])

    gradients = flatten(gradient({name: params[name] for name in params if name not in ("llm", "siglip")}))
    assert {path for path, value in gradients.items() if not np.abs(value).max() > 1e-7} == set()
    assert "begin_of_understanding" in gradients and len(gradients) > 30


def test_time_token_must_be_as_wide_as_the_llm():
    with pytest.raises(ValueError, match=r"uvit\.time_width=20 must be llama\.width=24"):
        dataclasses.replace(SMALL_FLOW, uvit=dataclasses.replace(SMALL_FLOW.uvit, time_width=20))


def test_what_starts_at_zero():
    fresh = flatten(init_params(SMALL_FLOW, seed=0))
    zero = {path for path, value in fresh.items() if (np.asarray(value) == 0).all()}
    norms = ("siglip/layers/attention_norm/bias", "siglip/layers/mlp_norm/bias", "siglip/norm/bias")
    responses = (
        f"{side}/block_0/response_norm/{leaf}" for side in ("gen_encoder", "gen_decoder") for leaf in ("scale", "bias")
    )
    assert zero == {"begin_of_understanding", *norms, *responses}
