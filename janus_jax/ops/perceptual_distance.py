"""The distance of LPIPS (Zhang et al., 2018, equation 1) between the features of two images at one layer.

Letters: B images, H W rows and columns, C channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.ops.norms import safe_sqrt

_EPS = 1e-10  # as in the code of LPIPS, outside the root


def feature_distance(
    a: Float[Array, "B H W C"], b: Float[Array, "B H W C"], weights: Float[Array, " C"]
) -> Float[Array, " B"]:
    """Weighted squared distance of unit feature vectors, averaged over positions, in float32.

    The gradient is finite where all channels are zero. The original's is not a number there.
    """
    return jnp.mean(jnp.sum(weights * jnp.square(_unit(a) - _unit(b)), axis=-1), axis=(1, 2))


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / (safe_sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + _EPS)
