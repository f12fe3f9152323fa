"""Mask2Former (Cheng et al., 2022) with a Swin backbone: queries that each find one object, its class and its mask.

Names follow transformers' Mask2FormerForUniversalSegmentation. Only evaluation uses it, as the detector of GenEval.

Letters: B images, R C rows and columns of a map, S positions of all maps together, Q queries, D width, K classes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Normal, declare
from janus_jax.models.layers import Conv, GroupNorm, Linear, layer_norm
from janus_jax.models.metric_config import Mask2FormerConfig
from janus_jax.models.swin import PATCH_SIZE, Swin
from janus_jax.ops.attention import attend
from janus_jax.ops.deformable_attention import deformable_attention, sine_positions

NUM_LEVELS = 3  # feature maps that the transformers read: 1/32, 1/16 and 1/8 of the image
_NUM_POINTS = 4  # per head and level
_NORM_GROUPS, _NORM_EPS = 32, 1e-5
_EMBED = declare(Normal(1.0), (None, None))
SIZE_MULTIPLE = 32  # rows and columns of an image must be multiples of it


class Segments(NamedTuple):
    """What the queries found."""

    class_logits: jax.Array  # [B, Q, K + 1], of which the last is "no object"
    mask_logits: jax.Array  # [B, Q, R, C] at a quarter of the image's size


class ConvNorm(nn.Module):
    """A convolution that keeps the size, then GroupNorm."""

    features: int
    size: int
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.size // 2
        conv = Conv(
            self.features, self.size, self.dtype, (half, half), axes=(None,) * 4, use_bias=self.use_bias, name="conv"
        )
        return GroupNorm(_NORM_GROUPS, _NORM_EPS, self.dtype, name="norm")(conv(x))


class DeformableLayer(nn.Module):
    """Post-norm encoder layer: deformable attention of all positions to all maps, then an MLP."""

    config: Mask2FormerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, references: jax.Array, sizes: list[tuple[int, int]]
    ) -> jax.Array:
        c, dtype, heads = self.config, self.dtype, self.config.num_heads
        points = (heads, NUM_LEVELS, _NUM_POINTS)

        def linear(features: int, name: str) -> Linear:
            return Linear(features, (None, None), dtype, name=name)

        queries = x + positions
        offsets = linear(heads * NUM_LEVELS * _NUM_POINTS * 2, "sampling_offsets")(queries)
        offsets = offsets.reshape(*x.shape[:2], *points, 2)
        weights = linear(heads * NUM_LEVELS * _NUM_POINTS, "attention_weights")(queries)
        weights = jax.nn.softmax(weights.reshape(*x.shape[:2], heads, -1), axis=-1).reshape(*x.shape[:2], *points)
        scales = jnp.array([[columns, rows] for rows, columns in sizes], dtype)
        locations = references[None, :, None, None, None] + offsets / scales[:, None]
        values = linear(c.width, "value_proj")(x).reshape(*x.shape[:2], heads, -1)
        context = deformable_attention(values, sizes, locations, weights).reshape(x.shape)
        x = layer_norm(_NORM_EPS, dtype, "attention_norm")(x + linear(c.width, "output_proj")(context))
        y = linear(c.width, "fc2")(nn.relu(linear(c.encoder_mlp_dim, "fc1")(x)))
        return layer_norm(_NORM_EPS, dtype, "mlp_norm")(x + y)


class DetectorPixelDecoder(nn.Module):
    """Backbone maps -> the three maps that queries read, the smallest first [B, R C, D], and mask features."""

    config: Mask2FormerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> tuple[list[jax.Array], list[tuple[int, int]], jax.Array]:
        c, dtype = self.config, self.dtype
        level_embed = self.param("level_embed", _EMBED, (NUM_LEVELS, c.width)).astype(dtype)
        levels, positions, references = [], [], []
        sizes = [(x.shape[1], x.shape[2]) for x in maps[:0:-1]]
        for level, (x, (rows, columns)) in enumerate(zip(maps[:0:-1], sizes, strict=True)):
            y = ConvNorm(c.width, 1, True, dtype, name=f"input_{level}")(x)
            levels.append(y.reshape(len(y), rows * columns, c.width))
            positions.append(sine_positions(rows, columns, c.width).astype(dtype) + level_embed[level])
            y_grid, x_grid = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
            references.append(jnp.stack([(x_grid + 0.5) / columns, (y_grid + 0.5) / rows], axis=-1).reshape(-1, 2))
        x = jnp.concatenate(levels, axis=1)
        place, reference = jnp.concatenate(positions), jnp.concatenate(references).astype(dtype)
        for i in range(c.encoder_depth):
            x = DeformableLayer(c, dtype, name=f"encoder_{i}")(x, place, reference, sizes)
        found, start = [], 0
        for rows, columns in sizes:
            found.append(x[:, start : start + rows * columns])
            start += rows * columns
        lateral = ConvNorm(c.width, 1, False, dtype, name="lateral")(maps[0])
        smaller = found[-1].reshape(len(x), *sizes[-1], c.width)
        y = lateral + jax.image.resize(smaller, lateral.shape, "bilinear", antialias=False)
        y = nn.relu(ConvNorm(c.width, 3, False, dtype, name="output")(y))
        mask_features = Conv(c.width, 1, dtype, axes=(None,) * 4, name="mask_projection")(y)
        return found, sizes, mask_features


class Attention(nn.Module):
    """Attention with projections of its own and biases."""

    config: Mask2FormerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array | None = None
    ) -> jax.Array:
        c = self.config
        q, k, v = (
            Linear(c.width, (None, None), self.dtype, name=name)(x).reshape(*x.shape[:2], c.num_heads, -1)
            for name, x in (("q_proj", queries), ("k_proj", keys), ("v_proj", values))
        )
        context = attend(q, k, v, visible).reshape(queries.shape)
        return Linear(c.width, (None, None), self.dtype, name="o_proj")(context)


class QueryLayer(nn.Module):
    """Post-norm decoder layer: queries read the part of a map that their masks show, then each other, then an MLP."""

    config: Mask2FormerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array
    ) -> jax.Array:
        c, dtype = self.config, self.dtype
        y = Attention(c, dtype, name="cross_attention")(x + places, keys, values, visible)
        x = layer_norm(_NORM_EPS, dtype, "cross_norm")(x + y)
        y = Attention(c, dtype, name="self_attention")(x + places, x + places, x)
        x = layer_norm(_NORM_EPS, dtype, "self_norm")(x + y)
        y = nn.relu(Linear(c.decoder_mlp_dim, (None, None), dtype, name="fc1")(x))
        return layer_norm(_NORM_EPS, dtype, "mlp_norm")(x + Linear(c.width, (None, None), dtype, name="fc2")(y))


class Mask2Former(nn.Module):
    """Normalised pixels [B, R, C, 3] -> `Segments`."""

    config: Mask2FormerConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: jax.Array) -> Segments:
        c, dtype = self.config, self.execution.dtype
        if pixels.ndim != 4 or pixels.shape[1] % SIZE_MULTIPLE or pixels.shape[2] % SIZE_MULTIPLE:
            raise ValueError(f"Mask2Former got pixels {pixels.shape}, expected sides divisible by {SIZE_MULTIPLE}")
        maps = Swin(c.swin, dtype, name="swin")(pixels)
        levels, sizes, mask_features = DetectorPixelDecoder(c, dtype, name="pixel_decoder")(maps)
        level_embed = self.param("level_embed", _EMBED, (NUM_LEVELS, c.width)).astype(dtype)
        values = [level + level_embed[i] for i, level in enumerate(levels)]
        keys = [value + sine_positions(*size, c.width).astype(dtype) for value, size in zip(values, sizes, strict=True)]
        shape = (len(pixels), c.num_queries, c.width)
        x = jnp.broadcast_to(self.param("query_features", _EMBED, shape[1:]).astype(dtype), shape)
        places = jnp.broadcast_to(self.param("query_places", _EMBED, shape[1:]).astype(dtype), shape)
        norm = layer_norm(_NORM_EPS, dtype, "query_norm")
        mask_layers = [Linear(c.width, (None, None), dtype, name=f"mask_embed_{i}") for i in range(3)]

        def masks(x: jax.Array) -> jax.Array:
            y = nn.relu(mask_layers[1](nn.relu(mask_layers[0](norm(x)))))
            return jnp.einsum("BQD,BRCD->BQRC", mask_layers[2](y), mask_features)

        mask_logits = masks(x)
        for i in range(c.decoder_depth):
            level = i % NUM_LEVELS
            size = (*mask_logits.shape[:2], *sizes[level])
            visible = jax.image.resize(mask_logits, size, "bilinear", antialias=False) >= 0
            visible = visible.reshape(*size[:2], -1)
            visible |= ~visible.any(axis=-1, keepdims=True)  # an empty mask shows everything
            x = QueryLayer(c, dtype, name=f"decoder_{i}")(x, places, keys[level], values[level], visible)
            mask_logits = masks(x)
        class_logits = Linear(c.num_classes + 1, (None, None), dtype, name="class_predictor")(norm(x))
        return Segments(class_logits, mask_logits)

    def init_all(self) -> None:
        """Runs every submodule, on a small image."""
        size = PATCH_SIZE * 8 * 2
        self(jnp.zeros((1, size, size, 3)))
