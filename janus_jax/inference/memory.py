"""Whether the key-value caches of a request fit into the memory that is free, told before anything is computed."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import LlamaConfig

_MEMINFO = Path("/proc/meminfo")


def cache_bytes(config: LlamaConfig, dtype: DTypeLike, rows: int, slots: int) -> int:
    """Of the keys and values of `slots` tokens for each of `rows` rows."""
    per_token = 2 * config.depth * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return rows * slots * per_token


def free_bytes() -> int | None:
    """Memory that is free on the first device; None where neither the device nor Linux says so."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if jax.default_backend() == "cpu" and _MEMINFO.exists():
        kibibytes = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(kibibytes["MemAvailable"].split()[0]) * 1024
    return None


def check_fits(caches: Mapping[str, int]) -> None:
    """Raises UserError if these bytes, by what they are for, are together more than is free."""
    free, needed = free_bytes(), sum(caches.values())
    if free is not None and needed > free:
        parts = " + ".join(f"{size / 2**30:.2f} GiB for {what}" for what, size in caches.items())
        raise UserError(
            f"the key-value cache needs {needed / 2**30:.2f} GiB ({parts}), but {free / 2**30:.2f} GiB are free: "
            "ask for fewer prompts, images or new tokens at a time"
        )
