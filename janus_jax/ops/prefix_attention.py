"""Attention of rows that share a prefix: its keys and values are held, and read, once for all of them.

Letters: B rows, R prefixes, G rows per prefix (B = R G), P prefix length, T queries, S keys, N heads, K key-value
heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from janus_jax.ops.attention import MASKED_SCORE


class _Part(NamedTuple):
    """Attention to some of the keys, before its division by the sum over all keys."""

    context: Float[Array, "B T N H"]  # sum of exp(score - largest) v
    largest: Float[Array, "B T N 1"]
    total: Float[Array, "B T N 1"]  # sum of exp(score - largest)


def attend_with_prefix(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    prefix_k: Float[Array, "R P K H"],
    prefix_v: Float[Array, "R P K H"],
    prefix_mask: Bool[Array, "R P"],
) -> Float[Array, "B T N H"]:
    """As `attend` over the keys of the row's prefix followed by its own; row b has prefix b // G.

    Args:
        mask: True where a query may see a key of its own row; each query sees at least one, or one of its prefix.
        prefix_mask: True at the keys of a prefix, False at its padding; all queries see them.
    """
    batch, length, num_heads, head_dim = q.shape
    prefixes, prefix_length = prefix_mask.shape
    grouped = q.reshape(prefixes, -1, num_heads, head_dim)  # [R, G T, N, H]
    visible = jnp.broadcast_to(prefix_mask[:, None], (prefixes, grouped.shape[1], prefix_length))
    shared = _Part(*(x.reshape(batch, length, num_heads, -1) for x in _part(grouped, prefix_k, prefix_v, visible)))
    own = _part(q, k, v, mask)
    largest = jnp.maximum(shared.largest, own.largest)
    shared_scale, own_scale = jnp.exp(shared.largest - largest), jnp.exp(own.largest - largest)
    context = shared.context * shared_scale + own.context * own_scale
    return (context / (shared.total * shared_scale + own.total * own_scale)).astype(q.dtype)


def _part(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> _Part:
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.einsum("BTKGH,BSKH->BTKGS", grouped, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = jnp.where(mask[:, :, None, None], scores, MASKED_SCORE)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    context = jnp.einsum("BTKGS,BSKH->BTKGH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    heads = (batch, length, num_heads)
    return _Part(
        context.reshape(*heads, head_dim), largest.reshape(*heads, 1), weights.sum(-1, keepdims=True).reshape(*heads, 1)
    )
