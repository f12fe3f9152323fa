"""Sizes of key-value caches, and the check that a request fits into the free memory before anything is computed.

The check counts the key-value caches and the largest temporary array: the attention scores of a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from janus_jax.errors import UserError
from janus_jax.free_memory import free_bytes
from janus_jax.models.config import LlamaConfig
from janus_jax.models.execution import Execution
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.sharding import cache_specs, row_shares, to_devices


class NotEnoughMemoryError(UserError):
    """A request needs more memory than is free."""


def abstract_cache(
    config: LlamaConfig, execution: Execution, rows: int, slots: int, mesh: Mesh | AbstractMesh | None = None
) -> KVCache:
    """Shapes and dtypes of an empty cache, with shardings on a mesh. Every size of a cache is computed from it."""
    cache = jax.eval_shape(lambda: init_cache(config, execution, rows, slots))
    if mesh is None:
        return cache

    def place(leaf: jax.ShapeDtypeStruct, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, cache, cache_specs(cache, mesh))


def empty_cache(config: LlamaConfig, execution: Execution, rows: int, slots: int, mesh: Mesh | None) -> KVCache:
    """A cache in which nothing is written. Unlike `init_cache` it compiles no program."""

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = np.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(values) if leaf.sharding is None else to_devices(values, leaf.sharding)

    return jax.tree.map(zeros, abstract_cache(config, execution, rows, slots, mesh))


def cache_bytes(
    config: LlamaConfig, execution: Execution, rows: int, slots: int, mesh: Mesh | AbstractMesh | None = None
) -> int:
    """Bytes that one device holds of the keys and values of `slots` tokens for each of `rows` rows."""
    cache = abstract_cache(config, execution, rows, slots, mesh)
    return sum(_local_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.k, cache.v)))


def score_bytes(
    config: LlamaConfig, rows: int, queries: int, keys: int, mesh: Mesh | AbstractMesh | None = None
) -> int:
    """Bytes that one device holds of the float32 attention scores of one layer, [rows, heads, queries, keys]."""
    return 4 * rows * config.num_heads * queries * keys // _parts(rows, mesh)


def check_fits(
    config: LlamaConfig,
    execution: Execution,
    caches: Mapping[str, tuple[int, int]],
    scores: Sequence[tuple[int, int, int]],
    mesh: Mesh | None,
) -> None:
    """Raises NotEnoughMemoryError if a request needs more memory than is free.

    All devices of a CPU share one memory; every other device has its own. Processes that share a mesh decide alike, by
    the one with the least memory: otherwise some of them would start a program and wait for the others for ever.

    Args:
        caches: (rows, slots) of each cache by what it is for; all caches are held at the same time.
        scores: (rows, queries, keys) of attention scores, of which one is held at a time.
    """
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    copies = len(devices) if devices[0].platform == "cpu" else 1
    sizes = {
        f"key-value caches of {what}": copies * cache_bytes(config, execution, rows, slots, mesh)
        for what, (rows, slots) in caches.items()
        if rows * slots
    }
    sizes["scores of attention"] = max(copies * score_bytes(config, *shape, mesh) for shape in scores)
    free: float | None = free_bytes(devices)
    free, needed = math.inf if free is None else free, sum(sizes.values())
    if mesh is not None and mesh.is_multi_process:
        free_and_needed = multihost_utils.process_allgather(np.array([free, needed], np.float32))  # [processes, 2]
        free, needed = free_and_needed[:, 0].min(), free_and_needed[:, 1].max()
    if needed > free:
        listed = " + ".join(f"{size / 2**30:.2f} GiB for {what}" for what, size in sizes.items())
        raise NotEnoughMemoryError(
            f"the request needs {needed / 2**30:.2f} GiB ({listed}), but {free / 2**30:.2f} GiB are free: "
            "ask for fewer prompts, images or new tokens at a time, or a shorter prompt"
        )


def _local_size(leaf: jax.ShapeDtypeStruct) -> int:
    """Number of elements of an abstract array that one device holds."""
    return math.prod(leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape))


def _parts(rows: int, mesh: Mesh | AbstractMesh | None) -> int:
    """Number of equal parts into which the devices divide an array of rows and heads.

    Each device holds its heads of its rows. If the rows cannot be shared equally, it holds its heads of all rows.
    """
    if mesh is None:
        return 1
    shares = row_shares(mesh)
    return mesh.shape["tensor"] * (1 if rows % shares else shares)
