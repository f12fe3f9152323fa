"""The convolutional autoencoder of latent diffusion (Rombach et al., 2022), which VQ-16 and the SDXL VAE share.

It is fully convolutional: any image size divisible by `config.downsampling` works. The axes are in the order NHWC.
Letters: B images, H W pixels, h w rows and columns of the grid, Z channels of the encoder's output.
"""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from janus_jax.models.config import VAEConfig, VQConfig
from janus_jax.models.layers import Conv, GroupNorm
from janus_jax.ops.attention import attend

AutoencoderConfig = VQConfig | VAEConfig


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut where the channel count changes."""

    config: AutoencoderConfig
    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = GroupNorm(c.norm_groups, c.norm_eps, self.dtype, swish=True, name="norm1")(x)
        h = conv3x3(self.channels, self.dtype, "conv1")(h)
        h = GroupNorm(c.norm_groups, c.norm_eps, self.dtype, swish=True, name="norm2")(h)
        h = conv3x3(self.channels, self.dtype, "conv2")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.dtype, name="shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with 1x1 convolutions as projections."""

    config: AutoencoderConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(self.config.norm_groups, self.config.norm_eps, self.dtype, name="norm")(x)
        q, k, v = (
            Conv(channels, 1, self.dtype, name=name)(y).reshape(batch, height * width, 1, channels)
            for name in ("q", "k", "v")
        )
        context = attend(q, k, v).reshape(batch, height, width, channels)
        return x + Conv(channels, 1, self.dtype, name="proj_out")(context)


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    config: AutoencoderConfig
    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResBlock(self.config, self.channels, self.dtype, name="block_1")(x)
        x = AttnBlock(self.config, self.dtype, name="attn_1")(x)
        return ResBlock(self.config, self.channels, self.dtype, name="block_2")(x)


class PixelEncoder(nn.Module):
    """Pixels [B, H, W, 3] -> [B, h, w, Z]; level i has base_channels * channel_multipliers[i] channels."""

    config: AutoencoderConfig
    dtype: DTypeLike
    attention: bool  # whether attention follows each residual block of the lowest resolution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.channel_multipliers) - 1
        x = conv3x3(c.base_channels, self.dtype, "conv_in")(x)
        for i, multiplier in enumerate(c.channel_multipliers):
            for j in range(c.num_res_blocks):
                x = ResBlock(c, c.base_channels * multiplier, self.dtype, name=f"down_{i}_block_{j}")(x)
                if self.attention and i == last:
                    x = AttnBlock(c, self.dtype, name=f"down_{i}_attn_{j}")(x)
            if i < last:  # zeros are added only at the bottom and at the right, one row and one column
                x = Conv(x.shape[-1], 3, self.dtype, (0, 1), 2, name=f"down_{i}_downsample")(x)
        x = Middle(c, x.shape[-1], self.dtype, name="mid")(x)
        x = GroupNorm(c.norm_groups, c.norm_eps, self.dtype, swish=True, name="norm_out")(x)
        return conv3x3(c.z_channels, self.dtype, "conv_out")(x)


class PixelDecoder(nn.Module):
    """Latents [B, h, w, any] -> pixels [B, H, W, 3]. Level 0 is the lowest resolution."""

    config: AutoencoderConfig
    dtype: DTypeLike
    attention: bool  # whether attention follows each residual block of the lowest resolution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.channel_multipliers) - 1
        x = conv3x3(c.base_channels * c.channel_multipliers[-1], self.dtype, "conv_in")(x)
        x = Middle(c, x.shape[-1], self.dtype, name="mid")(x)
        for i, multiplier in enumerate(reversed(c.channel_multipliers)):
            for j in range(c.num_res_blocks + 1):
                x = ResBlock(c, c.base_channels * multiplier, self.dtype, name=f"up_{i}_block_{j}")(x)
                if self.attention and i == 0:
                    x = AttnBlock(c, self.dtype, name=f"up_{i}_attn_{j}")(x)
            if i < last:
                x = x.repeat(2, axis=1).repeat(2, axis=2)  # nearest neighbour
                x = conv3x3(x.shape[-1], self.dtype, f"up_{i}_upsample")(x)
        x = GroupNorm(c.norm_groups, c.norm_eps, self.dtype, swish=True, name="norm_out")(x)
        return conv3x3(3, self.dtype, "conv_out", axes=(None, None, None, None))(x)


def conv3x3(features: int, dtype: DTypeLike, name: str, **kwargs) -> Conv:
    """A 3x3 convolution that keeps the image size."""
    return Conv(features, 3, dtype, (1, 1), name=name, **kwargs)
