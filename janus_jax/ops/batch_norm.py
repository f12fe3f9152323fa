"""Batch normalisation (Ioffe and Szegedy, 2015) as pure functions: the running statistics go in and come out.

Letters: B images, H W rows and columns, C channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOMENTUM = 0.1  # share of a new batch in the running statistics, as in PyTorch


class Statistics(NamedTuple):
    """Mean and variance of each channel, float32 [C]."""

    mean: Array
    variance: Array


def fresh_statistics(channels: int) -> Statistics:
    """The running statistics before the first batch: mean 0 and variance 1."""
    return Statistics(jnp.zeros(channels), jnp.ones(channels))


def batch_statistics(x: Float[Array, "B H W C"], axes: tuple[str, ...] = ()) -> Statistics:
    """Mean and biased variance over all images and positions, in float32.

    Args:
        axes: mesh axes over which the images are divided. Inside `jax.shard_map` the statistics are then those of the
            images of all devices, which must have equally many. Without axes they are those of this device.
    """
    x = x.astype(jnp.float32)
    mean = _over_devices(jnp.mean(x, axis=(0, 1, 2)), axes)
    return Statistics(mean, _over_devices(jnp.mean(jnp.square(x - mean), axis=(0, 1, 2)), axes))


def normalize_channels(
    x: Float[Array, "B H W C"], statistics: Statistics, scale: Float[Array, " C"], bias: Float[Array, " C"], eps: float
) -> Float[Array, "B H W C"]:
    """scale * (x - mean) / sqrt(variance + eps) + bias, computed in float32 and returned in the dtype of `x`."""
    factor = scale * jax.lax.rsqrt(statistics.variance + eps)
    return ((x.astype(jnp.float32) - statistics.mean) * factor + bias).astype(x.dtype)


def unbiased(statistics: Statistics, count: int) -> Statistics:
    """The same with the unbiased variance of `count` values, which is what PyTorch keeps as running variance."""
    return statistics._replace(variance=statistics.variance * (count / (count - 1)))


def update_running(running: Statistics, batch: Statistics) -> Statistics:
    """Moves the running statistics by `MOMENTUM` towards those of a batch, which are `unbiased`."""
    return jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, running, batch)


def _over_devices(value: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.pmean(value, axes) if axes else value
