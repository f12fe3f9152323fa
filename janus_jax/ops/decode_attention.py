"""Attention of decoding: to the cached keys and values of a row, and to those of a prefix that rows share.

What belongs to a prefix is held, and read, once for all of its rows. Head dim is the last axis of values, too: with
slots there, each number that a step writes would go to a place of its own in memory.

Letters: B rows, T queries, N heads, K key-value heads, H head dim, S slots, R prefixes, P slots of a prefix; Q queries
of a row and key-value head, T N / K.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.ops.attention import MASKED_SCORE
from janus_jax.ops.cpu.gemv import ROWS, mix_few_rows, multiply_few_rows

# With few rows a cache is read as far as it is written, up to a whole part: a branch of the program each.
PARTS, SMALLEST_PART = 4, 32  # slots


class Prefix(NamedTuple):
    """What comes before B rows; row b has prefix b // (B / R)."""

    k: Float[Array, "R K P H"]
    v: Float[Array, "R K P H"]
    mask: Bool[Array, "R P"]  # False at its padding; all queries see the rest


def attend_cached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    prefix: Prefix | None = None,
    few_rows: bool = False,
    written: Int[Array, ""] | int | None = None,
) -> Float[Array, "B T N H"]:
    """As `attend` over the keys of the row's prefix followed by its own.

    Args:
        mask: True where a query may see a key of its own row. The context of a query that sees no key, not of its
            prefix either, is finite and has no meaning.
        few_rows: take the products of `few_rows` where they can be.
        written: slots of the cache, all behind them being masked; None for all of it.
    """
    slots, queries = k.shape[2], q.shape[1] * q.shape[2] // k.shape[1]
    if written is None or not few_rows or queries > ROWS:
        return _attend(q, k, v, mask, prefix, few_rows, slots)
    part = max(SMALLEST_PART, -(-slots // (PARTS * ROWS)) * ROWS)
    sizes = [*range(part, slots, part), slots]
    branches = [functools.partial(_attend, few_rows=few_rows, slots=size) for size in sizes]
    return jax.lax.switch(jnp.sum(jnp.asarray(sizes) < written), branches, q, k, v, mask, prefix)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, prefix: Prefix | None, few_rows: bool, slots: int
) -> jax.Array:
    """`attend_cached` to the first slots of a cache."""
    mask = mask[..., :slots]
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    q = q.reshape(batch, length, num_kv_heads, -1, head_dim).swapaxes(1, 2).reshape(batch, num_kv_heads, -1, head_dim)
    visible = jnp.repeat(mask, num_heads // num_kv_heads, axis=1)[:, None]  # [B, 1, Q, S]
    scores = jnp.where(visible, _scores(q, k, few_rows, slots), MASKED_SCORE)
    before = 0
    if prefix is not None:
        before = prefix.mask.shape[1]
        shared = _scores(_by_prefix(q, prefix), prefix.k, few_rows, before)
        shared = jnp.where(prefix.mask[:, None, None], shared, MASKED_SCORE)
        scores = jnp.concatenate([_by_row(shared, batch), scores], axis=-1)
    weights = jax.nn.softmax(scores * head_dim**-0.5, axis=-1).astype(q.dtype)  # [B, K, Q, P + S]
    context = _context(weights[..., before:], v, few_rows)
    if prefix is not None:
        context += _by_row(_context(_by_prefix(weights[..., :before], prefix), prefix.v, few_rows), batch)
    context = context.reshape(batch, num_kv_heads, length, -1, head_dim).swapaxes(1, 2)
    return context.reshape(batch, length, num_heads, head_dim).astype(q.dtype)


def _by_prefix(x: jax.Array, prefix: Prefix) -> jax.Array:
    """[B, K, Q, any] -> [R, K, (B / R) Q, any]."""
    batch, num_kv_heads, queries, size = x.shape
    x = x.reshape(len(prefix.mask), -1, num_kv_heads, queries, size).swapaxes(1, 2)
    return x.reshape(len(prefix.mask), num_kv_heads, -1, size)


def _by_row(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_by_prefix`."""
    prefixes, num_kv_heads, _, size = x.shape
    x = x.reshape(prefixes, num_kv_heads, batch // prefixes, -1, size).swapaxes(1, 2)
    return x.reshape(batch, num_kv_heads, -1, size)


def _scores(q: jax.Array, k: jax.Array, few_rows: bool, slots: int) -> jax.Array:
    """[..., Q, H], [..., S, H] -> float32 [..., Q, slots], of the first slots."""
    if few_rows and q.shape[-2] <= ROWS:
        return multiply_few_rows(q.astype(jnp.float32), k.astype(jnp.float32), slots)
    return jnp.einsum("...qh,...sh->...qs", q, k[..., :slots, :], preferred_element_type=jnp.float32)


def _context(weights: jax.Array, v: jax.Array, few_rows: bool) -> jax.Array:
    """[..., Q, slots], [..., S, H] -> float32 [..., Q, H], of the first slots."""
    if few_rows and weights.shape[-2] <= ROWS:
        return mix_few_rows(weights.astype(jnp.float32), v.astype(jnp.float32))
    return jnp.einsum("...qs,...sh->...qh", weights, v[..., : weights.shape[-1], :], preferred_element_type=jnp.float32)
