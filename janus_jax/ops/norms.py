"""RMS normalisation (Zhang and Sennrich, 2019) as Llama checkpoints expect it, and global response normalisation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """scale * x / sqrt(mean(x^2) + eps), with float32 statistics; the result is cast back *before* it is scaled."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def global_response_norm(
    x: Float[Array, "B H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"], eps: float
) -> Float[Array, "B H W C"]:
    """x + scale * (x n) + bias with n = g / (mean over channels of g + eps), g_c = |x_c| over all pixels.

    Channels compete (ConvNeXt V2, section 3, algorithm 1); g and n in float32.
    """
    energy = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
    response = safe_sqrt(energy)
    relative = response / (jnp.mean(response, axis=-1, keepdims=True) + eps)
    return bias.astype(x.dtype) + (scale.astype(x.dtype) * relative.astype(x.dtype) + 1) * x


def safe_sqrt(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """sqrt with gradient 0 instead of infinity at 0, where a whole channel may be after the GELU of zeros."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
