"""The loop of image codes over a mesh, without weights or devices: to compile it ahead of time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.inference.decoding import ImageState, image_program, start_images
from janus_jax.inference.padding import Prompts
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import JanusConfig
from janus_jax.models.execution import decoding_execution
from janus_jax.models.params import Params, abstract_params, build, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked, unstacked_path
from janus_jax.sharding import cache_specs, decoding_shardings
from janus_jax.weights.quantization import is_quantized, scale_path


class ImageLoop(NamedTuple):
    """The arguments of `decoding.continue_images`, as shapes with dtypes and shardings."""

    model: Any
    params: Params  # all of the model, also what the loop does not read
    state: ImageState
    keys: jax.ShapeDtypeStruct
    mesh: Mesh

    def lower(self) -> Any:
        """Ready to `compile`."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        number: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)  # the guidance, and the temperature
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
    dtype: DTypeLike = jnp.bfloat16,
    quantization: str | None = None,
) -> ImageLoop:
    """The loop of guided codes of `images` images of one prompt.

    Args:
        mesh: of any devices, also of a topology that is not there.
        prompt_length: tokens, padding included.

    Raises:
        UserError: the mesh does not divide a parameter.
    """
    model: Any = build(config, decoding_execution(dtype, mesh.devices.flat[0].platform, on_mesh=True))
    params = abstract_decoding_params(config, mesh, dtype, quantization)
    row = np.zeros((1, prompt_length), np.int32)
    prompt = Prompts(row, row.astype(np.int8), row + 1, row)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    options = (np.zeros(1, np.int32), keys, jnp.float32(5))
    state: ImageState = start_images.eval_shape(model, params, prompt, prompt, *options, sampling=Sampling.of(1.0))
    prefix, cache = cache_specs(state.prefix, mesh), cache_specs(state.cache, mesh)
    specs = jax.tree.map(lambda _: PartitionSpec(), state)._replace(prefix=prefix, cache=_specs_slots_first(cache))
    state = jax.tree.map(lambda leaf, spec: _placed(leaf, NamedSharding(mesh, spec)), state, specs)
    return ImageLoop(model, params, state, _placed(keys, NamedSharding(mesh, PartitionSpec())), mesh)


def abstract_decoding_params(config: JanusConfig, mesh: Mesh, dtype: DTypeLike, quantization: str | None) -> Params:
    """Shapes, dtypes and shardings of the parameters of a `Pipeline`."""
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


def _specs_slots_first(specs: Any) -> Any:
    """The specs of `decoding.slots_first` of a cache of unrolled layers: [B, K, S, H] -> [S, K, B, H]."""

    def moved(spec: PartitionSpec) -> PartitionSpec:
        rows, heads, slots, head = spec
        return PartitionSpec(slots, heads, rows, head)

    return specs._replace(k=tuple(map(moved, specs.k)), v=tuple(map(moved, specs.v)))


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
