"""The mesh of devices, the table from logical axes to mesh axes, and shardings of parameters, caches and batches.

Mesh axes: `data` (replicas, which may be on several slices), `fsdp` (parameters and rows are sharded), `tensor` (heads,
mlp and vocabulary are sharded). Axes that do not divide or collide are errors that name the parameter; nothing is
replicated silently.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, ModelConfig
from janus_jax.models.layers import SCALE
from janus_jax.models.llama import KVCache
from janus_jax.models.lora import RANK, Lora
from janus_jax.models.params import abstract_params, flatten, logical_axes, unflatten
from janus_jax.models.scan_layers import STACKED, is_stacked, unstacked_path

MESH_AXES = ("data", "fsdp", "tensor")
AUTO = "auto"  # a size of a mesh axis that `auto_mesh` chooses
ROW_AXES = ("data", "fsdp")  # mesh axes over which the rows of a batch are divided
BATCH_SPEC = PartitionSpec(ROW_AXES)
LOGICAL_TO_MESH: Mapping[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "codes": "tensor",
    # Rows and columns of a table in which tokens are looked up. The gradient of a lookup is scattered by rows.
    "token_rows": "fsdp",
    "token_columns": "tensor",
    "conv_in": "fsdp",
    "conv_out": "fsdp",
    "lora_rank": None,  # over `fsdp` where the other dimension is not and the rank is a multiple: `_partition_spec`
}


def auto_mesh(
    sizes: Mapping[str, int | str], devices: Sequence[Any], rows: int, kv_heads: int | None
) -> dict[str, int]:
    """Sizes of the mesh axes, those that are "auto" chosen.

    `data` is the number of slices. `tensor` is 1 where every device can have a row, and otherwise the smallest size
    with which the rows can be shared. What remains is for `fsdp`, whose size is -1 by default.

    Args:
        rows: rows of a step on all devices together.
        kv_heads: number of key-value heads, which `tensor` must divide; None: the model has none, and no `tensor`.

    Raises:
        UserError: a size is neither a whole number nor "auto".
    """
    for axis in MESH_AXES:
        if sizes[axis] != AUTO and type(sizes[axis]) is not int:
            raise UserError(f"mesh.{axis}={sizes[axis]!r}, expected a whole number or {AUTO!r}")
    known = {axis: int(size) for axis, size in sizes.items() if size != AUTO}
    chosen = {"data": count_slices(devices), "tensor": 1, "fsdp": -1} | known
    if sizes["tensor"] == AUTO and chosen["fsdp"] == -1 and rows < len(devices):
        data = max(chosen["data"], 1)
        divisors = (size for size in range(1, (kv_heads or 1) + 1) if (kv_heads or 1) % size == 0)
        shares = {size: len(devices) // size for size in divisors if len(devices) % (size * data) == 0}
        chosen["tensor"] = next((size for size, share in shares.items() if rows % share == 0), 1)
    return {axis: chosen[axis] for axis in MESH_AXES}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the given devices, or of those of all processes.

    Each slice of a multi-slice TPU has its own part of `data`, so that only this axis crosses the network between
    slices.

    Args:
        sizes: size of each mesh axis. One of them may be -1: it takes all devices that the others leave.

    Raises:
        UserError: the product of the sizes is not the number of devices, or the slices cannot share `data` equally.
    """
    shape = [int(sizes[axis]) for axis in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in shape if size != -1)
    sizes_exist = shape.count(-1) <= 1 and all(size == -1 or size >= 1 for size in shape)
    if not sizes_exist or len(devices) % known or (-1 not in shape and known != len(devices)):
        wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise UserError(f"{wanted} does not fit {len(devices)} devices")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    slices = count_slices(devices)
    if shape[0] % slices:
        raise UserError(f"mesh.data={shape[0]} is not a multiple of the {slices} slices that the devices are in")
    return Mesh(np.array(sorted(devices, key=_slice)).reshape(shape), MESH_AXES)


