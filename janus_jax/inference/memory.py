"""Whether the key-value caches of a request fit into the memory that is free, told before anything is computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import LlamaConfig
from janus_jax.sharding import row_shares

_MEMINFO = Path("/proc/meminfo")


def cache_bytes(config: LlamaConfig, dtype: DTypeLike, rows: int, slots: int) -> int:
    """Of the keys and values of `slots` tokens for each of `rows` rows."""
    per_token = 2 * config.depth * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return rows * slots * per_token


def held_bytes(config: LlamaConfig, dtype: DTypeLike, rows: int, slots: int, mesh: Mesh | AbstractMesh | None) -> int:
    """What one device holds of `cache_bytes`: its heads, of its rows or, where these cannot be shared equally, of all.

    Without a mesh everything.
    """
    parts = 1
    if mesh is not None:
        shares = row_shares(mesh)
        parts = mesh.shape["tensor"] * (1 if rows % shares else shares)
    return cache_bytes(config, dtype, rows, slots) // parts


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that is free on each of the devices; None where neither they nor Linux say so."""
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in each for each in stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    if jax.default_backend() == "cpu" and _MEMINFO.exists():
        kibibytes = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(kibibytes["MemAvailable"].split()[0]) * 1024
    return None


def check_fits(config: LlamaConfig, dtype: DTypeLike, caches: Mapping[str, tuple[int, int]], mesh: Mesh | None) -> None:
    """Raises UserError if caches of these (rows, slots), by what they are for, are together more than is free.

    Devices of a CPU have one memory together; any other has its own.
    """
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.devices.flat)
    copies = len(devices) if devices[0].platform == "cpu" else 1
    sizes = {what: copies * held_bytes(config, dtype, *shape, mesh) for what, shape in caches.items()}
    free, needed = free_bytes(devices), sum(sizes.values())
    if free is not None and needed > free:
        parts = " + ".join(f"{size / 2**30:.2f} GiB for {what}" for what, size in sizes.items())
        raise UserError(
            f"the key-value cache needs {needed / 2**30:.2f} GiB ({parts}), but {free / 2**30:.2f} GiB are free: "
            "ask for fewer prompts, images or new tokens at a time"
        )
