"""Attention to a cache, with or without a shared prefix, equals `attend` over each row's copy of everything."""

import functools

import jax
import numpy as np
import pytest

from janus_jax.ops import decode_attention
from janus_jax.ops.attention import attend as attend_eagerly
from janus_jax.ops.decode_attention import MATMUL_BACKENDS, PARTS, SMALLEST_PART, SharedPrefix

attend = jax.jit(attend_eagerly)


@functools.partial(jax.jit, static_argnames="backend")
def attend_cached(q, k, v, mask, prefix=None, written=None, backend="xla"):
    """`decode_attention.attend_cached` for keys and values whose slots come before the heads."""
    return decode_attention.attend_cached(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, prefix, backend, written)


@pytest.mark.parametrize("backend", MATMUL_BACKENDS)
@pytest.mark.parametrize("queries", [1, 3])
def test_shared_prefixes_equal_their_copies(queries, backend):
    rng = np.random.default_rng(queries)
    prefixes, group, length, keys, heads, kv_heads, dim = 2, 3, 7, 5, 4, 2, 8
    rows = prefixes * group
    q = np.float32(rng.normal(size=(rows, queries, heads, dim)) * 3)
    k, v = np.float32(rng.normal(size=(2, rows, keys, kv_heads, dim)) * 3)
    prefix_k, prefix_v = np.float32(rng.normal(size=(2, prefixes, length, kv_heads, dim)) * 3)
    mask = rng.random((rows, queries, keys)) < 0.5
    mask[0], mask[1, :, 0] = False, True  # row 0 sees only its prefix
    prefix_mask = rng.random((prefixes, length)) < 0.5
    prefix_mask[0, :2], prefix_mask[1] = True, False  # the rows of the second prefix see only their cache
    mask[group:, :, 1] = True

    copies = [np.repeat(x, group, axis=0) for x in (prefix_k, prefix_v, prefix_mask)]
    whole_mask = np.broadcast_to(copies[2][:, None], (rows, queries, length))
    expected = attend(
        q,
        np.concatenate([copies[0], k], axis=1),
        np.concatenate([copies[1], v], axis=1),
        np.concatenate([whole_mask, mask], axis=2),
    )
    prefix = SharedPrefix(prefix_k.swapaxes(1, 2), prefix_v.swapaxes(1, 2), prefix_mask)
    actual = attend_cached(q, k, v, mask, prefix, backend=backend)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)

    without_prefix = attend_cached(q, k, v, mask, backend=backend)
    seen = mask.any(-1)  # the context of a query that sees nothing has no meaning
    np.testing.assert_allclose(without_prefix[seen], attend(q, k, v, mask)[seen], rtol=2e-5, atol=2e-6)


def test_only_the_written_parts_of_the_cache_are_read():
    rng = np.random.default_rng(0)
    rows, heads, dim, part = 2, 3, 8, SMALLEST_PART
    slots = PARTS * part
    q = np.float32(rng.normal(size=(rows, 1, heads, dim)))
    k, v = np.float32(rng.normal(size=(2, rows, slots, heads, dim)))

    def unwritten(x, first):
        x = x.copy()
        x[:, first:] = np.nan
        return x

    for written in (1, part, part + 1, slots - part, slots):
        mask = np.broadcast_to(np.arange(slots) < written, (rows, 1, slots))
        read = -(-written // part) * part
        actual = attend_cached(q, unwritten(k, read), unwritten(v, read), mask, None, written, backend="gemv")
        np.testing.assert_allclose(actual, attend(q, k, v, mask), rtol=2e-5, atol=2e-6, err_msg=str(written))
        if read < slots:  # the last part that is read is read to its end
            visible = np.ones_like(mask)
            again = attend_cached(q, unwritten(k, read - 1), unwritten(v, read), visible, None, written, backend="gemv")
            assert np.isnan(again).all()


def test_a_partly_written_cache_follows_a_shared_prefix():
    """With grouped queries, several rows per prefix, and a cache whose last part is shorter than the others."""
    rng = np.random.default_rng(1)
    prefixes, group, length, heads, kv_heads, dim = 2, 3, 16, 4, 2, 8
    rows, slots = prefixes * group, 2 * SMALLEST_PART + 13
    q = np.float32(rng.normal(size=(rows, 1, heads, dim)))
    k, v = np.float32(rng.normal(size=(2, rows, slots, kv_heads, dim)))
    before = np.float32(rng.normal(size=(2, prefixes, length, kv_heads, dim)))
    prefix_mask = rng.random((prefixes, length)) < 0.5
    prefix = SharedPrefix(*before.swapaxes(2, 3), prefix_mask)
    whole_k, whole_v = (
        np.concatenate([np.repeat(old, group, axis=0), new], axis=1) for old, new in zip(before, (k, v), strict=True)
    )
    for written in (1, SMALLEST_PART + 1, slots):
        mask = np.broadcast_to(np.arange(slots) < written, (rows, 1, slots))
        whole_mask = np.concatenate([np.repeat(prefix_mask, group, axis=0)[:, None], mask], axis=2)
        actual = attend_cached(q, k, v, mask, prefix, written, backend="gemv")
        expected = attend(q, whole_k, whole_v, whole_mask)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6, err_msg=str(written))
