"""RMS normalisation (Zhang and Sennrich, 2019) as Llama checkpoints expect it, and normalisations of images."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
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


class _GroupMoments(NamedTuple):
    """The moments of the group that each channel belongs to, float32 [B, 1, 1, C] each."""

    mean: jax.Array
    inverse_deviation: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(
    x: Float[Array, "B H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    groups: int,
    eps: float,
    dtype: DTypeLike = jnp.float32,
    swish: bool = False,
) -> Float[Array, "B H W C"]:
    """scale * (x - mean) / sqrt(variance + eps) + bias (Wu and He, 2018), cast to `dtype`, then Swish if `swish`.

    The moments are those of each image and group of channels, in float32. The variance is that of x - mean:
    E[x^2] - E[x]^2 would lose digits. The gradient is written out: automatic differentiation passes over the pixels
    more often, and it keeps the sigmoid besides x. Scale and bias have one precision.
    """
    return _group_norm(x, scale, bias, groups, eps, dtype, swish)[0]


_Saved = tuple[jax.Array, jax.Array, jax.Array, _GroupMoments]


def _group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float, dtype: DTypeLike, swish: bool
) -> tuple[jax.Array, _Saved]:
    mean = _group_mean(jnp.mean(x, (1, 2), dtype=jnp.float32), groups)
    variance = _group_mean(jnp.mean(jnp.square(x - mean), (1, 2)), groups)
    saved = (x, scale, bias, _GroupMoments(mean, jax.lax.rsqrt(variance + eps)))
    return _activate(_affine(saved), dtype, swish), saved


def _affine(saved: _Saved) -> jax.Array:
    x, scale, bias, moments = saved
    return (x - moments.mean) * (moments.inverse_deviation * scale) + bias


def _activate(y: jax.Array, dtype: DTypeLike, swish: bool) -> jax.Array:
    y = y.astype(dtype)
    return jax.nn.silu(y) if swish else y


def _group_norm_gradient(
    groups: int, eps: float, dtype: DTypeLike, swish: bool, saved: _Saved, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, scale and bias.

    With n = (x - mean) / deviation, that of x is (scale dy - E[scale dy] - n E[scale dy n]) / deviation.
    """
    saved = jax.lax.optimization_barrier(saved)  # otherwise XLA keeps what is computed from x again
    (dy,) = jax.vjp(lambda y: _activate(y, dtype, swish), _affine(saved))[1](gradient)
    x, scale, _, (mean, inverse) = saved
    pixels = x.shape[1] * x.shape[2]
    sum_dy = jnp.sum(dy, (1, 2))  # [B, C]
    sum_dy_n = jnp.sum(dy * (x - mean), (1, 2)) * inverse[:, 0, 0]
    mean_dy, mean_dy_n = (_group_mean(scale * total / pixels, groups) for total in (sum_dy, sum_dy_n))
    dx = dy * (inverse * scale) - (x - mean) * (jnp.square(inverse) * mean_dy_n) - inverse * mean_dy
    return dx.astype(x.dtype), jnp.sum(sum_dy_n, 0).astype(scale.dtype), jnp.sum(sum_dy, 0).astype(scale.dtype)


group_norm.defvjp(_group_norm, _group_norm_gradient)


def _group_mean(means: Float[Array, "B C"], groups: int) -> Float[Array, "B 1 1 C"]:
    """The mean over the channels of a group, for each of its channels."""
    batch, channels = means.shape
    grouped = means.reshape(batch, groups, -1).mean(-1)
    return jnp.repeat(grouped, channels // groups, axis=1)[:, None, None]


def safe_sqrt(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """sqrt with gradient 0 instead of infinity at 0, where a whole channel may be after the GELU of zeros."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
