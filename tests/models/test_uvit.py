"""Generation encoder and decoder against outputs of the original, with weights by `rule_weights`."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.models.config import JanusFlowConfig, UViTConfig
from janus_jax.models.presets import JANUSFLOW_1P3B
from janus_jax.models.uvit import Encoded, UViTDecoder, UViTEncoder, pixel_shuffle
from janus_jax.ops.flow import sinusoidal_embedding
from janus_jax.weights.name_map import their_shapes
from tests.helpers.flow_weights import from_foreign
from tests.helpers.small_models import SMALL
from tests.helpers.torch_weights import rule_weights

REFERENCE = Path(__file__).parents[1] / "data_files" / "janusflow_tiny_uvit.npz"
CONFIGS = {
    "a": dict(latent_size=8, width=32, time_width=48, encoder_depth=2, decoder_depth=2),
    "b": dict(latent_size=12, width=16, time_width=24, encoder_depth=1, decoder_depth=3),
}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Arrays of the original, and our encoder and decoder with its weights."""
    name = request.param
    uvit = UViTConfig(latent_channels=4, patch_size=2, norm_eps=1e-6, **CONFIGS[name])
    llama = dataclasses.replace(SMALL.llama, width=uvit.time_width)
    config = JanusFlowConfig(llama=llama, siglip=SMALL.siglip, uvit=uvit, prompt_style="janus")
    shapes = {
        f"{name}.{key}": shape
        for key, shape in their_shapes(config, "janusflow").items()
        if key.startswith(("vision_gen_enc_model.", "vision_gen_dec_model."))
    }
    state = {key.removeprefix(f"{name}."): value for key, value in rule_weights(shapes, shapes.values())}
    params = from_foreign(state, config, "janusflow")
    arrays = {key.replace(f"/{name}/", "/"): value for key, value in np.load(REFERENCE).items() if f"/{name}/" in key}

    @jax.jit
    def encode(latents, time):
        return UViTEncoder(uvit, jnp.float32).apply({"params": params["gen_encoder"]}, latents, time)

    @jax.jit
    def decode(x, encoded):
        return UViTDecoder(uvit, jnp.float32).apply({"params": params["gen_decoder"]}, x, encoded)

    return arrays, encode, decode


def test_encoder_equals_the_original(pair):
    arrays, encode, _ = pair
    encoded = encode(nhwc(arrays["in/z"]), arrays["in/t"])
    np.testing.assert_allclose(encoded.time_embedding, arrays["out/t_emb"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoded.features, nhwc(arrays["out/features"]), rtol=0, atol=3e-5)  # of at most 9.9


def test_decoder_equals_the_original(pair):
    arrays, _, decode = pair
    encoded = Encoded(nhwc(arrays["out/skip"]), jnp.asarray(arrays["out/t_emb"]))
    velocity = decode(nhwc(arrays["in/dec_in"]), encoded)
    np.testing.assert_allclose(velocity, nhwc(arrays["out/velocity"]), rtol=0, atol=1e-5)  # of at most 3.6


def test_time_embedding_equals_the_original(pair):
    arrays, _, _ = pair
    width = arrays["out/time_proj"].shape[1]
    ours = sinusoidal_embedding(jnp.asarray(arrays["in/t"]), width)
    np.testing.assert_allclose(ours, arrays["out/time_proj"], rtol=0, atol=1e-4)  # float32 angles of up to 999


@pytest.mark.parametrize("shape", [(1, 7, 8, 4), (1, 8, 7, 4), (1, 8, 8, 3)])
def test_latents_that_do_not_fit_are_an_error(shape):
    encoder = UViTEncoder(JANUSFLOW_1P3B.uvit, jnp.float32)
    with pytest.raises(ValueError, match=r"the generation encoder got latents .*, 4\] with sides divisible by 2"):
        jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))


def test_pixel_shuffle_equals_pytorch():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 18)).astype(np.float32)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(pixel_shuffle(jnp.asarray(x), 3), expected.numpy())
