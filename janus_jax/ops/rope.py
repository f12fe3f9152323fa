"""Rotary position embedding in the half-split ("rotate_half") convention of Llama checkpoints.

Letters: B batch, T tokens, N heads, H head dim, R = H / 2 rotated pairs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.ops.noinline import noinline


class Rotation(NamedTuple):
    """Cosines and sines of the angles of RoPE."""

    cos: Float[Array, "B T R"]
    sin: Float[Array, "B T R"]


def rope_angles(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Float[Array, "B T R"]:
    """Angles position * theta^(-2i / head_dim), i = 0 .. head_dim/2 - 1, always in float32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T R"]) -> Float[Array, "B T N H"]:
    """Rotates the pair (x[i], x[i + H/2]) by angle i, in float32, and returns the dtype of `x`.

    PyTorch casts cosines and sines to the activation dtype first. Keeping them in float32 is more exact for bfloat16
    and the same for float32.
    """
    return apply_rotation(x, _rotation(angles))


def rotation_once(angles: Float[Array, "B T R"]) -> Rotation:
    """Cosines and sines that all layers share in `apply_rotation`.

    XLA would otherwise compute them again for each head of each layer (see `noinline`).
    """
    return noinline(_rotation)(angles)


def apply_rotation(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """`apply_rope` with the cosines and sines of its angles."""
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]  # [B, T, 1, R]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _rotation(angles: Float[Array, "B T R"]) -> Rotation:
    return Rotation(jnp.cos(angles), jnp.sin(angles))
