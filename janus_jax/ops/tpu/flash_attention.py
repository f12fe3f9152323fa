"""Causal attention inside packed segments as two Pallas kernels for TPUs, without [T, T] scores in memory.

The algorithm is FlashAttention-2 (Dao, 2023), with three choices for packed rows on a TPU:
- A head is a block of 128 lanes of [B, T, heads * H], which is how the projections write it and `o_proj` reads it.
  Nothing is transposed or copied around the kernels, as it would be for the kernels that JAX ships (`flash_attention`
  and `splash_attention` in jax.experimental.pallas.ops.tpu), which take the heads before the tokens.
- Scores are stored transposed, as [keys, queries], so that maxima and sums are rows. Reductions over sublanes are
  cheap, and `logsumexp` takes only T floats per head.
- A query sees the keys `starts[q] .. q`, which takes one comparison of unsigned integers. Blocks of keys before the
  first one that a block of queries sees are never run.

The backward pass is one kernel with five products per block. The dq of a head stays in VMEM (T x 128 floats) while the
kernel walks over the blocks of keys.

Letters: B rows, T tokens, N heads, K key-value heads, H head dim.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

HEAD_DIM = 128  # number of lanes of a TPU
BLOCK = 512  # number of queries and of keys of a block
LOG2_E = math.log2(math.e)
# Finite, so that sums over a block in which a query sees nothing are defined; they are scaled to zero at the first
# block in which it sees a key.
MASKED = -1e30


def flash_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / log2(e)) v over the keys of a query's segment up to the query itself.

    Args:
        q: queries, already scaled by log2(e) / sqrt(H).
        segment_ids: one run of equal ids per segment, as in packed rows. Padding (0) is treated like a segment.
        interpret: whether to run the kernels on a CPU, for tests.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = v.shape[2]
    if not flash_fits(length, head_dim):
        raise ValueError(f"flash attention got T={length}, H={head_dim}; expected H=128 and T a multiple of {BLOCK}")
    shape = _Shape(batch, length, heads, kv_heads, min(BLOCK, length), interpret)
    flat = (x.reshape(batch, length, -1) for x in (q, k, v))
    return _flash(shape, *flat, segment_starts(segment_ids)).reshape(q.shape)


def flash_fits(length: int, head_dim: int) -> bool:
    """Whether the kernels support rows of this length and heads of this size."""
    return head_dim == HEAD_DIM and length % min(BLOCK, length) == 0 and length % 128 == 0


def segment_starts(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the first token of each token's segment."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    previous = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jax.lax.cummax(jnp.where(segment_ids != previous, index, 0), axis=1)


class _Shape(NamedTuple):
    """Sizes of one call."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    block: int
    interpret: bool

    @property
    def blocks(self) -> int:
        return self.length // self.block

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(shape: _Shape, q: Array, k: Array, v: Array, starts: Array) -> Array:
    return _forward(shape, q, k, v, starts)[0]


def _flash_forward(shape: _Shape, q: Array, k: Array, v: Array, starts: Array) -> tuple[Array, tuple[Array, ...]]:
    context, logsumexp = _forward(shape, q, k, v, starts)
    context, logsumexp = checkpoint_name(context, "context"), checkpoint_name(logsumexp, "context")
    # The names for remat policies are given here. If the caller gave them, the saved arrays would be copied once more,
    # because the forward pass uses them as well (seen in compiled programs).
    q, k, v = checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")
    return context, (q, k, v, starts, context, logsumexp)


