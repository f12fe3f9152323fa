"""Swin Transformer (Liu et al., 2021) as the backbone of a detector: feature maps at 1/4 to 1/32 of the image.

Letters: B images, R C rows and columns of a map, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.initializers import Normal, declare
from janus_jax.models.layers import Conv, Linear, gelu, layer_norm
from janus_jax.models.metric_config import SwinConfig
from janus_jax.ops.windows import attend_windows, cut_windows, join_windows, relative_positions, shifted_mask

PATCH_SIZE = 4


class SwinBlock(nn.Module):
    """Pre-norm block whose attention stays inside windows, which every second block shifts by half a window."""

    config: SwinConfig
    num_heads: int
    shift: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, side, dtype = self.config, self.config.window_size, self.dtype
        rows, columns, width = x.shape[1:]
        y = layer_norm(c.norm_eps, dtype, "attention_norm")(x)
        # Tokens that fill the last windows are seen by the others, as in the original.
        y = jnp.pad(y, ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
        padded_rows, padded_columns = y.shape[1:3]
        mask = None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            mask = shifted_mask(padded_rows, padded_columns, side, self.shift)
        windows = cut_windows(y, side)
        q, k, v = (
            Linear(width, (None, None), dtype, name=name)(windows).reshape(*windows.shape[:2], self.num_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        table = self.param("position_bias", declare(Normal(0.02), (None, None)), ((2 * side - 1) ** 2, self.num_heads))
        bias = table[relative_positions(side)].transpose(2, 0, 1)
        context = attend_windows(q, k, v, bias, mask).reshape(windows.shape)
        y = join_windows(Linear(width, (None, None), dtype, name="o_proj")(context), side, padded_rows, padded_columns)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + y[:, :rows, :columns]
        y = layer_norm(c.norm_eps, dtype, "mlp_norm")(x)
        y = gelu(Linear(c.mlp_ratio * width, (None, None), dtype, name="fc1")(y))
        return x + Linear(width, (None, None), dtype, name="fc2")(y)


class PatchMerging(nn.Module):
    """Halves rows and columns and doubles the width: four neighbours are joined, first down, then to the right."""

    config: SwinConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        x = layer_norm(_MERGE_EPS, self.dtype, "norm")(x)
        return Linear(x.shape[-1] // 2, (None, None), self.dtype, use_bias=False, name="reduction")(x)


class Swin(nn.Module):
    """Pixels [B, R, C, 3] -> the feature map of each stage after a norm of its own, the largest first."""

    config: SwinConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> list[jax.Array]:
        c, dtype, no_axes = self.config, self.dtype, (None,) * 4
        x = Conv(c.width, PATCH_SIZE, dtype, stride=PATCH_SIZE, axes=no_axes, name="patch_embed")(pixels)
        x = layer_norm(_MERGE_EPS, dtype, "patch_norm")(x)
        maps = []
        for stage, (depth, num_heads) in enumerate(zip(c.depths, c.num_heads, strict=True)):
            for i in range(depth):
                shift = c.window_size // 2 if i % 2 else 0
                x = SwinBlock(c, num_heads, shift, dtype, name=f"stage_{stage}_block_{i}")(x)
            maps.append(layer_norm(_MERGE_EPS, dtype, f"norm_{stage + 1}")(x))
            if stage + 1 < len(c.depths):
                x = PatchMerging(c, dtype, name=f"stage_{stage}_merge")(x)
        return maps


_MERGE_EPS = 1e-5  # PyTorch's default, of the norms outside of blocks
