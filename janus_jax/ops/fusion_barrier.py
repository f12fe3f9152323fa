"""Barriers that keep XLA:TPU from fusing elementwise work into the matrix products before and after it.

A product with such work fused into it takes up to 2.5 times as long, which costs much more than writing the array to
memory and reading it again (compiler estimate of the 7B training step, libtpu 0.0.46.3).
"""

import jax
from jaxtyping import Array, Float


def fusion_barrier(x: Float[Array, "*S"], enabled: bool) -> Float[Array, "*S"]:
    """Returns x, which XLA then computes as an array of its own; so is the gradient of x."""
    return jax.lax.optimization_barrier(x) if enabled else x


def gradient_fusion_barrier(x: Float[Array, "*S"], enabled: bool) -> Float[Array, "*S"]:
    """Returns x, of which only the gradient is computed as an array of its own."""
    return _gradient_barrier(x) if enabled else x


@jax.custom_vjp
def _gradient_barrier(x: Array) -> Array:
    return x


_gradient_barrier.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))
