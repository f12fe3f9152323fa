"""The range of pixels that all networks of the family read."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8


def normalize(pixels: UInt8[Array, "*S"], dtype: DTypeLike) -> Float[Array, "*S"]:
    """Bytes 0 to 255 -> numbers from -1 to 1, computed in float32 and returned in `dtype`."""
    return (pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)
