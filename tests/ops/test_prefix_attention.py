"""Attention with a shared prefix equals `attend` over each row's copy of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.attention import attend
from janus_jax.ops.prefix_attention import attend_with_prefix


@pytest.mark.parametrize("queries", [1, 3])
def test_shared_prefixes_equal_their_copies(queries):
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
    actual = attend_with_prefix(q, k, v, jnp.asarray(mask), prefix_k, prefix_v, jnp.asarray(prefix_mask))
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
