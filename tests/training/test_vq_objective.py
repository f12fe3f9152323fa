"""The loss of the VQ tokenizer against NumPy, and the gradient that passes the codes straight through."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import semantic_vq16, vq16
from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.errors import UserError
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, flatten, init_params
from janus_jax.models.presets import SEMANTIC_VQ_16, VQ_16
from janus_jax.ops.losses import code_entropy_loss
from janus_jax.training.architecture import model_config
from janus_jax.training.objectives.base import mean_metrics
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.plan import abstract_batch, make_plan
from tests.helpers.tiny_runs import MICRO_VQ

LOSS = vq_config("micro_vq").loss.to_dict() | {"pixel_weight": 0.7}
MODEL = build(MICRO_VQ, Execution())
# Zero but for rounding: a vector added to all keys shifts all scores of a query alike.
NO_GRADIENT = re.compile(r"encoder/.*(attn_\d)/k/bias")


@pytest.fixture(scope="module")
def params():
    return init_params(MICRO_VQ, seed=3)


@pytest.fixture(scope="module")
def images():
    return ImageBatch(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


def test_loss_equals_numpy(params, images):
    pixels = images.pixels / 127.5 - 1
    latents = jax.jit(lambda x: bind(MODEL, params)(x, method="latents"))(jnp.asarray(pixels, jnp.float32))
    latents = np.asarray(latents, np.float64)
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
    codebook = np.asarray(params["codebook"], np.float64)
    codebook /= np.linalg.norm(codebook, axis=-1, keepdims=True)
    distances = np.linalg.norm(latents[..., None, :] - codebook, axis=-1)
    codes = distances.argmin(-1).reshape(3, -1)
    squared_error = np.mean(distances.min(-1) ** 2) / MICRO_VQ.code_dim
    decoded = jax.jit(lambda codes: bind(MODEL, params)(codes, method="decode"))(codes)
    pixel_error = np.mean((np.asarray(decoded, np.float64) - pixels) ** 2)

    total, metrics = jax.jit(make_objective(MICRO_VQ, Execution(), ConfigDict(LOSS)))(params, images)
    means = mean_metrics(metrics)
    quality = {name: means.pop(name) for name in ("psnr", "ssim", "ssim/range_2")}
    levels = np.trunc(np.clip(127.5 * np.asarray(decoded, np.float64) + 128, 0, 255)) / 255
    error = np.mean((levels - images.pixels / 255) ** 2, axis=(1, 2, 3))
    assert quality["psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), abs=1e-3)
    assert quality["ssim"] < quality["ssim/range_2"] < 1
    frequencies = np.unique(codes, return_counts=True)[1] / codes.size
    expected = {
        "loss": 0.7 * pixel_error + 1.25 * squared_error,
        "loss/pixel": pixel_error,
        "loss/codebook": squared_error,
        "loss/commitment": 0.25 * squared_error,
        "codes/usage": len(frequencies) / 32,
        "codes/perplexity": np.exp(-np.sum(frequencies * np.log(frequencies))),
        "images": 3,
    }
    assert means == pytest.approx(expected, rel=2e-6)
    assert float(total) == pytest.approx(expected["loss"], rel=2e-6)
    assert 4 < len(frequencies) < 32


def test_encoder_learns_from_the_pixels_through_the_codes(params, images):
    """Without commitment, its gradient is that of the decoder's input carried over to the latents unchanged."""
    config = dataclasses.replace(MICRO_VQ, commitment=0.0)
    loss = make_objective(config, Execution(), ConfigDict(LOSS))
    learning = {name: params[name] for name in ("encoder", "quant_conv")}
    actual = jax.jit(jax.grad(lambda learning: loss(params | learning, jax.tree.map(jnp.asarray, images))[0]))(learning)
    pixels = jnp.asarray(images.pixels / 127.5 - 1, jnp.float32)

    def decode(module, quantized):
        return module.decoder(module.post_quant_conv(quantized))

    @jax.jit
    def by_hand(quant_conv):
        def decoder_loss(quantized):
            decoded = MODEL.apply({"params": params}, quantized, method=decode)
            return 0.7 * jnp.mean(jnp.square(decoded - pixels))

        def unit_latents(quant_conv):
            features = MODEL.apply({"params": params}, pixels, method=lambda module, x: module.encoder(x))
            latents = features @ quant_conv["kernel"][0, 0] + quant_conv["bias"]
            return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)

        latents, pull_back = jax.vjp(unit_latents, quant_conv)
        codebook = params["codebook"] / jnp.linalg.norm(params["codebook"], axis=-1, keepdims=True)
        quantized = codebook[jnp.argmax(latents @ codebook.T, axis=-1)]
        return pull_back(jax.grad(decoder_loss)(quantized))[0]

    for name, expected in by_hand(params["quant_conv"]).items():
        np.testing.assert_allclose(actual["quant_conv"][name], expected, rtol=0, atol=1e-6, err_msg=name)
        assert np.abs(expected).max() > 1e-3
    zero = {path for path, leaf in flatten(actual).items() if np.abs(leaf).max() < 1e-7}
    assert zero == {path for path in flatten(actual) if NO_GRADIENT.fullmatch(path)}