def _flash_backward(shape: _Shape, saved: tuple[Array, ...], d_context: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, starts, context, logsumexp = saved
    dq, dk, dv = _backward(shape, q, k, v, starts, context, logsumexp, d_context)
    if shape.group > 1:
        grouped = (*dk.shape[:2], shape.kv_heads, shape.group, HEAD_DIM)
        dk, dv = (x.reshape(grouped).sum(3).reshape(v.shape) for x in (dk, dv))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_flash.defvjp(_flash_forward, _flash_backward)


def _forward(shape: _Shape, q: Array, k: Array, v: Array, starts: Array) -> tuple[Array, Array]:
    """Context [B, T, N * H] and logsumexp (base 2) [B, N, 1, T]."""
    block, heads = shape.block, shape.heads
    first_block = starts[:, ::block] // block  # [B, blocks]: first block of keys that a block of queries sees

    def query(b: Array, h: Array, i: Array, j: Array, first: Any) -> tuple[Any, ...]:
        return b, i, h

    def key(b: Array, h: Array, i: Array, j: Array, first: Any) -> tuple[Any, ...]:
        return b, jnp.clip(j, first[b, i], i), h // shape.group

    return pl.pallas_call(
        functools.partial(_forward_kernel, block=block),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(shape.batch, heads, shape.blocks, shape.blocks),
            in_specs=[
                pl.BlockSpec((None, block, HEAD_DIM), query),
                pl.BlockSpec((None, block, HEAD_DIM), key),
                pl.BlockSpec((None, block, HEAD_DIM), key),
                pl.BlockSpec((None, 1, block), lambda b, h, i, j, first: (b, 0, i)),
            ],
            out_specs=[
                pl.BlockSpec((None, block, HEAD_DIM), query),
                pl.BlockSpec((None, None, 1, block), lambda b, h, i, j, first: (b, h, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((1, block), jnp.float32),
                pltpu.VMEM((1, block), jnp.float32),
                pltpu.VMEM((HEAD_DIM, block), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((shape.batch, shape.length, heads * HEAD_DIM), q.dtype),
            jax.ShapeDtypeStruct((shape.batch, heads, 1, shape.length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="flash_attention_forward",
        interpret=shape.interpret,
    )(first_block, q, k, v, starts[:, None])


def _forward_kernel(
    first_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    starts_ref: Any,
    context_ref: Any,
    logsumexp_ref: Any,
    maximum_ref: Any,
    total_ref: Any,
    sum_ref: Any,
    *,
    block: int,
) -> None:
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def start() -> None:
        maximum_ref[...] = jnp.full_like(maximum_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when((j >= first_ref[b, i]) & (j <= i))
    def add() -> None:
        scores = _scores(k_ref[...], q_ref[...], starts_ref[...], i, j, block)
        old = maximum_ref[...]
        maximum = jnp.maximum(old, jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.exp2(scores - maximum)
        shrink = jnp.exp2(old - maximum)
        maximum_ref[...] = maximum
        total_ref[...] = total_ref[...] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        sum_ref[...] = sum_ref[...] * shrink + _dot(v_ref[...], weights.astype(v_ref.dtype), 0, 0)

    @pl.when(j == i)  # no query of the block sees a later block of keys
    def finish() -> None:
        context_ref[...] = (sum_ref[...] / total_ref[...]).T.astype(context_ref.dtype)
        logsumexp_ref[...] = maximum_ref[...] + jnp.log2(total_ref[...])


def _backward(
    shape: _Shape, q: Array, k: Array, v: Array, starts: Array, context: Array, logsumexp: Array, d_context: Array
) -> tuple[Array, Array, Array]:
    """dq, dk, dv [B, T, N * H], the latter two for each query head."""
    block, heads = shape.block, shape.heads
    ends = jnp.arange(1, shape.blocks + 1, dtype=jnp.int32) * block - 1  # last key of each block
    seeing = jnp.sum(starts[:, None, :] <= ends[:, None], axis=-1, dtype=jnp.int32)  # starts never decrease
    last_block = (seeing - 1) // block  # [B, blocks]: last block of queries that see a block of keys

    def query(b: Array, h: Array, j: Array, i: Array, last: Any) -> tuple[Any, ...]:
        return b, jnp.clip(i, j, last[b, j]), h

    def statistic(b: Array, h: Array, j: Array, i: Array, last: Any) -> tuple[Any, ...]:
        return b, h, 0, jnp.clip(i, j, last[b, j])

    wide = jax.ShapeDtypeStruct((shape.batch, shape.length, heads * HEAD_DIM), q.dtype)
    return pl.pallas_call(
        functools.partial(_backward_kernel, block=block),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(shape.batch, heads, shape.blocks, shape.blocks),
            in_specs=[
                pl.BlockSpec((None, block, HEAD_DIM), query),
                pl.BlockSpec((None, block, HEAD_DIM), lambda b, h, j, i, last: (b, j, h // shape.group)),
                pl.BlockSpec((None, block, HEAD_DIM), lambda b, h, j, i, last: (b, j, h // shape.group)),
                pl.BlockSpec((None, block, HEAD_DIM), query),
                pl.BlockSpec((None, block, HEAD_DIM), query),
                pl.BlockSpec((None, 1, block), lambda b, h, j, i, last: (b, 0, jnp.clip(i, j, last[b, j]))),
                pl.BlockSpec((None, None, 1, block), statistic),
            ],
            out_specs=[
                pl.BlockSpec((None, shape.length, HEAD_DIM), lambda b, h, j, i, last: (b, 0, h)),
                pl.BlockSpec((None, block, HEAD_DIM), lambda b, h, j, i, last: (b, j, h)),
                pl.BlockSpec((None, block, HEAD_DIM), lambda b, h, j, i, last: (b, j, h)),
            ],
            scratch_shapes=[
                pltpu.VMEM((shape.length, HEAD_DIM), jnp.float32),
                pltpu.VMEM((block, HEAD_DIM), jnp.float32),
                pltpu.VMEM((block, HEAD_DIM), jnp.float32),
            ],
        ),
        out_shape=[wide, wide, wide],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="flash_attention_backward",
        interpret=shape.interpret,
    )(last_block, q, k, v, context, d_context, starts[:, None], logsumexp)


def _backward_kernel(
    last_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    context_ref: Any,
    d_context_ref: Any,
    starts_ref: Any,
    logsumexp_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    dq_sum_ref: Any,
    dk_sum_ref: Any,
    dv_sum_ref: Any,
    *,
    block: int,
) -> None:
    b, j, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    last_i = pl.num_programs(3) - 1
    rows = pl.ds(pl.multiple_of(i * block, block), block)

    @pl.when(j == 0)
    def start_queries() -> None:
        dq_sum_ref[rows, :] = jnp.zeros((block, HEAD_DIM), jnp.float32)

    @pl.when(i == 0)
    def start_keys() -> None:
        dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
        dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    @pl.when((i >= j) & (i <= last_ref[b, j]))
    def add() -> None:
        q, k, v, d_context = q_ref[...], k_ref[...], v_ref[...], d_context_ref[...]
        weights = jnp.exp2(_scores(k, q, starts_ref[...], i, j, block) - logsumexp_ref[...])
        dv_sum_ref[...] += _dot(weights.astype(v.dtype), d_context, 1, 0)
        product = context_ref[...].astype(jnp.float32) * d_context.astype(jnp.float32)
        delta = jnp.sum(product.T, axis=0, keepdims=True)  # [1, queries]: gradient through the normalisation
        d_scores = (weights * (_dot(v, d_context, 1, 1) - delta)).astype(v.dtype)
        dk_sum_ref[...] += _dot(d_scores, q, 1, 0)
        dq_sum_ref[rows, :] += _dot(d_scores, k, 0, 0)

    @pl.when(i == last_i)
    def finish_keys() -> None:  # scores are in base 2, and d exp2(x) = ln 2 exp2(x)
        dk_ref[...] = (dk_sum_ref[...] / LOG2_E).astype(dk_ref.dtype)
        dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)

    @pl.when(j == last_i)
    def finish_queries() -> None:
        dq_ref[rows, :] = (dq_sum_ref[rows, :] / LOG2_E).astype(dq_ref.dtype)


def _scores(k: Array, q: Array, starts: Array, i: Array, j: Array, block: int) -> Array:
    """Masked scores [keys, queries] of block i of the queries and block j of the keys, in float32."""
    key = jax.lax.broadcasted_iota(jnp.int32, (block, block), 0)
    query = jax.lax.broadcasted_iota(jnp.int32, (1, block), 1) + i * block
    since = key - (starts - j * block)  # tokens from the segment's start to the key; if negative, huge as unsigned
    visible = since.astype(jnp.uint32) <= (query - starts).astype(jnp.uint32)
    return jnp.where(visible, _dot(k, q, 1, 1), MASKED)


def _dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
