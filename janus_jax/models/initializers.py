"""Distributions of fresh parameters, and how a module declares a parameter.

A parameter is declared with its distribution and logical axis names. While Flax traces a module nothing is sampled;
`models.params.init_params` then samples each parameter with NumPy, from a generator keyed by (seed, path). So a seed
gives the same bits on every mesh, backend and version of JAX, and no random numbers have to be compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct

Axes = tuple[str | None, ...]


class Distribution(Protocol):
    """What the values of a fresh parameter are sampled from."""

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """float32 values of the given shape."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal distribution. A standard deviation of 0.02 is that of the LLM, 1 is that of torch.nn.Embedding."""

    std: float
    mean: float = 0.0

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(self.std) + np.float32(self.mean)


@dataclasses.dataclass(frozen=True)
class TorchDefault:
    """Uniform in +-1/sqrt(fan_in), as PyTorch initialises weights and biases of Linear and Conv layers."""

    fan_in: int

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(self.fan_in**-0.5)


@dataclasses.dataclass(frozen=True)
class UnitRows:
    """Uniform in a cube, with rows that are then l2-normalised, as the codebook of LlamaGen."""

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        rows = rng.random(shape, np.float32) * 2 - 1
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Declared(nn.Partitioned):
    """A traced parameter with its distribution. It exists only between Flax's init and `models.params`."""

    distribution: Any = struct.field(default=None, pytree_node=False)


def declare(distribution: Distribution, axes: Axes) -> Callable[..., Any]:
    """An initializer for `self.param` that records shape, axes and distribution, and leaves the values for later."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Declared:
        del key
        return Declared(jnp.zeros(shape, dtype), names=axes, distribution=distribution)

    return init
