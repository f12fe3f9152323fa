import json
import pickle

import numpy as np
import pytest

from janus_jax.data.shared_memory_ring import Ring


@pytest.fixture
def ends():
    """(what the worker writes to, what its parent reads), of two slots of 4 KiB."""
    reader = Ring(2, 4096)
    writer = pickle.loads(pickle.dumps(reader))
    yield writer, reader
    del writer
    reader.close()


def block(seed):
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 99, (3, 50), np.int32),
        "modality": rng.integers(0, 4, (3, 7), np.int8),
        "weights": rng.random(11, np.float32),
        "nothing": np.zeros((0, 4, 4, 3), np.uint8),
    }


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def test_blocks_arrive_as_they_were_and_stay_until_they_are_released(ends):
    writer, reader = ends
    for i in range(0, 10, 2):
        written = [json.loads(json.dumps(writer.write(block(i + j)))) for j in range(2)]
        assert writer.write(block(99)) is None  # both slots are in use
        for j in range(2):
            same(reader.read(written[j]), block(i + j))
        assert writer.write(block(99)) is None
        reader.release()


def test_a_slot_in_use_is_waited_for_in_turn(ends):
    writer, reader = ends
    first, second = writer.write(block(1)), writer.write(block(2))
    same(reader.read(first), block(1))
    reader.release()
    third = writer.write(block(3))
    same(reader.read(second), block(2))
    same(reader.read(third), block(3))
    assert writer.write(block(4)) is None


def test_a_block_that_is_larger_than_a_slot_is_not_written(ends):
    writer, reader = ends
    assert writer.write({"a": np.zeros(4097, np.uint8)}) is None
    whole = np.arange(4096) % 251
    same(reader.read(writer.write({"a": whole.astype(np.uint8)})), {"a": whole.astype(np.uint8)})
