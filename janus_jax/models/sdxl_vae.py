"""The variational autoencoder between pixels and the latents of JanusFlow (SDXL's, Podell et al., 2023).

Letters: B images, H W pixels, h w rows and columns of latents, Z latent channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.autoencoder import PixelDecoder, PixelEncoder
from janus_jax.models.config import VAEConfig
from janus_jax.models.execution import Execution
from janus_jax.models.layers import Conv

_LOG_VARIANCE_RANGE = (-30.0, 20.0)  # the original clips the log-variance to it


class VAE(nn.Module):
    """Pixels <-> latents, which are scaled to about unit variance on both ways. float16 is not enough: it overflows."""

    config: VAEConfig
    execution: Execution

    def setup(self):
        c, dtype, no_axes = self.config, self.execution.dtype, (None, None, None, None)
        self.encoder = PixelEncoder(c, dtype, attention=False)
        self.decoder = PixelDecoder(c, dtype, attention=False)
        self.quant_conv = Conv(c.z_channels, 1, dtype, axes=no_axes)
        self.post_quant_conv = Conv(c.latent_channels, 1, dtype, axes=no_axes)

    def moments(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, 3] in [-1, 1] -> mean and log-variance of the latents before scaling, [B, h, w, Z] float32."""
        factor = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(
                f"VAE encoder got pixels {pixels.shape}, expected [B, H, W, 3] with sides divisible by {factor}"
            )
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

    def encode(self, pixels: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> scaled latents [B, h, w, Z] float32.

        Args:
            noise: standard normal [B, h, w, Z], for a sample of the posterior; None gives its mean.
        """
        mean, log_variance = self.moments(pixels)
        latents = mean if noise is None else mean + jnp.exp(log_variance / 2) * noise
        return latents * self.config.scaling_factor

    def decode(self, latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, Z] -> pixels [B, H, W, 3], nominally in [-1, 1]."""
        latents = latents.astype(jnp.float32) / self.config.scaling_factor
        return self.decoder(self.post_quant_conv(latents.astype(self.execution.dtype)))

    def init_all(self) -> None:
        """Runs every submodule, on the pixels of one latent."""
        self.decode(self.encode(jnp.zeros((1, self.config.downsampling, self.config.downsampling, 3))))
