"""What fresh parameters are drawn from, and how a module declares a parameter.

A parameter is declared with a distribution and its logical axis names; nothing is drawn while Flax traces a module.
`models.params.init_params` then draws each one with NumPy from a generator keyed by (seed, path). So the same
seed gives the same bits on every mesh, backend and jax version, and no time goes into compiling random numbers.
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
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """float32 values of the given shape."""


@dataclasses.dataclass(frozen=True)
class Constant:
    value: float

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Mean 0; 0.02 is the LLM's and the position embeddings', 1 is torch.nn.Embedding's."""

    std: float

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(self.std)


@dataclasses.dataclass(frozen=True)
class TorchDefault:
    """Uniform in +-1/sqrt(fan_in): kernels and biases of torch Linear and Conv."""

    fan_in: int

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(self.fan_in**-0.5)


@dataclasses.dataclass(frozen=True)
class UnitRows:
    """Random directions: uniform in a cube, rows then l2-normalised (the codebook of LlamaGen)."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        rows = rng.random(shape, np.float32) * 2 - 1
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Declared(nn.Partitioned):
    """A traced parameter together with what it is drawn from; lives only between init and `models.params`."""

    distribution: Any = struct.field(default=None, pytree_node=False)


def declare(distribution: Distribution, axes: Axes) -> Callable[..., Any]:
    """An initializer for `self.param`: shape and logical axes now, values later."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Declared:
        del key
        return Declared(jnp.zeros(shape, dtype), names=axes, distribution=distribution)

    return init
