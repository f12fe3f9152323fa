"""Attention to a cache, with a shared prefix or none, equals `attend` over each row's copy of everything."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.attention import attend
from janus_jax.ops.decode_attention import PARTS, SMALLEST_PART, Prefix, attend_cached


@pytest.mark.parametrize("few_rows", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
def test_shared_prefixes_equal_their_copies(queries, few_rows):
    rng = np.random.default_rng(queries)
    prefixes, group, length, keys, heads, kv_heads, dim = 2, 3, 7, 5, 4, 2, 8
    rows = prefixes * group
    q = rng.normal(size=(rows, queries, heads, dim)) * 3
    k, v = rng.normal(size=(2, rows, keys, kv_heads, dim)) * 3
    prefix_k, prefix_v = rng.normal(size=(2, prefixes, length, kv_heads, dim)) * 3
    mask = rng.random((rows, queries, keys)) < 0.5
    mask[0], mask[1, :, 0] = False, True  # row 0 sees its prefix alone
    prefix_mask = rng.random((prefixes, length)) < 0.5
    prefix_mask[0, :2], prefix_mask[1] = True, False  # the rows of the other prefix see their own alone
    mask[group:, :, 1] = True
    q, k, v, prefix_k, prefix_v = (jnp.asarray(x, jnp.float32) for x in (q, k, v, prefix_k, prefix_v))

    def copied(x):
        return np.repeat(x, group, axis=0)

    whole_mask = np.broadcast_to(copied(prefix_mask)[:, None], (rows, queries, length))
    expected = attend(
        q,
        jnp.concatenate([copied(prefix_k), k], axis=1),
        jnp.concatenate([copied(prefix_v), v], axis=1),
        jnp.concatenate([whole_mask, mask], axis=2),
    )
    prefix = Prefix(prefix_k.swapaxes(1, 2), prefix_v.swapaxes(1, 2), jnp.asarray(prefix_mask))
    own = k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(mask)
    actual = attend_cached(q, *own, prefix, few_rows)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)

    alone = attend_cached(q, *own, None, few_rows)
    seen = mask.any(-1)  # the context of the others has no meaning
    np.testing.assert_allclose(alone[seen], attend(q, k, v, jnp.asarray(mask))[seen], rtol=2e-5, atol=2e-6)


def test_slots_behind_the_written_ones_are_read_up_to_a_part_of_the_cache():
    rng = np.random.default_rng(0)
    rows, heads, dim, part = 2, 3, 8, SMALLEST_PART
    slots = PARTS * part
    q = jnp.asarray(rng.normal(size=(rows, 1, heads, dim)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, rows, slots, heads, dim)), jnp.float32)
    for written in (1, part, part + 1, slots - part, slots):
        mask = jnp.broadcast_to(jnp.arange(slots) < written, (rows, 1, slots))
        seen = -(-written // part) * part
        cache = k.at[:, seen:].set(jnp.nan).swapaxes(1, 2), v.at[:, seen:].set(jnp.nan).swapaxes(1, 2)
        actual = attend_cached(q, *cache, mask, few_rows=True, written=jnp.asarray(written))
        np.testing.assert_allclose(actual, attend(q, k, v, mask), rtol=2e-5, atol=2e-6, err_msg=str(written))
        if seen < slots:  # the part itself is read to its end
            cache = k.at[:, seen - 1 :].set(jnp.nan).swapaxes(1, 2), cache[1]
            mask = jnp.ones_like(mask)
            assert np.isnan(attend_cached(q, *cache, mask, few_rows=True, written=written)).all()


def test_with_few_rows_a_partly_written_cache_follows_a_shared_prefix():
    """Of grouped queries, each prefix shared by several rows, and a last part of the cache that is not a whole one."""
    rng = np.random.default_rng(1)
    prefixes, group, length, heads, kv_heads, dim = 2, 3, 16, 4, 2, 8
    rows, slots = prefixes * group, 2 * SMALLEST_PART + 13
    q = jnp.asarray(rng.normal(size=(rows, 1, heads, dim)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, rows, slots, kv_heads, dim)), jnp.float32)
    before = jnp.asarray(rng.normal(size=(2, prefixes, length, kv_heads, dim)), jnp.float32)
    seen_before = rng.random((prefixes, length)) < 0.5
    prefix = Prefix(*before.swapaxes(2, 3), jnp.asarray(seen_before))
    for written in (1, SMALLEST_PART + 1, slots):
        mask = np.broadcast_to(np.arange(slots) < written, (rows, 1, slots))
        whole_k, whole_v = (
            jnp.concatenate([jnp.repeat(old, group, axis=0), own], axis=1)
            for old, own in zip(before, (k, v), strict=True)
        )
        whole_mask = np.concatenate([np.repeat(seen_before, group, axis=0)[:, None], mask], axis=2)
        actual = attend_cached(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(mask), prefix, True, written)
        expected = attend(q, whole_k, whole_v, jnp.asarray(whole_mask))
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6, err_msg=str(written))
