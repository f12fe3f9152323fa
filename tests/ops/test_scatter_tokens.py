import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops import scatter_tokens

place_in_order, segments_with = jax.jit(scatter_tokens.place_in_order), jax.jit(scatter_tokens.segments_with)


def placed_by_a_loop(row, mask, values):
    out = row.copy()
    for b in range(len(row)):
        taken = 0
        for position in range(row.shape[1]):
            if mask[b, position]:
                out[b, position] = values[b, taken]
                taken += 1
    return out


@pytest.mark.parametrize("trailing", [(), (5,), (2, 3)])
def test_placement_equals_a_loop(trailing):
    rng = np.random.default_rng(0)
    row = rng.integers(0, 100, (4, 12, *trailing))
    values = rng.integers(100, 200, (4, 7, *trailing))
    mask = rng.random((4, 12)) < 0.5
    mask[0], mask[1] = False, np.arange(12) < 7  # nothing placed; all values placed
    mask[2:] &= np.cumsum(mask[2:], 1) <= 7
    out = place_in_order(jnp.asarray(row), jnp.asarray(mask), jnp.asarray(values))
    np.testing.assert_array_equal(out, placed_by_a_loop(row, mask, values))


def segments_with_by_a_loop(segment_ids, mask):
    out = np.zeros(mask.shape, bool)
    for b, ids in enumerate(segment_ids):
        marked = {ids[i] for i in range(len(ids)) if mask[b, i]}
        out[b] = [ids[i] in marked for i in range(len(ids))]
    return out


def test_segments_with_equals_a_loop():
    rng = np.random.default_rng(1)
    segment_ids = np.sort(rng.integers(0, 5, (6, 15)), axis=1)
    segment_ids[0] = np.arange(1, 16)  # every token its own segment: ids reach L
    segment_ids[1] = 0
    mask = rng.random((6, 15)) < 0.15
    out = segments_with(jnp.asarray(segment_ids), jnp.asarray(mask))
    np.testing.assert_array_equal(out, segments_with_by_a_loop(segment_ids, mask))
