"""Multi-scale deformable attention (Zhu et al., 2021): every query reads a few points of several feature maps.

Letters: B images, Q queries, N heads, L levels, P points per level, H head dim, S positions of all levels together.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sample_bilinear(
    values: Float[Array, "B R C N H"], locations: Float[Array, "B Q N P 2"]
) -> Float[Array, "B Q N P H"]:
    """Values of a feature map of R rows and C columns at points between its positions.

    Args:
        locations: x and y from 0 to 1, where 0 and 1 are the outer edges of the map; outside of it all values are zero.
            This is PyTorch's `grid_sample(padding_mode="zeros", align_corners=False)`.
    """
    batch, rows, columns, heads, dim = values.shape
    flat = values.reshape(batch, rows * columns, heads, dim).transpose(0, 2, 1, 3)  # [B, N, R * C, H]
    points = locations.transpose(0, 2, 1, 3, 4)  # [B, N, Q, P, 2]
    x, y = points[..., 0] * columns - 0.5, points[..., 1] * rows - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    result = jnp.zeros((*points.shape[:-1], dim), values.dtype)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        index = jnp.where(inside, row * columns + column, 0).astype(jnp.int32)
        found = jnp.take_along_axis(flat, index.reshape(batch, heads, -1, 1), axis=2).reshape(result.shape)
        result += jnp.where(inside, weight, 0.0)[..., None].astype(values.dtype) * found
    return result.transpose(0, 2, 1, 3, 4)


def deformable_attention(
    values: Float[Array, "B S N H"],
    sizes: Sequence[tuple[int, int]],
    locations: Float[Array, "B Q N L P 2"],
    weights: Float[Array, "B Q N L P"],
) -> Float[Array, "B Q N H"]:
    """The weighted sum of the values at the points of all levels.

    Args:
        values: of the positions of all levels, one level after the other, row by row.
        sizes: rows and columns of each level.
        locations: see `sample_bilinear`.
    """
    result = jnp.zeros((*weights.shape[:3], values.shape[-1]), values.dtype)
    start = 0
    for level, (rows, columns) in enumerate(sizes):
        part = values[:, start : start + rows * columns]
        start += rows * columns
        sampled = sample_bilinear(part.reshape(len(part), rows, columns, *part.shape[2:]), locations[:, :, :, level])
        result += jnp.einsum("BQNPH,BQNP->BQNH", sampled, weights[:, :, :, level])
    return result


def sine_positions(rows: int, columns: int, width: int) -> Float[Array, "S D"]:
    """Sine embeddings of the positions of a map, row by row: the first half for the row, the second for the column.

    Positions count from 1, divided by the size of the map and multiplied by 2 pi (DETR, normalised).

    Args:
        width: D, a multiple of 4.
    """
    features = width // 2
    frequencies = 10000.0 ** (2 * (jnp.arange(features) // 2) / features)

    def embed(size: int) -> jax.Array:
        angles = (jnp.arange(1, size + 1) / (size + 1e-6) * 2 * jnp.pi)[:, None] / frequencies
        pairs = jnp.stack([jnp.sin(angles[:, 0::2]), jnp.cos(angles[:, 1::2])], axis=-1)
        return pairs.reshape(size, features)

    y = jnp.broadcast_to(embed(rows)[:, None], (rows, columns, features))
    x = jnp.broadcast_to(embed(columns)[None], (rows, columns, features))
    return jnp.concatenate([y, x], axis=-1).reshape(rows * columns, width)
