"""Rectified flow (Liu et al., 2022; JanusFlow, sections 3.1 and 3.4): the path, the loss, and solvers of the equation.

Time t runs from 0 (pure noise) to 1 (data). Letters: B samples, E width of an embedding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

VelocityField = Callable[[Array, Array], Array]  # (z [B, ...], t scalar) -> dz/dt [B, ...]
TIME_SCALE = 1000.0  # the networks are given 1000 t
_LONGEST_PERIOD = 10000.0


def interpolate(
    data: Float[Array, "B ..."], noise: Float[Array, "B ..."], time: Float[Array, " B"]
) -> Float[Array, "B ..."]:
    """z_t = t x + (1 - t) z_0: the straight path from noise to data."""
    time = time.reshape(-1, *(1,) * (data.ndim - 1))
    return time * data + (1 - time) * noise


def flow_loss(
    velocity: Float[Array, "B ..."], data: Float[Array, "B ..."], noise: Float[Array, "B ..."]
) -> Float[Array, " B"]:
    """Mean of |v - (x - z_0)|^2 over each sample, in float32. The target x - z_0 is dz_t/dt of `interpolate`."""
    error = velocity.astype(jnp.float32) - (data.astype(jnp.float32) - noise.astype(jnp.float32))
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def logit_normal_time(
    key: Key[Array, ""], shape: tuple[int, ...], location: float, scale: float
) -> Float[Array, "..."]:
    """Samples times in (0, 1) whose logit is distributed as N(location, scale^2).

    Most of the training then happens near the middle (Stable Diffusion 3: Esser et al., 2024, section 3.1).
    """
    return jax.nn.sigmoid(location + scale * jax.random.normal(key, shape))


def sinusoidal_embedding(time: Float[Array, " B"], width: int) -> Float[Array, "B E"]:
    """Cosines, then sines, of t f_i with f_i = 10000^(-i / (E/2)), in float32; `time` is in [0, `TIME_SCALE`)."""
    half = width // 2
    frequencies = _LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = time[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def euler_step(velocity: VelocityField, z: Array, time: Array, step: Array | float) -> Array:
    """Returns z + h v(z, t). The error of a whole solution is O(h)."""
    return z + step * velocity(z, time)


def heun_step(velocity: VelocityField, z: Array, time: Array, step: Array | float) -> Array:
    """Moves by the mean of the velocities at both ends of an Euler step. Twice the work; the error is O(h^2)."""
    start = velocity(z, time)
    end = velocity(z + step * start, time + step)
    return z + step / 2 * (start + end)


SOLVERS = {"euler": euler_step, "heun": heun_step}


def integrate(
    velocity: VelocityField, noise: Float[Array, "B ..."], num_steps: int | Int[Array, ""], solver: str
) -> Array:
    """Solves dz/dt = v(z, t) from z(0) = noise to z(1) in `num_steps` equal steps; `solver` is a key of `SOLVERS`."""

    def body(index: Array, z: Array) -> Array:
        return SOLVERS[solver](velocity, z, index / num_steps, 1 / num_steps)

    return jax.lax.fori_loop(0, num_steps, body, noise)
