"""LlamaGen's VQ-16 image tokenizer: the generation encoder of Janus (section 3.1) and its pixel decoder.

It is fully convolutional: any image size divisible by `config.downsampling` works. The axes are in the order NHWC.
Letters: B images, H W pixels, h w rows and columns of codes, Q code dim, C codes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.autoencoder import PixelDecoder, PixelEncoder
from janus_jax.models.config import VQConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import UnitRows, declare
from janus_jax.models.layers import Conv
from janus_jax.ops.codebook import l2_normalize, lookup_codes, nearest_codes, straight_through


class VQOutput(NamedTuple):
    """What training needs of images that went through the codes."""

    reconstruction: jax.Array  # [B, H, W, 3], nominally in [-1, 1], not clipped
    latents: jax.Array  # [B, h, w, Q], l2-normalised
    quantized: jax.Array  # [B, h, w, Q], the codes of the latents, without the straight-through estimator
    codes: jax.Array  # [B, h * w] int32, row-major


class VQModel(nn.Module):
    """Image tokenizer: pixels <-> codes."""

    config: VQConfig
    execution: Execution

    def setup(self):
        c, dtype = self.config, self.execution.dtype
        self.encoder = PixelEncoder(c, dtype, attention=True)
        self.decoder = PixelDecoder(c, dtype, attention=True)
        self.quant_conv = Conv(c.code_dim, 1, dtype, axes=(None, None, None, None))
        self.post_quant_conv = Conv(c.z_channels, 1, dtype)
        self.codebook = self.param("codebook", declare(UnitRows(), ("codes", None)), (c.num_codes, c.code_dim))

    def latents(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> [B, h, w, Q] before normalisation and quantisation."""
        factor = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(
                f"VQ encoder got pixels {pixels.shape}, expected [B, H, W, 3] with sides divisible by {factor}"
            )
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> codes [B, h * w] int32, row-major."""
        # Accelerators would otherwise multiply with fewer bits, and choose other codes.
        with jax.default_matmul_precision("float32"):
            return nearest_codes(self.latents(pixels), self.codebook).reshape(pixels.shape[0], -1)

    def decode(self, codes: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
        """Codes [B, h * w] -> pixels [B, H, W, 3]; `grid` (h, w) defaults to the square of the training size."""
        h, w = grid or (self.config.grid, self.config.grid)
        return self._decode_quantized(lookup_codes(codes.reshape(-1, h, w), self.codebook))

    def __call__(self, pixels: jax.Array) -> VQOutput:
        """Reconstruction through the straight-through estimator, for training."""
        latents = l2_normalize(self.latents(pixels))
        codes = nearest_codes(latents, self.codebook)
        quantized = lookup_codes(codes, self.codebook)
        reconstruction = self._decode_quantized(straight_through(latents, quantized))
        return VQOutput(reconstruction, latents, quantized, codes.reshape(pixels.shape[0], -1))

    def init_all(self) -> None:
        """Runs every submodule, on the pixels of one code."""
        self(jnp.zeros((1, self.config.downsampling, self.config.downsampling, 3)))

    def _decode_quantized(self, quantized: jax.Array) -> jax.Array:
        return self.decoder(self.post_quant_conv(quantized.astype(self.execution.dtype)))
