"""Attention while decoding: to the KV cache of each row, and to that of a prefix that several rows share.

The keys and values of a shared prefix are stored once, and a step reads them once for all of its rows. Values have the
head dim as their last axis, like keys: with the slots there, a step would write each of its numbers to another place in
memory.

Letters: B rows, T queries, N heads, K key-value heads, H head dim, S slots of the cache, R prefixes, P slots of a
prefix, Q = T N / K queries of a row and key-value head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.ops.attention import MASKED_SCORE
from janus_jax.ops.cpu.gemv import MAX_ROWS, gemv_row_major, gemv_weighted_sum
from janus_jax.ops.layer_view import LayerView, values_of

# How the products with keys and values are computed: by XLA, or by `ops.cpu.gemv` where the queries are few.
MATMUL_BACKENDS = ("xla", "gemv")
# With "gemv" a step reads the cache as far as it is written, rounded up to a whole part.
PARTS, SMALLEST_PART = 4, 32  # most parts of a cache, and fewest slots of one


class SharedPrefix(NamedTuple):
    """Keys and values before those of B rows; row b has prefix b // (B / R)."""

    k: Float[Array, "R K P H"] | LayerView
    v: Float[Array, "R K P H"] | LayerView
    mask: Bool[Array, "R P"]  # False at the padding of a prefix; all queries see all other slots


def attend_cached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"] | LayerView,
    v: Float[Array, "B K S H"] | LayerView,
    mask: Bool[Array, "B T S"],
    prefix: SharedPrefix | None = None,
    matmul_backend: str = "xla",
    written: Int[Array, ""] | int | None = None,
) -> Float[Array, "B T N H"]:
    """`attend` over the keys of a row's prefix, followed by those of its cache.

    Args:
        mask: True where a query may see a slot of its row's cache. A query that sees no key at all, neither in the
            cache nor in the prefix, gets a finite context without meaning.
        matmul_backend: one of `MATMUL_BACKENDS`.
        written: number of slots that are filled; the mask must hide all others. None: all may be.
    """
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    q = q.reshape(batch, length, num_kv_heads, -1, head_dim).swapaxes(1, 2).reshape(batch, num_kv_heads, -1, head_dim)
    visible = jnp.repeat(mask, num_heads // num_kv_heads, axis=1)[:, None]  # [B, 1, Q, S]
    scores = jnp.where(visible, _scores(q, k, matmul_backend, written), MASKED_SCORE)
    before = 0
    if prefix is not None:
        before = prefix.mask.shape[1]
        shared = jnp.where(
            prefix.mask[:, None, None], _scores(_by_prefix(q, prefix), prefix.k, matmul_backend), MASKED_SCORE
        )
        scores = jnp.concatenate([_by_row(shared, batch), scores], axis=-1)
    weights = jax.nn.softmax(scores * head_dim**-0.5, axis=-1).astype(q.dtype)  # [B, K, Q, P + S]
    context = _context(weights[..., before:], v, matmul_backend, written)
    if prefix is not None:
        context += _by_row(_context(_by_prefix(weights[..., :before], prefix), prefix.v, matmul_backend), batch)
    context = context.reshape(batch, num_kv_heads, length, -1, head_dim).swapaxes(1, 2)
    return context.reshape(batch, length, num_heads, head_dim).astype(q.dtype)


def _part(slots: int) -> int:
    """Number of slots of a part: the fewest that divide a cache into whole parts."""
    smallest = max(SMALLEST_PART, -(-slots // PARTS))
    return next((size for size in range(smallest, slots) if slots % size == 0), slots)


def _by_prefix(x: jax.Array, prefix: SharedPrefix) -> jax.Array:
    """Puts the queries of all rows of a prefix behind each other: [B, K, Q, any] -> [R, K, (B / R) Q, any]."""
    batch, num_kv_heads, queries, size = x.shape
    x = x.reshape(len(prefix.mask), -1, num_kv_heads, queries, size).swapaxes(1, 2)
    return x.reshape(len(prefix.mask), num_kv_heads, -1, size)


def _by_row(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_by_prefix`."""
    prefixes, num_kv_heads, _, size = x.shape
    x = x.reshape(prefixes, num_kv_heads, batch // prefixes, -1, size).swapaxes(1, 2)
    return x.reshape(batch, num_kv_heads, -1, size)


def _scores(
    q: jax.Array, k: jax.Array | LayerView, matmul_backend: str, written: jax.Array | int | None = None
) -> jax.Array:
    """q k^T: [..., Q, H], [..., S, H] -> float32 [..., Q, S], without meaning behind the parts that are written."""
    if matmul_backend == "xla" or q.shape[-2] > MAX_ROWS:
        return jnp.einsum("...qh,...sh->...qs", q, values_of(k), preferred_element_type=jnp.float32)
    q, part = q.astype(jnp.float32), _part(k.shape[-2])

    def add(i: jax.Array, scores: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(scores, gemv_row_major(q, k, i * part, part), i * part, axis=-1)

    if written is None or part == k.shape[-2]:
        return gemv_row_major(q, k)
    return jax.lax.fori_loop(0, -(-written // part), add, jnp.zeros((*q.shape[:-1], k.shape[-2])))


def _context(
    weights: jax.Array, v: jax.Array | LayerView, matmul_backend: str, written: jax.Array | int | None = None
) -> jax.Array:
    """weights @ v: [..., Q, S], [..., S, H] -> float32 [..., Q, H]. Slots that are not written have no weight."""
    if matmul_backend == "xla" or weights.shape[-2] > MAX_ROWS:
        return jnp.einsum("...qs,...sh->...qh", weights, values_of(v), preferred_element_type=jnp.float32)
    weights, part = weights.astype(jnp.float32), _part(v.shape[-2])

    def add(i: jax.Array, context: jax.Array) -> jax.Array:
        return context + gemv_weighted_sum(jax.lax.dynamic_slice_in_dim(weights, i * part, part, -1), v, i * part)

    if written is None or part == v.shape[-2]:
        return gemv_weighted_sum(weights, v)
    return jax.lax.fori_loop(0, -(-written // part), add, jnp.zeros((*weights.shape[:-1], v.shape[-1])))
