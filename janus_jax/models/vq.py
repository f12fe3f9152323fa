"""LlamaGen's VQ-16 image tokenizer: the generation encoder of Janus (section 3.1) and its pixel decoder.

Fully convolutional; any size divisible by `config.downsampling` works. NHWC throughout.
Letters: B images, H W pixels, h w grid, Z latent channels, Q code dim, C codes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.config import Execution, VQConfig
from janus_jax.models.initializers import UnitRows, declare
from janus_jax.models.layers import Conv, group_norm
from janus_jax.ops.attention import attend
from janus_jax.ops.codebook import l2_normalize, lookup_codes, nearest_codes, straight_through


class VQOutput(NamedTuple):
    reconstruction: jax.Array  # [B, H, W, 3], nominally in [-1, 1], not clipped
    latents: jax.Array  # [B, h, w, Q], l2-normalised
    quantized: jax.Array  # [B, h, w, Q], the codes of the latents, without the straight-through estimator
    codes: jax.Array  # [B, h * w] int32, row-major


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut where the channel count changes."""

    config: VQConfig
    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = nn.silu(group_norm(c.norm_groups, c.norm_eps, self.dtype, "norm1")(x))
        h = _conv3x3(self.channels, self.dtype, "conv1")(h)
        h = nn.silu(group_norm(c.norm_groups, c.norm_eps, self.dtype, "norm2")(h))
        h = _conv3x3(self.channels, self.dtype, "conv2")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.dtype, name="shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with 1x1 convolutions as projections."""

    config: VQConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = group_norm(self.config.norm_groups, self.config.norm_eps, self.dtype, "norm")(x)
        q, k, v = (
            Conv(channels, 1, self.dtype, name=name)(y).reshape(batch, height * width, 1, channels)
            for name in ("q", "k", "v")
        )
        context = attend(q, k, v).reshape(batch, height, width, channels)
        return x + Conv(channels, 1, self.dtype, name="proj_out")(context)


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    config: VQConfig
    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResBlock(self.config, self.channels, self.dtype, name="block_1")(x)
        x = AttnBlock(self.config, self.dtype, name="attn_1")(x)
        return ResBlock(self.config, self.channels, self.dtype, name="block_2")(x)


class Encoder(nn.Module):
    """Pixels [B, H, W, 3] -> latent [B, h, w, Z]; level i has base_channels * channel_multipliers[i] channels."""

    config: VQConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.channel_multipliers) - 1
        x = _conv3x3(c.base_channels, self.dtype, "conv_in")(x)
        for i, multiplier in enumerate(c.channel_multipliers):
            for j in range(c.num_res_blocks):
                x = ResBlock(c, c.base_channels * multiplier, self.dtype, name=f"down_{i}_block_{j}")(x)
                if i == last:
                    x = AttnBlock(c, self.dtype, name=f"down_{i}_attn_{j}")(x)
            if i < last:  # one row and column of zeros at the bottom and right only
                downsample = Conv(x.shape[-1], 3, self.dtype, (0, 1), 2, name=f"down_{i}_downsample")
                x = downsample(x)
        x = Middle(c, x.shape[-1], self.dtype, name="mid")(x)
        x = nn.silu(group_norm(c.norm_groups, c.norm_eps, self.dtype, "norm_out")(x))
        return _conv3x3(c.z_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latent [B, h, w, Z] -> pixels [B, H, W, 3]; levels are numbered from the lowest resolution up."""

    config: VQConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.channel_multipliers) - 1
        x = _conv3x3(c.base_channels * c.channel_multipliers[-1], self.dtype, "conv_in")(x)
        x = Middle(c, x.shape[-1], self.dtype, name="mid")(x)
        for i, multiplier in enumerate(reversed(c.channel_multipliers)):
            for j in range(c.num_res_blocks + 1):
                x = ResBlock(c, c.base_channels * multiplier, self.dtype, name=f"up_{i}_block_{j}")(x)
                if i == 0:
                    x = AttnBlock(c, self.dtype, name=f"up_{i}_attn_{j}")(x)
            if i < last:
                x = x.repeat(2, axis=1).repeat(2, axis=2)  # nearest
                x = _conv3x3(x.shape[-1], self.dtype, f"up_{i}_upsample")(x)
        x = nn.silu(group_norm(c.norm_groups, c.norm_eps, self.dtype, "norm_out")(x))
        return _conv3x3(3, self.dtype, "conv_out", axes=(None, None, None, None))(x)


class VQModel(nn.Module):
    """Image tokenizer: pixels <-> codes."""

    config: VQConfig
    execution: Execution

    def setup(self):
        c, dtype = self.config, self.execution.dtype
        self.encoder = Encoder(c, dtype)
        self.decoder = Decoder(c, dtype)
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
        with jax.default_matmul_precision("float32"):  # else accelerators multiply in fewer bits: other codes
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
        """Touches every submodule (one code's worth of pixels)."""
        self(jnp.zeros((1, self.config.downsampling, self.config.downsampling, 3)))

    def _decode_quantized(self, quantized: jax.Array) -> jax.Array:
        return self.decoder(self.post_quant_conv(quantized.astype(self.execution.dtype)))


def _conv3x3(features: int, dtype: DTypeLike, name: str, **kwargs) -> Conv:
    return Conv(features, 3, dtype, (1, 1), name=name, **kwargs)
