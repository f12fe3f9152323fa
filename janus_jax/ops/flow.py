"""Rectified flow (Liu et al., 2022; JanusFlow, sections 3.1 and 3.4): its path, its loss, and solving its equation.

Time runs from 0, pure noise, to 1, data. Letters: B samples, E width of an embedding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

VelocityField = Callable[[Array, Array], Array]  # (z [B, ...], t scalar) -> dz/dt [B, ...]
TIME_SCALE = 1000.0  # networks are given 1000 t
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
    """|v - (x - z_0)|^2, the mean over each sample, in float32: dz_t/dt of `interpolate` is the target."""
    error = velocity.astype(jnp.float32) - (data.astype(jnp.float32) - noise.astype(jnp.float32))
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def logit_normal_time(
    key: Key[Array, ""], shape: tuple[int, ...], location: float, scale: float
) -> Float[Array, "..."]:
    """Times in (0, 1) whose logit is N(location, scale^2): most of the training near the middle, as in
    Stable Diffusion 3 (Esser et al., 2024, section 3.1)."""
    return jax.nn.sigmoid(location + scale * jax.random.normal(key, shape))


def sinusoidal_embedding(time: Float[Array, " B"], width: int) -> Float[Array, "B E"]:
    """cos, then sin, of t f_i with f_i = 10000^(-i / (E/2)), float32; `time` in [0, `TIME_SCALE`)."""
    half = width // 2
    frequencies = _LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = time[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def euler_step(velocity: VelocityField, z: Array, time: Array, step: float) -> Array:
    """z + h v(z, t); the error of a whole solution is O(h)."""
    return z + step * velocity(z, time)


def heun_step(velocity: VelocityField, z: Array, time: Array, step: float) -> Array:
    """The mean of the velocities at both ends of an Euler step; twice the work, the error is O(h^2)."""
    start = velocity(z, time)
    end = velocity(z + step * start, time + step)
    return z + step / 2 * (start + end)


SOLVERS = {"euler": euler_step, "heun": heun_step}


def integrate(velocity: VelocityField, noise: Float[Array, "B ..."], num_steps: int, solver: str) -> Array:
    """Solves dz/dt = v(z, t) from z(0) = noise to z(1) in equal steps; `solver` is a key of `SOLVERS`."""
    step = 1 / num_steps

    def body(z: Array, index: Array) -> tuple[Array, None]:
        return SOLVERS[solver](velocity, z, index / num_steps, step), None

    return jax.lax.scan(body, noise, jnp.arange(num_steps))[0]
