"""What a request holds on a device, in numbers and as the caches are really divided, and what is free."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from janus_jax.errors import UserError
from janus_jax.inference.memory import cache_bytes, check_fits, score_bytes
from janus_jax.models.execution import Execution
from janus_jax.models.presets import JANUS_PRO_7B
from janus_jax.sharding import MESH_AXES
from tests.helpers.tiny_runs import MICRO_JANUS

CONFIG = dataclasses.replace(MICRO_JANUS.llama, depth=3, num_heads=4, num_kv_heads=4, head_dim=8)
EXECUTION = Execution(dtype=jnp.bfloat16, scan_layers=False)
PER_TOKEN = 2 * 3 * 4 * 8 * 2  # keys and values, layers, heads, width, bytes


class FakeDevice:
    """A device, of this process unless another one is named, that has a memory."""

    client = SimpleNamespace(process_index=lambda: 0)
    platform = device_kind = "fake"

    def __init__(self, id, used, process_index=0):
        self.id, self.used, self.process_index = id, used, process_index

    def memory_stats(self):
        return {"bytes_limit": 100_000, "bytes_in_use": self.used}


@pytest.mark.parametrize(
    ("rows", "shape", "number"),
    [
        (8, (1, 1, 1), 1),
        (8, (2, 2, 1), 4),
        (8, (1, 1, 4), 4),
        (8, (2, 2, 2), 8),
        (6, (2, 2, 2), 2),  # 4 devices cannot share 6 rows: each has all of them, and half of the heads
        (1, (1, 8, 1), 1),
    ],
)
def test_a_device_holds_its_heads_of_its_rows_or_of_all_where_they_cannot_be_shared(rows, shape, number):
    mesh = AbstractMesh(shape, MESH_AXES)
    for scan_layers in (False, True):
        execution = dataclasses.replace(EXECUTION, scan_layers=scan_layers)
        assert cache_bytes(CONFIG, execution, rows, 10, mesh) == rows * 10 * PER_TOKEN // number
    assert score_bytes(CONFIG, rows, 5, 10, mesh) == 4 * rows * 4 * 5 * 10 // number


def test_processes_that_share_a_mesh_refuse_a_request_together(monkeypatch):
    """This process has room for 10 rows; if it ran them alone, it would wait for the other one for ever."""
    devices = [FakeDevice(0, used=0), FakeDevice(1, used=0, process_index=1)]
    mesh = Mesh(np.array(devices).reshape(2, 1, 1), MESH_AXES)
    free_elsewhere = 100_000

    def gather(numbers):
        return np.stack([numbers, [free_elsewhere, numbers[1]]])

    monkeypatch.setattr("janus_jax.inference.memory.multihost_utils.process_allgather", gather)
    check_fits(CONFIG, EXECUTION, {"rows": (10, 10)}, [(1, 0, 0)], mesh)
    free_elsewhere = 10
    with pytest.raises(UserError, match="of rows"):
        check_fits(CONFIG, EXECUTION, {"rows": (10, 10)}, [(1, 0, 0)], mesh)


def test_each_device_must_have_room_for_what_it_holds(monkeypatch):
    devices = [FakeDevice(0, used=100_000 - 5 * 10 * PER_TOKEN), FakeDevice(1, used=0)]
    mesh = Mesh(np.array(devices).reshape(2, 1, 1), MESH_AXES)

    def check(rows, queries=0):
        check_fits(CONFIG, EXECUTION, {"rows": (rows, 10)}, [(1, 0, 0), (2, queries, 10)], mesh)

    check(10)
    with pytest.raises(UserError, match=r"needs 0\.00 GiB \(0\.00 GiB for key-value caches of rows \+ 0\.00 GiB for"):
        check(12)
    with pytest.raises(UserError, match="of rows"):
        check(7)  # on both
    check(5)
    scores = 4 * 4 * 10  # of a row and query: bytes, heads, keys
    spare = 10 * PER_TOKEN  # beside four rows on each device
    check(8, queries=spare // scores)
    with pytest.raises(UserError, match="for scores of attention"):
        check(8, queries=spare // scores + 1)


def test_the_scores_of_a_long_prompt_count(monkeypatch):
    """The 7B: 30 layers and 32 heads of 128 in bfloat16, a prompt of 16320 tokens and 64 more."""
    config = JANUS_PRO_7B.llama
    assert score_bytes(config, 1, 16320, 16384) == 4 * 32 * 16320 * 16384
    assert cache_bytes(config, EXECUTION, 1, 16384) == 2 * 2 * 30 * 32 * 128 * 16384
    for gibibytes, fits in ((39, False), (40, True)):
        monkeypatch.setattr("janus_jax.inference.memory.free_bytes", lambda devices, size=gibibytes: size * 2**30)
        request = (config, EXECUTION, {"1 prompts": (1, 16384)}, [(1, 16320, 16384)], None)
        if fits:
            check_fits(*request)
            continue
        message = (
            r"needs 39\.38 GiB \(7\.50 GiB for key-value caches of 1 prompts \+ 31\.88 GiB for scores of attention"
        )
        with pytest.raises(UserError, match=message):
            check_fits(*request)
