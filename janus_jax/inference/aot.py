"""The loop over image codes on a mesh, without weights or devices: for compiling it ahead of time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.inference.decode_image import ImageState, PromptState, image_program, slots_first, start_images
from janus_jax.inference.memory import abstract_cache
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import JanusConfig
from janus_jax.models.execution import Execution, decoding_execution
from janus_jax.models.llama import KVCache
from janus_jax.models.params import Params, abstract_params, build, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked, unstacked_path
from janus_jax.sharding import decoding_shardings
from janus_jax.weights.quantization import is_quantized, scale_path


class ImageLoop(NamedTuple):
    """The arguments of `decode_image.continue_images`, as shapes with dtypes and shardings."""

    model: Any
    params: Params  # all parameters of the model, including those that the loop does not read
    state: ImageState
    keys: jax.ShapeDtypeStruct
    mesh: Mesh

    def lower(self) -> Any:
        """The lowered program, which can be compiled."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        number: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)  # guidance weight, and temperature
        until = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return image_program(self.mesh.devices.flat[0].platform).lower(
                self.model, self.params, self.state, self.keys, number, until, sampling=Sampling(number)
            )


def abstract_image_loop(
    config: JanusConfig,
    mesh: Mesh,
    *,
    images: int,
    prompt_length: int,
    prompts: int = 1,
    window: int = 1,
    dtype: DTypeLike = jnp.bfloat16,
    quantization: str | None = None,
) -> ImageLoop:
    """The loop that generates `images` images with guidance, the same number of each of `prompts` prompts.

    Args:
        mesh: of any devices; those of a topology that is not attached are enough.
        prompt_length: number of tokens of each prompt, padding included.
        window: codes of an image that a pass reads; see `code_windows`.

    Raises:
        UserError: the mesh does not divide a parameter.
    """
    model: Any = build(config, decoding_execution(dtype, mesh.devices.flat[0].platform, on_mesh=True))
    params = abstract_decoding_params(config, mesh, dtype, quantization)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    hidden = jax.ShapeDtypeStruct((2 * prompts, config.llama.width), dtype)
    read = PromptState(hidden, abstract_cache(config.llama, model.execution, 2 * prompts, prompt_length))
    state: ImageState = start_images.eval_shape(
        model, params, read, np.zeros(prompts, np.int32), keys, jnp.float32(5), sampling=Sampling.of(1.0), window=window
    )
    # Both halves of the guidance: 2 rows of each prompt, and 2 rows of codes per image.
    prefix = abstract_cache(config.llama, model.execution, 2 * prompts, prompt_length, mesh)
    cache = abstract_cache(config.llama, model.execution, 2 * images, config.image_tokens + window - 1, mesh)
    state = ImageState(
        step=replicated(state.step, mesh),
        codes=replicated(state.codes, mesh),
        cache=_slots_first(cache, model.execution),
        prefix=prefix,
        ahead=None if state.ahead is None else replicated(state.ahead, mesh),
        passes=None if state.passes is None else replicated(state.passes, mesh),
    )
    return ImageLoop(model, params, state, replicated(keys, mesh), mesh)


def abstract_decoding_params(config: JanusConfig, mesh: Mesh, dtype: DTypeLike, quantization: str | None) -> Params:
    """Shapes, dtypes and shardings of the parameters of an engine."""
    shardings = decoding_shardings(config, mesh)
    result: dict[str, jax.ShapeDtypeStruct] = {}
    for stacked, leaf in flatten(abstract_params(config)).items():
        layers = leaf.shape[0] if is_stacked(stacked) else None
        shape = leaf.shape if layers is None else leaf.shape[1:]
        paths = [stacked] if layers is None else [unstacked_path(stacked, layer) for layer in range(layers)]
        for path in paths:
            small = quantization is not None and is_quantized(path)
            result[path] = jax.ShapeDtypeStruct(shape, jnp.int8 if small else dtype, sharding=shardings[path])
            if small:
                scales = scale_path(path)
                result[scales] = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=shardings[scales])
    return unflatten(result)


def replicated(leaf: Any, mesh: Mesh) -> Any:
    """The shape of an array that every device holds whole."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _slots_first(cache: KVCache, execution: Execution) -> KVCache:
    """`decode_image.slots_first` of the shapes and shardings of a cache of unrolled layers."""
    reordered = jax.eval_shape(lambda cache: slots_first(cache, execution), cache)

    def place(leaf: jax.ShapeDtypeStruct, before: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        rows, heads, slots, head = before.sharding.spec
        sharding = NamedSharding(before.sharding.mesh, PartitionSpec(slots, heads, rows, head))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    k, v = jax.tree.map(place, (reordered.k, reordered.v), (cache.k, cache.v))
    return cache._replace(k=k, v=v)
