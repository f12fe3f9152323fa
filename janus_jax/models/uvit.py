"""The generation encoder and decoder of JanusFlow (section 3.2), a shallow U-ViT around the LLM.

    encoder: latents -> patches -> ConvNeXt blocks ---.--> LLM ... -> decoder
                                                      '-- long skip -'
    decoder: concat(norm(LLM output), skip) -> ConvNeXt blocks -> velocity

Both are convolutional: they work for all latents whose sides are divisible by the patch size.
Letters: B images, H W latents, h w grid of tokens, Z latent channels, C channels, E width of the time embedding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.config import UViTConfig
from janus_jax.models.initializers import Constant, TorchDefault, declare
from janus_jax.models.layers import Conv, Linear, RMSNorm, gelu
from janus_jax.ops.depthwise_conv import depthwise_conv
from janus_jax.ops.flow import sinusoidal_embedding
from janus_jax.ops.norms import global_response_norm

_KERNEL_SIZE = 7
_MLP_RATIO = 4


class Encoded(NamedTuple):
    """Output of the encoder, which the LLM and the decoder read."""

    features: jax.Array  # [B, h, w, C] of the tokens; also the long skip
    time_embedding: jax.Array  # [B, E]


class TimeEmbedding(nn.Module):
    """Times in [0, 1000) [B] -> [B, E]: sinusoids, Linear, SiLU, Linear."""

    config: UViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        c = self.config
        x = sinusoidal_embedding(time, c.width).astype(self.dtype)
        x = nn.silu(Linear(c.time_width, (None, "mlp"), self.dtype, name="linear_1")(x))
        return Linear(c.time_width, ("mlp", "embed"), self.dtype, name="linear_2")(x)


class DepthwiseConv(nn.Module):
    """`ops.depthwise_conv.depthwise_conv` with a learned filter [k, k, 1, C] and bias."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        default = TorchDefault(_KERNEL_SIZE**2)
        shape = (_KERNEL_SIZE, _KERNEL_SIZE, 1, x.shape[-1])
        kernel = self.param("kernel", declare(default, (None, None, None, "conv_out")), shape)
        bias = self.param("bias", declare(default, (None,)), (x.shape[-1],))
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class GlobalResponseNorm(nn.Module):
    """`ops.norms.global_response_norm` with a learned scale and bias. A fresh one is the identity."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = declare(Constant(0.0), (None,))
        scale, bias = (self.param(name, zeros, x.shape[-1:]) for name in ("scale", "bias"))
        return global_response_norm(x, scale, bias, self.eps)


class ConvNextBlock(nn.Module):
    """ConvNeXt V2 block, then FiLM by the time embedding (Perez et al., 2018): shift + (1 + scale) * block(x)."""

    config: UViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array) -> jax.Array:
        eps, channels = self.config.norm_eps, x.shape[-1]
        y = DepthwiseConv(self.dtype, name="depthwise")(x)
        y = RMSNorm(eps, name="norm")(y)
        y = gelu(Linear(_MLP_RATIO * channels, ("embed", "mlp"), self.dtype, name="expand")(y))
        y = GlobalResponseNorm(eps, name="response_norm")(y)
        x = x + Linear(channels, ("mlp", "embed"), self.dtype, name="contract")(y)
        film = Linear(2 * channels, (None, "embed"), self.dtype, name="film")(nn.silu(time_embedding))
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        return shift + x * (1 + scale)


class UViTEncoder(nn.Module):
    """Noisy latents [B, H, W, Z] and times in [0, 1000) [B] -> features of the tokens and of the time."""

    config: UViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, latents: jax.Array, time: jax.Array) -> Encoded:
        c, patch = self.config, self.config.patch_size
        if latents.shape[1] % patch or latents.shape[2] % patch or latents.shape[3] != c.latent_channels:
            raise ValueError(
                f"the generation encoder got latents {latents.shape}, expected [B, H, W, {c.latent_channels}] "
                f"with sides divisible by {patch}"
            )
        time_embedding = TimeEmbedding(c, self.dtype, name="time_embed")(time)
        x = Conv(c.width, patch, self.dtype, stride=patch, name="patch_embed")(latents)
        for i in range(c.encoder_depth):
            x = ConvNextBlock(c, self.dtype, name=f"block_{i}")(x, time_embedding)
        return Encoded(x, time_embedding)


class UViTDecoder(nn.Module):
    """Features of the LLM [B, h, w, C] and the encoder's output -> velocity [B, H, W, Z] in float32."""

    config: UViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, encoded: Encoded) -> jax.Array:
        c = self.config
        x = RMSNorm(c.norm_eps, name="input_norm")(x)
        x = jnp.concatenate([x, encoded.features], axis=-1)
        for i in range(c.decoder_depth):
            x = ConvNextBlock(c, self.dtype, name=f"block_{i}")(x, encoded.time_embedding)
        x = RMSNorm(c.norm_eps, name="unpatch_norm")(x)
        no_axes = (None, None, None, None)
        x = Conv(c.latent_channels * c.patch_size**2, 1, self.dtype, axes=no_axes, name="unpatch")(x)
        return pixel_shuffle(x, c.patch_size).astype(jnp.float32)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """[B, h, w, Z * f * f] -> [B, h * f, w * f, Z]. Channel z * f^2 + i * f + j becomes row i, column j of a cell."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)  # [B, h, w, Z, i, j]
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)