def test_absolute_differences_and_the_entropy_of_the_codes_are_options(params, images):
    options = {"pixel_loss": "l1", "entropy_weight": 0.1}
    objective = make_objective(MICRO_VQ, Execution(), ConfigDict(LOSS | options))
    means = mean_metrics(jax.jit(objective)(params, images)[1])
    output = jax.jit(bind(MODEL, params))(jnp.asarray(images.pixels / 127.5 - 1, jnp.float32))
    error = np.asarray(output.reconstruction, np.float64) - (images.pixels / 127.5 - 1)
    entropy = code_entropy_loss(output.latents.reshape(-1, 4), params["codebook"], 0.01)
    assert means["loss/pixel"] == pytest.approx(np.mean(np.abs(error)), rel=1e-5)
    assert means["loss/entropy"] == pytest.approx(float(entropy), rel=1e-4) and abs(float(entropy)) > 0.1
    terms = (0.7 * means["loss/pixel"], means["loss/codebook"], means["loss/commitment"], 0.1 * means["loss/entropy"])
    assert means["loss"] == pytest.approx(sum(terms), rel=1e-6)


def test_an_unknown_pixel_loss_is_refused():
    with pytest.raises(UserError, match=r"config\.loss\.pixel_loss='l3'"):
        make_objective(MICRO_VQ, Execution(), ConfigDict(LOSS | {"pixel_loss": "l3"}))


def test_another_codebook_and_size_of_images_are_fields_of_the_config():
    """Of an ordinary and of a semantic tokenizer. Nothing else of the architecture changes."""
    config = vq16.get_config()
    config.codebook.update(num_codes=65536, code_dim=16)
    assert model_config(config) == dataclasses.replace(VQ_16, num_codes=65536, code_dim=16)
    config.data.image_size = 512
    plan = make_plan(config, jax.devices()[:1])
    assert abstract_batch(config, plan).pixels.shape == (128, 512, 512, 3)
    assert plan.state.trainable["codebook"].shape == (65536, 16)
    assert plan.program == "tokenizer_step"
    semantic = semantic_vq16.get_config()
    semantic.codebook.num_codes = 4096
    assert model_config(semantic).vq == dataclasses.replace(SEMANTIC_VQ_16.vq, num_codes=4096)
    config.codebook.num_codes = -1
    with pytest.raises(UserError, match=r"config\.codebook\.num_codes=-1, expected 0 to"):
        model_config(config)


@pytest.mark.parametrize(("images", "program"), [(24, "small_tokenizer_step"), (25, "tokenizer_step")])
def test_only_a_step_whose_arrays_fit_into_small_buffers_is_compiled_with_them(images, program):
    config = vq_config("vq_tiny")
    config.data.image_size, config.train.batch_size = 64, images  # two times 24 arrays of 64 x 64 x 64 are 48 MiB
    assert make_plan(config, jax.devices()[:1]).program == program
