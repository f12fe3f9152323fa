"""The decoding step of a model over a mesh without its weights or devices, to compile it ahead of time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.inference.decoding import ImageState, Sampling, continue_images, start_images
from janus_jax.inference.prompt import Prompts
from janus_jax.inference.quantization import is_quantized, scale_path
from janus_jax.models.config import Execution, JanusConfig
from janus_jax.models.parameters import Params, abstract_params, build, flatten, unflatten
from janus_jax.models.stack import STACKED, unstacked_path
from janus_jax.sharding import cache_specs, decoding_shardings


def lower_image_step(
    config: JanusConfig,
    mesh: Mesh,
    *,
    images: int,
    prompt_length: int,
    dtype: DTypeLike = jnp.bfloat16,
    quantization: str | None = None,
) -> Any:
    """The lowered loop of guided codes of `images` images of one prompt: ready to `compile`.

    Args:
        mesh: of any devices, also of a topology that is not there.
        prompt_length: tokens, padding included.
    """
    model: Any = build(config, Execution(dtype=dtype, scan_layers=False))
    params = abstract_decoding_params(config, mesh, dtype, quantization)
    sampling = Sampling(1.0)
    row = np.zeros((1, prompt_length), np.int32)
    prompt = Prompts(row, row.astype(np.int8), row + 1, row)
    everywhere = NamedSharding(mesh, PartitionSpec())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))

    def start(params: Params, keys: jax.Array) -> ImageState:
        return start_images(
            model, params, prompt, prompt, np.zeros(1, np.int32), keys, jnp.float32(5), sampling=sampling
        )

    state = jax.eval_shape(start, params, keys)
    placed = jax.tree.map(lambda leaf: _placed(leaf, everywhere), state)._replace(
        **{
            name: jax.tree.map(
                lambda leaf, spec: _placed(leaf, NamedSharding(mesh, spec)), cache, cache_specs(cache, mesh)
            )
            for name, cache in (("cache", state.cache), ("prefix", state.prefix))
        }
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    until = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return continue_images.lower(model, params, placed, _placed(keys, everywhere), scalar, until, sampling=sampling)


def abstract_decoding_params(config: JanusConfig, mesh: Mesh, dtype: DTypeLike, quantization: str | None) -> Params:
    """Shapes, dtypes and shardings of the parameters of a `Pipeline`."""
    shardings = decoding_shardings(config, mesh)
    result: dict[str, jax.ShapeDtypeStruct] = {}
    for stacked, leaf in flatten(abstract_params(config)).items():
        layers = leaf.shape[0] if STACKED in stacked.split("/") else None
        shape = leaf.shape if layers is None else leaf.shape[1:]
        paths = [stacked] if layers is None else [unstacked_path(stacked, layer) for layer in range(layers)]
        for path in paths:
            small = quantization is not None and is_quantized(path)
            result[path] = jax.ShapeDtypeStruct(shape, jnp.int8 if small else dtype, sharding=shardings[path])
            if small:
                scales = scale_path(path)
                result[scales] = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=shardings[scales])
    return unflatten(result)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
