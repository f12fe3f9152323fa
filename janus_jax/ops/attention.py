"""The one attention function of the project.

Each backend-specific implementation (Pallas kernels for TPUs) stands behind a key of `BACKENDS`.

Letters: B batch, T queries, S keys, N heads, K key-value heads, G query heads per key-value head, H head dim.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from janus_jax.ops.rope import apply_rope
from janus_jax.ops.tpu.flash_attention import LOG2_E, flash_attend
from janus_jax.ops.tpu.rope import rotate

# Far below any score, and finite, so that the softmax of a fully masked row is defined (it is set to zero afterwards).
MASKED_SCORE = -1e30


def attention_mask(
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    causal: bool,
) -> Bool[Array, "B T S"]:
    """True where a query may see a key: same non-zero segment and, if `causal`, not a later position.

    Segment 0 is padding: it is seen by nobody and sees nothing. With segments [1, 1, 2, 0] and
    positions [0, 1, 0, 0] the causal mask is

        1 0 0 0
        1 1 0 0
        0 0 1 0
        0 0 0 0

    The same rule covers packed rows (several segments), padded prompts (segment 0 on the pads) and the
    key-value cache (unwritten slots are segment 0).
    """
    mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (q_segment_ids[:, :, None] > 0)
    if causal:
        mask &= q_positions[:, :, None] >= kv_positions[:, None, :]
    return mask


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with float32 scores; query head n reads key-value head n // (N / K).

    Args:
        q, k, v: queries, keys and values; N must be a multiple of K (grouped-query attention).
        mask: True where a query may see a key; None means everything is visible (SigLIP).

    Returns:
        The context in the dtype of `q`; zero for queries that see no key.
    """
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)  # [B, T, K, G, H]
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    if mask is not None:
        visible = mask[:, None, None]  # [B, 1, 1, T, S]
        scores = jnp.where(visible, scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(visible.any(-1, keepdims=True), weights, 0.0)
    context = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v)
    return context.reshape(batch, length, num_heads, head_dim).astype(q.dtype)


def attend_packed(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    angles: Float[Array, "B T R"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    backend: str,
) -> Float[Array, "B T N H"]:
    """Applies RoPE to queries and keys, then causal attention inside each segment of packed rows.

    Segments are runs of equal ids in which positions grow; for such rows all backends agree. Segment 0 is padding,
    whose context is finite and has no meaning. The arrays that the backward pass needs are named "query", "key",
    "value" and "context" for the remat policies.

    Args:
        angles: RoPE angles (`ops.rope.rope_angles`), R = H / 2.
        backend: a key of `BACKENDS`.
    """
    return BACKENDS[backend](q, k, v, angles, positions, segment_ids)


def _xla(q: Array, k: Array, v: Array, angles: Array, positions: Array, segment_ids: Array) -> Array:
    q, k = checkpoint_name(apply_rope(q, angles), "query"), checkpoint_name(apply_rope(k, angles), "key")
    v = checkpoint_name(v, "value")
    mask = attention_mask(segment_ids, segment_ids, positions, positions, causal=True)
    return checkpoint_name(attend(q, k, v, mask), "context")


def _flash(q: Array, k: Array, v: Array, angles: Array, positions: Array, segment_ids: Array) -> Array:
    del positions  # inside a segment the order of the tokens gives the same mask
    kernels, mesh = _flash_kernels, jax.sharding.get_abstract_mesh()
    if "tensor" in mesh.auto_axes and mesh.shape["tensor"] > 1:  # XLA cannot partition a Pallas kernel by itself
        heads, whole = PartitionSpec(None, None, "tensor"), PartitionSpec()
        kernels = jax.shard_map(
            _flash_kernels,
            in_specs=(heads, heads, heads, whole, whole),
            out_specs=heads,
            axis_names={"tensor"},
            check_vma=False,
        )
    return kernels(q, k, v, angles, segment_ids)


def _flash_kernels(q: Array, k: Array, v: Array, angles: Array, segment_ids: Array) -> Array:
    """The kernels on one device, for any number of heads."""
    scale = q.shape[-1] ** -0.5 * LOG2_E
    return flash_attend(rotate(q, angles, scale), rotate(k, angles, 1.0), v, segment_ids)


BACKENDS = {"xla": _xla, "flash": _flash}