def count_slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices that the devices are in."""
    return len({_slice(device) for device in devices})


def _slice(device: Any) -> int:
    """Number of the TPU slice. A GPU's `slice_index` is that of its NVLink domain, which all mesh axes may cross."""
    return 0 if device.platform == "gpu" else getattr(device, "slice_index", 0)


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Sharding of the rows of a batch. Raises UserError if the devices cannot have equally many rows."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shares:
        factors = f"mesh.data={mesh.shape['data']} times mesh.fsdp={mesh.shape['fsdp']}"
        raise UserError(f"train.batch_size={batch_size} is not divisible by {factors}")
    return NamedSharding(mesh, BATCH_SPEC)


def row_shares(mesh: Mesh | AbstractMesh) -> int:
    """Number of equal parts into which the mesh divides the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def rows_of_process(rows: NamedSharding, batch_size: int) -> tuple[int, int]:
    """(i, n): this process reads the i-th of n equal parts of the rows of a batch. Several may read the same part.

    Raises UserError if the devices of this process do not have such a part.
    """
    indices = rows.addressable_devices_indices_map((batch_size,)).values()
    spans = [index[0].indices(batch_size)[:2] for index in indices if index is not None]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    count = last - first
    if batch_size % count or first % count or count != len({row for span in spans for row in range(*span)}):
        raise UserError(f"mesh {dict(rows.mesh.shape)}: a process has rows {sorted(set(spans))} of {batch_size}")
    return first // count, batch_size // count


def param_shardings(config: ModelConfig, mesh: Mesh, lora: Lora | None = None) -> dict[str, Any]:
    """The sharding of each parameter, in the tree of `init_params`. Adapters are divided as their matrices are."""
    shapes = flatten(abstract_params(config, lora))
    axes = logical_axes(config, lora)
    specs = {path: _partition_spec(path, shapes[path].shape, axes[path], mesh) for path in shapes}
    return unflatten({path: NamedSharding(mesh, spec) for path, spec in specs.items()})


def local_bytes(tree: Any) -> int:
    """Bytes of the shards that one device has of a tree of arrays."""

    def elements(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)  # arrays of NumPy and most abstract ones have none
        return math.prod(leaf.shape if sharding is None else sharding.shard_shape(leaf.shape))

    return sum(elements(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def spread_cache(cache: KVCache) -> KVCache:
    """Divides a cache inside a compiled program: heads over `tensor`, rows over `data` and `fsdp`.

    The mesh is that of `jax.set_mesh`; without one the cache stays as it is. If the devices cannot share the rows
    equally, which happens for a few prompts before many images, every device has all rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    return jax.tree.map(jax.lax.with_sharding_constraint, cache, cache_specs(cache, mesh))


def to_host(x: jax.Array) -> np.ndarray:
    """The whole value of an array, in each of the processes that hold parts of it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def to_devices(values: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process holds whole -> a global array whose parts lie on their devices."""
    whole = np.asarray(values)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def spread_rows(x: jax.Array) -> jax.Array:
    """Divides the rows of an array over `data` and `fsdp`, in the same way as `spread_cache`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % row_shares(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH_SPEC)


def cache_specs(cache: KVCache, mesh: Mesh | AbstractMesh) -> Any:
    """A `KVCache` of PartitionSpecs, for a cache whose layers are unrolled or stacked."""
    indivisible = cache.segment_ids.shape[0] % row_shares(mesh)
    rows: Any = PartitionSpec(None if indivisible else ROW_AXES)
    layer = PartitionSpec(*rows, "tensor", None, None)
    values: Any = tuple(layer for _ in cache.k) if isinstance(cache.k, tuple) else PartitionSpec(None, *layer)
    nowhere: Any = PartitionSpec()
    return cache._replace(k=values, v=values, positions=rows, segment_ids=rows, length=nowhere)


def check_heads(config: FamilyConfig, mesh: Mesh) -> None:
    """Raises UserError if `tensor` does not divide the key-value heads, and so the query heads."""
    heads, tensor = config.llama.num_kv_heads, mesh.shape["tensor"]
    if heads % tensor:
        raise UserError(f"mesh.tensor={tensor} does not divide llama.num_kv_heads={heads}")


def decoding_shardings(config: FamilyConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Path -> sharding of each parameter with unstacked layers, and of the scales that an int8 weight matrix has.

    Raises UserError if `tensor` does not divide the heads of the caches.
    """
    check_heads(config, mesh)
    result: dict[str, NamedSharding] = {}
    shapes = flatten(abstract_params(config))
    for path, sharding in flatten(param_shardings(config, mesh)).items():
        stacked = is_stacked(path)
        of_layer = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])) if stacked else sharding
        paths = [unstacked_path(path, layer) for layer in range(shapes[path].shape[0])] if stacked else [path]
        for layer_path in paths:
            result[layer_path] = of_layer
            if layer_path.endswith("/kernel"):
                scale = layer_path.removesuffix("kernel") + SCALE
                result[scale] = NamedSharding(mesh, PartitionSpec(*of_layer.spec[-1:]))
    return result


