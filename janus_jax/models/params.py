"""From an architecture to a module and its parameters: plain nested dicts of arrays.

The paths of that dict ("llm/decoder/layers/attention/q_proj/kernel") are the contract for checkpoints, sharding,
freezing and conversion. Everything outside `models` uses modules through `bind` and never sees Flax.
"""

import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from janus_jax.models.config import Execution, JanusConfig, JanusFlowConfig, ModelConfig, VAEConfig, VQConfig
from janus_jax.models.initializers import Declared
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.sdxl_vae import VAE
from janus_jax.models.vq import VQModel

Params = dict[str, Any]
MODULES: dict[type, type[nn.Module]] = {
    JanusConfig: Janus,
    JanusFlowConfig: JanusFlow,
    VQConfig: VQModel,
    VAEConfig: VAE,
}


def build(config: ModelConfig, execution: Execution | None = None) -> nn.Module:
    """The module of an architecture. It holds no parameters; call it through `bind`."""
    return MODULES[type(config)](config, execution or Execution())


def bind(model: nn.Module, params: Params) -> Callable[..., Any]:
    """The module as a function: `bind(model, params)(*args, method="name")`."""

    def apply(*args: Any, method: str = "__call__") -> Any:
        return model.apply({"params": params}, *args, method=method)

    return apply


def init_params(
    config: ModelConfig, seed: int, shardings: Params | None = None, given: Mapping[str, Any] | None = None
) -> Params:
    """Fresh float32 parameters, layers stacked; the same bits for a seed on every mesh.

    Args:
        shardings: a sharding per parameter, in the tree of `abstract_params`; None puts all on the default device.
            Each process draws on the host one parameter at a time.
        given: values by path that are known already; smaller ones than declared (embeddings of a smaller vocabulary)
            take the first places and leave the others fresh.
    """
    known = given or {}

    def draw(path: str, declared: Declared) -> jax.Array:
        if path in known and known[path].shape == declared.value.shape:
            values = np.asarray(known[path], np.float32)
        else:
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            values = declared.distribution.draw(rng, declared.value.shape)
            if path in known:
                values[tuple(slice(size) for size in known[path].shape)] = known[path]
        if shardings is None:
            return jax.numpy.asarray(values)
        return jax.make_array_from_callback(values.shape, flat_shardings[path], lambda index: values[index])

    flat_shardings = flatten(shardings) if shardings is not None else {}
    return unflatten({path: draw(path, declared) for path, declared in _declared(config).items()})


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init_params` without any memory."""
    return unflatten({path: declared.value for path, declared in _declared(config).items()})


def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """Path -> a logical axis name (or None) per dimension."""
    return {path: tuple(declared.names) for path, declared in _declared(config).items()}


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b/c": leaf} -> nested dict."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def fingerprint(config: ModelConfig, params: Mapping[str, Any]) -> str:
    """SHA-256 of the architecture and of parameters in host memory: models of the same one compute the same."""
    digest = hashlib.sha256(repr(config).encode())
    for path, values in sorted(flatten(params).items()):
        digest.update(f"{path} {values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.lru_cache(maxsize=32)  # tracing a model takes about half a second
def _declared(config: ModelConfig) -> dict[str, Declared]:
    """Path -> declaration of every parameter, with abstract values."""
    model = build(config)
    declared = jax.eval_shape(lambda: model.init(jax.random.key(0), method="init_all")["params"])
    return flatten(declared)
