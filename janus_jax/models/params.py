"""Makes the module of an architecture and its parameters, which are plain nested dicts of arrays.

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

from janus_jax.models.clip import Clip
from janus_jax.models.config import (
    AnyConfig,
    JanusConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    LPIPSConfig,
    PatchDiscriminatorConfig,
    SemanticTokenizerConfig,
    SiglipConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.models.execution import Execution
from janus_jax.models.inception import Inception
from janus_jax.models.initializers import Declared
from janus_jax.models.janus import Janus
from janus_jax.models.janus_variant import JanusVariant
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.lora import Lora, adapt
from janus_jax.models.lpips import LPIPS
from janus_jax.models.mask2former import Mask2Former
from janus_jax.models.metric_config import ClipConfig, InceptionConfig, Mask2FormerConfig
from janus_jax.models.patch_discriminator import PatchDiscriminator
from janus_jax.models.sdxl_vae import VAE
from janus_jax.models.semantic_tokenizer import SemanticTokenizer
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQModel

Params = dict[str, Any]
MODULES: dict[type, type[nn.Module]] = {
    JanusConfig: Janus,
    JanusVariantConfig: JanusVariant,
    JanusFlowConfig: JanusFlow,
    VQConfig: VQModel,
    SemanticTokenizerConfig: SemanticTokenizer,
    VAEConfig: VAE,
    ClipConfig: Clip,
    InceptionConfig: Inception,
    Mask2FormerConfig: Mask2Former,
    PatchDiscriminatorConfig: PatchDiscriminator,
    LPIPSConfig: LPIPS,
    SiglipConfig: Siglip,
}


def build(config: AnyConfig, execution: Execution | None = None) -> nn.Module:
    """The module of an architecture. It holds no parameters; call it through `bind`."""
    return MODULES[type(config)](config, execution or Execution())


def bind(model: nn.Module, params: Params) -> Callable[..., Any]:
    """The module as a function: `bind(model, params)(*args, method="name")`."""

    def apply(*args: Any, method: str = "__call__") -> Any:
        return model.apply({"params": params}, *args, method=method)

    return apply


def init_params(
    config: AnyConfig,
    seed: int,
    shardings: Params | None = None,
    known: Mapping[str, Any] | None = None,
    lora: Lora | None = None,
) -> Params:
    """Fresh float32 parameters with stacked layers; a seed gives the same bits on every mesh.

    Args:
        shardings: sharding of each parameter, in the tree of `abstract_params`; None puts all on the default device.
            Each process samples all parameters on the host, one at a time.
        known: values that are known already, by path. Arrays smaller than declared, such as the embeddings of a smaller
            vocabulary, replace the first rows and columns and leave the others fresh.
        lora: adds adapters. Frozen parameters, which must be known, then have the dtypes that it says.
    """
    known = known or {}

    def fresh(path: str, declared: Declared) -> jax.Array:
        if path in known and known[path].shape == declared.value.shape:
            values = np.asarray(known[path], declared.value.dtype)
        else:
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            values = declared.distribution.sample(rng, declared.value.shape)
            if path in known:
                values[tuple(slice(size) for size in known[path].shape)] = known[path]
        if shardings is None:
            return jax.numpy.asarray(values)
        return jax.make_array_from_callback(values.shape, flat_shardings[path], lambda index: values[index])

    flat_shardings = flatten(shardings) if shardings is not None else {}
    return unflatten({path: fresh(path, declared) for path, declared in _declared(config, lora).items()})


def fresh_slice(config: AnyConfig, seed: int, path: str, layer: int | None) -> np.ndarray:
    """Fresh float32 values of one parameter, or of one layer of a stacked one, without sampling the whole parameter.

    They have the distribution of `init_params`, but are other values.
    """
    declared = _declared(config, None)[path]
    rng = np.random.default_rng([seed, zlib.crc32(path.encode()), 0 if layer is None else layer + 1])
    return declared.distribution.sample(rng, declared.value.shape if layer is None else declared.value.shape[1:])


def abstract_params(config: AnyConfig, lora: Lora | None = None) -> Params:
    """Shapes and dtypes of the arrays of `init_params`, without allocating them."""
    return unflatten({path: declared.value for path, declared in _declared(config, lora).items()})


def logical_axes(config: AnyConfig, lora: Lora | None = None) -> dict[str, tuple[str | None, ...]]:
    """Path -> logical axis name, or None, of each dimension."""
    return {path: tuple(declared.names) for path, declared in _declared(config, lora).items()}


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b/c": leaf} -> nested dict."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def fingerprint(config: AnyConfig, params: Mapping[str, Any]) -> str:
    """SHA-256 of the architecture and of parameters in host memory. Models with the same one compute the same."""
    digest = hashlib.sha256(repr(config).encode())
    for path, values in sorted(flatten(params).items()):
        digest.update(f"{path} {values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.cache  # tracing a model of 7B takes seconds
def _declared(config: AnyConfig, lora: Lora | None) -> Mapping[str, Declared]:
    """Path -> declaration of each parameter, with abstract values."""
    if lora is not None:
        return adapt(_declared(config, None), lora)
    model = build(config)
    declared = jax.eval_shape(lambda: model.init(jax.random.key(0), method="init_all")["params"])
    return flatten(declared)