class GatheredWeights:
    """Gathers whole weights from the shards of one device, inside `jax.shard_map` over `ROW_AXES`.

    A weight is cast to the compute dtype before it is sent, unless it is int8 or in the module `exact`, which is
    computed in the dtype of its parameters. The transpose of gathering is a reduce-scatter: the gradient of a shard is
    the sum over the devices of `fsdp`, and only over these. On v5e 2x2 and 2x4 the TPU compiler keeps the
    reduce-scatter, or names it `all-reduce-scatter`. On tori with several longer rings (v5e 4x4, 8x8, 16x16, v6e 8x8,
    v5p 4x4x4) libtpu 0.0.46.3 replaces it by one all-reduce over all rings and a slice of the result. One
    reduce-scatter per ring was predicted to be slower on v5e 4x4 (`launch.compile_check`).
    """

    def __init__(self, dtype: DTypeLike, specs: Mapping[str, PartitionSpec], exact: str = ""):
        self._dtype, self._exact = dtype, exact
        self._dimensions = {path: spec.index("fsdp") for path, spec in specs.items() if "fsdp" in spec}

    def __call__(self, path: tuple[str, ...], shards: dict[str, Any]) -> dict[str, Any]:
        """Gathers the subtree at `path`. Inside stacked layers it is that of one layer."""
        sliced = int(STACKED in path)

        def whole(name: str, shard: jax.Array) -> jax.Array:
            full_name = "/".join((*path, name))
            dimension = self._dimensions.get(full_name)
            if dimension is None:
                return shard
            # The sharded dimension leads while the weight is sent. The TPU compiler scatters a reduction only along the
            # major dimension, and makes an all-reduce for any other (libtpu 0.0.46.3). A transpose next to a product is
            # only a choice of layout, not a copy.
            as_it_is = shard.dtype == jnp.int8 or full_name.split("/")[0] == self._exact
            sent = shard if as_it_is else shard.astype(self._dtype)
            leading = jnp.moveaxis(sent, dimension - sliced, 0)
            return jnp.moveaxis(jax.lax.all_gather(leading, "fsdp", tiled=True), 0, dimension - sliced)

        return unflatten({name: whole(name, shard) for name, shard in flatten(shards).items()})

    def outside_stacks(self, shards: dict[str, Any]) -> dict[str, Any]:
        """Gathers all but the stacked layers, which gather one layer at a time (`models.scan_layers`)."""
        flat = flatten(shards)
        stacked = {path: leaf for path, leaf in flat.items() if is_stacked(path)}
        others = {path: leaf for path, leaf in flat.items() if path not in stacked}
        return unflatten(flatten(self((), unflatten(others))) | stacked)


def _partition_spec(path: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
    mesh_axes = [LOGICAL_TO_MESH[axis] if axis else None for axis in axes]
    if RANK in axes and "fsdp" not in mesh_axes and shape[axes.index(RANK)] % mesh.shape["fsdp"] == 0:
        mesh_axes[axes.index(RANK)] = "fsdp"
    used = [axis for axis in mesh_axes if axis]
    if len(set(used)) != len(used):
        raise UserError(f"{path}: logical axes {axes} put the same mesh axis on two dimensions: {mesh_axes}")
    for size, axis in zip(shape, mesh_axes, strict=True):
        if axis and size % mesh.shape[axis]:
            raise UserError(f"{path}: dimension {size} of {shape} is not divisible by mesh.{axis}={mesh.shape[axis]}")
    return PartitionSpec(*mesh_axes)
