"""The VAE against diffusers' AutoencoderKL with random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.models.config import VAEConfig
from janus_jax.models.params import bind, build
from tests.helpers.flow_weights import from_foreign
from tests.helpers.torch_weights import refill

CASES = {
    "as_sdxl": dict(block_out_channels=[16, 32, 32, 32], layers_per_block=2, latent_channels=4, norm_num_groups=8),
    "odd": dict(block_out_channels=[8, 24], layers_per_block=1, latent_channels=3, norm_num_groups=4),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    settings, levels = CASES[request.param], len(CASES[request.param]["block_out_channels"])
    model = diffusers.AutoencoderKL(
        **settings,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=0.13025,
    ).eval()
    refill(model, seed=0)
    channels = settings["block_out_channels"]
    config = VAEConfig(
        base_channels=channels[0],
        channel_multipliers=tuple(size // channels[0] for size in channels),
        num_res_blocks=settings["layers_per_block"],
        latent_channels=settings["latent_channels"],
        norm_groups=settings["norm_num_groups"],
        norm_eps=1e-6,
        scaling_factor=0.13025,
    )
    params = from_foreign(model.state_dict(), config, "vae")
    return model, config, bind(build(config), params)


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def test_encoder_equals_diffusers(pair):
    model, config, ours = pair
    rng = np.random.default_rng(1)
    pixels = jnp.float32(rng.standard_normal((2, 16, 24, 3)).clip(-1, 1))
    posterior = model.encode(nchw(pixels)).latent_dist
    noise = jnp.float32(rng.standard_normal(nhwc(posterior.mean).shape))

    @jax.jit
    def run(pixels, noise):
        encoded = ours(pixels, method="encode"), ours(pixels, noise, method="encode")
        return *ours(pixels, method="moments"), *encoded

    mean, log_variance, latents, sampled = run(pixels, noise)
    np.testing.assert_allclose(mean, nhwc(posterior.mean), rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_variance, nhwc(posterior.logvar), rtol=0, atol=1e-5)
    np.testing.assert_allclose(latents, nhwc(posterior.mean) * 0.13025, rtol=0, atol=1e-5)
    expected = nhwc(posterior.mean + posterior.std * nchw(noise)) * 0.13025
    np.testing.assert_allclose(sampled, expected, rtol=0, atol=1e-5)
    assert latents.shape == (2, 16 // config.downsampling, 24 // config.downsampling, config.latent_channels)


@torch.no_grad()
def test_decoder_equals_diffusers(pair):
    model, config, ours = pair
    latents = jnp.float32(np.random.default_rng(2).standard_normal((2, 3, 2, config.latent_channels)))
    pixels = jax.jit(lambda z: ours(z, method="decode"))(latents)
    np.testing.assert_allclose(pixels, nhwc(model.decode(nchw(latents) / 0.13025).sample), rtol=0, atol=3e-5)


def test_pixels_that_do_not_fit_are_an_error(pair):
    _, config, ours = pair
    with pytest.raises(ValueError, match=rf"VAE encoder got pixels .*divisible by {config.downsampling}"):
        jax.eval_shape(lambda x: ours(x, method="encode"), jnp.zeros((1, 15, 16, 3)))
