import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops import attention
from janus_jax.ops.attention import attention_mask

attend = jax.jit(attention.attend)


def reference(q, k, v, mask):
    """Attention by its definition, one query at a time in float64; zero where nothing is visible."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, num_heads, head_dim = q.shape
    group = num_heads // k.shape[2]
    out = np.zeros(q.shape)
    for b in range(batch):
        for t in range(length):
            visible = np.ones(k.shape[1], bool) if mask is None else np.asarray(mask)[b, t]
            for n in range(num_heads if visible.any() else 0):
                scores = k[b, visible, n // group] @ q[b, t, n] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ v[b, visible, n // group] / weights.sum()
    return out


def random_qkv(num_heads, num_kv_heads, batch=2, queries=5, keys=7, head_dim=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, num_heads), (batch, keys, num_kv_heads), (batch, keys, num_kv_heads)]
    return [jnp.asarray(rng.standard_normal((*shape, head_dim)), jnp.float32) for shape in shapes]


def mask_of(segments, positions, causal=True):
    segments, positions = jnp.array([segments]), jnp.array([positions])
    return np.asarray(attention_mask(segments, segments, positions, positions, causal)[0]).astype(int).tolist()


def test_causal_mask_of_the_docstring_example():
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert mask_of([1, 1, 2, 0], [0, 1, 0, 0]) == expected


def test_bidirectional_mask_keeps_segments_and_padding_apart():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert mask_of([1, 1, 2, 0], [0, 1, 0, 0], causal=False) == expected


def test_mask_of_a_left_padded_row_hides_the_pads():
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask_of([0, 0, 1, 1], [0, 0, 0, 1]) == expected


def test_mask_of_a_query_over_a_cache_hides_unwritten_slots():
    mask = attention_mask(
        q_segment_ids=jnp.array([[1]]),
        kv_segment_ids=jnp.array([[0, 1, 1, 1, 0, 0]]),  # one pad, two old tokens, the new one, two free slots
        q_positions=jnp.array([[2]]),
        kv_positions=jnp.array([[0, 0, 1, 2, 0, 0]]),
        causal=True,
    )
    assert np.asarray(mask).astype(int).tolist() == [[[0, 1, 1, 1, 0, 0]]]


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1), (6, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_float64_definition(num_heads, num_kv_heads, masked):
    q, k, v = random_qkv(num_heads, num_kv_heads)
    mask = jnp.asarray(np.random.default_rng(1).random((2, 5, 7)) < 0.5) if masked else None
    np.testing.assert_allclose(attend(q, k, v, mask), reference(q, k, v, mask), rtol=0, atol=1e-6)


def test_attend_over_packed_causal_segments_equals_float64_definition():
    q, k, v = random_qkv(4, 2, queries=7)
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 1, 2, 2, 3, 3, 3]])
    positions = jnp.array([[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1, 2]])
    hand_written = np.zeros((2, 7, 7), bool)
    for row, pairs in enumerate(
        [
            [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)],
            [(1, 1), (2, 2), (3, 2), (3, 3), (4, 4), (5, 4), (5, 5), (6, 4), (6, 5), (6, 6)],
        ]
    ):
        for query, key in pairs:
            hand_written[row, query, key] = True
    mask = attention_mask(segments, segments, positions, positions, causal=True)
    np.testing.assert_array_equal(mask, hand_written)
    np.testing.assert_allclose(attend(q, k, v, mask), reference(q, k, v, hand_written), rtol=0, atol=1e-6)


def test_query_that_sees_nothing_gives_exact_zero_and_no_gradient():
    q, k, v = random_qkv(4, 2)
    mask = jnp.ones((2, 5, 7), bool).at[0, 3].set(False).at[1].set(False)
    out = np.asarray(attend(q, k, v, mask))
    assert (out[0, 3] == 0).all() and (out[1] == 0).all()
    assert (np.abs(out[0, :3]) > 0).all()
    gradients = jax.jit(jax.grad(lambda args: jnp.sum(attend(*args, mask) ** 2)))((q, k, v))
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[1] == 0).all()


def test_masked_keys_get_no_gradient():
    q, k, v = random_qkv(2, 2)
    mask = jnp.ones((2, 5, 7), bool).at[:, :, 4].set(False)
    gradients = jax.jit(jax.grad(lambda args: jnp.sum(attend(*args, mask) ** 2)))((q, k, v))
    for gradient in map(np.asarray, gradients[1:]):
        assert (gradient[:, 4] == 0).all()
        assert (np.abs(gradient[:, :4]).max(axis=(0, 2, 3)) > 1e-4).all()


def test_huge_scores_do_not_overflow():
    q, k, v = random_qkv(2, 2)
    q, k = q * 100, k * 100
    mask = jnp.ones((2, 5, 7), bool).at[:, :, 0].set(False)
    np.testing.assert_allclose(attend(q, k, v, mask), reference(q, k, v, mask), rtol=0, atol=1e-2)


def test_bfloat16_inputs_keep_float32_scores():
    """Only weights and result are rounded, by one part in 2^8 each, and the values are at most max |v|."""
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(4, 2, keys=64, head_dim=64))
    q = q * 4
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    scale = np.abs(np.asarray(v, np.float32)).max()
    np.testing.assert_allclose(out.astype(jnp.float32), reference(q, k, v, None), rtol=0, atol=2 * 2**-8 * scale)
