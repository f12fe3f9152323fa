"""What a device holds of a cache, in numbers and as the caches are really divided."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from tiny_runs import MICRO_JANUS

from janus_jax.errors import UserError
from janus_jax.inference.memory import check_fits, held_bytes
from janus_jax.models.config import Execution
from janus_jax.models.llama import init_cache
from janus_jax.sharding import MESH_AXES, cache_specs

CONFIG = dataclasses.replace(MICRO_JANUS.llama, depth=3, num_heads=4, num_kv_heads=4, head_dim=8)
PER_TOKEN = 2 * 3 * 4 * 8 * 2  # keys and values, layers, heads, width, bytes


class FakeDevice:
    """Has a memory."""

    process_index = 0
    platform = device_kind = "fake"

    def __init__(self, id, used):
        self.id, self.used = id, used

    def memory_stats(self):
        return {"bytes_limit": 100_000, "bytes_in_use": self.used}


@pytest.mark.parametrize(
    ("rows", "shape", "parts"),
    [
        (8, (1, 1, 1), 1),
        (8, (2, 2, 1), 4),
        (8, (1, 1, 4), 4),
        (8, (2, 2, 2), 8),
        (6, (2, 2, 2), 2),  # 4 devices cannot share 6 rows: each has all of them, and half of the heads
        (1, (1, 8, 1), 1),
    ],
)
def test_a_device_holds_its_heads_of_its_rows_or_of_all_where_they_cannot_be_shared(rows, shape, parts):
    mesh = AbstractMesh(shape, MESH_AXES)
    held = held_bytes(CONFIG, jnp.bfloat16, rows, 10, mesh)
    assert held == rows * 10 * PER_TOKEN // parts
    cache = jax.eval_shape(lambda: init_cache(CONFIG, Execution(dtype=jnp.bfloat16, scan_layers=False), rows, 10))
    specs = cache_specs(cache, mesh)
    leaves = zip((*cache.k, *cache.v), (*specs.k, *specs.v), strict=True)
    assert held == sum(2 * np.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape)) for leaf, spec in leaves)


def test_each_device_must_have_room_for_what_it_holds(monkeypatch):
    devices = [FakeDevice(0, used=100_000 - 5 * 10 * PER_TOKEN), FakeDevice(1, used=0)]
    mesh = Mesh(np.array(devices).reshape(2, 1, 1), MESH_AXES)
    check_fits(CONFIG, jnp.bfloat16, {"rows": (10, 10)}, mesh)
    with pytest.raises(UserError, match=r"the key-value cache needs 0\.00 GiB \(0\.00 GiB for rows\), but 0\.00"):
        check_fits(CONFIG, jnp.bfloat16, {"rows": (12, 10)}, mesh)
    with pytest.raises(UserError, match="for rows"):
        check_fits(CONFIG, jnp.bfloat16, {"rows": (7, 10)}, mesh)  # on both
    check_fits(CONFIG, jnp.bfloat16, {"rows": (5, 10)}, mesh)
