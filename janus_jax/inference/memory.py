"""Whether what a request holds fits into the memory that is free, told before anything is computed.

Counted are the key-value caches, and of what is computed the largest array: the scores of attention to a prompt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import LlamaConfig
from janus_jax.sharding import row_shares

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of a group of processes, in version 2 and 1: its limit and what it uses.
_GROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def cache_bytes(config: LlamaConfig, dtype: DTypeLike, rows: int, slots: int) -> int:
    """Of the keys and values of `slots` tokens for each of `rows` rows."""
    per_token = 2 * config.depth * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return rows * slots * per_token


def score_bytes(config: LlamaConfig, rows: int, queries: int, keys: int) -> int:
    """Of what one layer computes in float32 where each of `queries` tokens of a row is scored against `keys` others."""
    return 4 * rows * config.num_heads * queries * keys


def parts(rows: int, mesh: Mesh | AbstractMesh | None) -> int:
    """In how many equal parts the devices hold what has rows and heads; a device without a mesh holds everything.

    It has its heads, of its rows or, where these cannot be shared equally, of all.
    """
    if mesh is None:
        return 1
    shares = row_shares(mesh)
    return mesh.shape["tensor"] * (1 if rows % shares else shares)


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that is free on each of the devices; None where neither they nor Linux say so."""
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in each for each in stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    if jax.default_backend() == "cpu" and (_PROC / "meminfo").exists():
        kibibytes = dict(line.split(":") for line in (_PROC / "meminfo").read_text().splitlines())
        available = int(kibibytes["MemAvailable"].split()[0]) * 1024
        return int(min([available, *map(_free_of_group, _own_groups())]))
    return None


def check_fits(
    config: LlamaConfig,
    dtype: DTypeLike,
    caches: Mapping[str, tuple[int, int]],
    scores: Sequence[tuple[int, int, int]],
    mesh: Mesh | None,
) -> None:
    """Raises UserError if more is needed than is free.

    Devices of a CPU have one memory together; any other has its own.

    Args:
        caches: (rows, slots) by what they are for, all of them held together.
        scores: (rows, queries, keys) of attention, one computed after the other.
    """
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.devices.flat)
    copies = len(devices) if devices[0].platform == "cpu" else 1
    sizes = {
        f"key-value caches of {what}": copies * cache_bytes(config, dtype, rows, slots) // parts(rows, mesh)
        for what, (rows, slots) in caches.items()
    }
    sizes["scores of attention"] = max(
        copies * score_bytes(config, rows, *shape) // parts(rows, mesh) for rows, *shape in scores
    )
    free, needed = free_bytes(devices), sum(sizes.values())
    if free is not None and needed > free:
        listed = " + ".join(f"{size / 2**30:.2f} GiB for {what}" for what, size in sizes.items())
        raise UserError(
            f"the request needs {needed / 2**30:.2f} GiB ({listed}), but {free / 2**30:.2f} GiB are free: "
            "ask for fewer prompts, images or new tokens at a time, or a shorter prompt"
        )


def _own_groups() -> Iterator[Path]:
    """Folders of the groups (cgroups) that this process is in, from its own to the outermost one."""
    for line in (_PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2, version 1
            root = _CGROUPS / controllers
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _free_of_group(folder: Path) -> float:
    """What a group's limit leaves; what it keeps of files is given back when it is needed."""
    for limit, used in _GROUP_FILES:
        if (folder / limit).exists() and (text := (folder / limit).read_text().strip()) != "max":
            kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = int(kept["active_file"]) + int(kept["inactive_file"])
            return int(text) - int((folder / used).read_text()) + files
    return math.inf
