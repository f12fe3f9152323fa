"""The language model: a Llama decoder (DeepSeek-LLM), pre-norm, RoPE, SwiGLU, grouped-query attention, no biases.

Letters: B batch, T tokens, S cache slots, N heads, K key-value heads, H head dim, D width, F mlp, V vocab.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from janus_jax.models.config import LlamaConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Axes, Normal, declare
from janus_jax.models.layers import Linear, RMSNorm
from janus_jax.models.scan_layers import run_layers
from janus_jax.ops.attention import attend_packed, attention_mask
from janus_jax.ops.decode_attention import SharedPrefix, attend_cached
from janus_jax.ops.fusion_barrier import fusion_barrier, gradient_fusion_barrier
from janus_jax.ops.layer_view import look_up, write_places, write_slice
from janus_jax.ops.rope import Rotation, apply_rotation, rope_angles, rotation_once


class KVCache(NamedTuple):
    """Keys and values of the tokens so far. They are an explicit input and output of the model, never hidden state.

    Slots that are not written yet have segment 0, so that `attention_mask` hides them. The heads come before the slots,
    as in the products of attention: XLA:CPU would otherwise transpose the whole cache in every step (jaxlib 0.10.2).
    """

    k: jax.Array | tuple[jax.Array, ...]  # [layers, B, K, S, H] after RoPE; unrolled: one [B, K, S, H] per layer
    v: jax.Array | tuple[jax.Array, ...]  # the same shapes, without RoPE
    positions: jax.Array  # [B, S]
    segment_ids: jax.Array  # [B, S]
    length: jax.Array  # scalar, number of slots written so far, the same for all rows
    # Which of the next T tokens goes to each of the P slots from `length` on; a slot with any other number stays as it
    # is. None: token i goes to slot i, in all rows.
    sources: jax.Array | None = None  # [B, P]


def cache_dtype(execution: Execution) -> DTypeLike:
    """Dtype of the keys and values in the cache."""
    return execution.dtype if execution.cache_dtype is None else execution.cache_dtype


def init_cache(config: LlamaConfig, execution: Execution, batch: int, slots: int) -> KVCache:
    """An empty cache of `slots` tokens for each of `batch` rows."""
    dtype = cache_dtype(execution)
    shape = (batch, config.num_kv_heads, slots, config.head_dim)

    def zeros() -> jax.Array | tuple[jax.Array, ...]:
        if execution.scan_layers:
            return jnp.zeros((config.depth, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.depth))

    table = jnp.zeros((batch, slots), jnp.int32)
    return KVCache(
        k=zeros(),
        v=zeros(),
        positions=table,
        segment_ids=table,
        length=jnp.zeros((), jnp.int32),
    )


class _LayerInputs(NamedTuple):
    """Inputs of one forward pass that are the same for all layers."""

    angles: jax.Array  # [B, T, H/2]
    positions: jax.Array  # [B, T]
    segment_ids: jax.Array  # [B, T]
    # Only with a cache; without one, attention is causal inside each segment.
    rotation: Rotation | None = None  # cosines and sines of the angles
    mask: jax.Array | None = None  # [B, T, S]
    offset: jax.Array | int = 0  # first slot of the cache that new keys are written to
    sources: jax.Array | None = None  # that of the cache
    prefix_mask: jax.Array | None = None  # [R, P]


class Attention(nn.Module):
    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, cache: tuple | None, shared: _LayerInputs) -> tuple[jax.Array, tuple | None]:
        c, execution = self.config, self.execution
        batch, length, _ = x.shape

        def project(name: str, heads: int, axis: str) -> jax.Array:
            y = _linear(c, execution.dtype, heads * c.head_dim, ("embed", axis), name)(x)
            return y.reshape(batch, length, heads, c.head_dim)

        q = project("q_proj", c.num_heads, "heads")
        k, v = (project(name, c.num_kv_heads, "kv_heads") for name in ("k_proj", "v_proj"))
        if cache is None:
            context = attend_packed(q, k, v, shared.angles, shared.positions, shared.segment_ids, execution.attention)
        else:
            assert shared.rotation is not None
            q, k = apply_rotation(q, shared.rotation), apply_rotation(k, shared.rotation)
            context, cache = _attend_cached(q, k, v, cache, shared, execution.matmul_backend)
        context = context.reshape(batch, length, c.num_heads * c.head_dim)
        attended = _linear(c, execution.dtype, c.width, ("heads", "embed"), "o_proj")(context)
        return checkpoint_name(attended, "attended"), cache


def _attend_cached(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple, shared: _LayerInputs, matmul_backend: str
) -> tuple[jax.Array, tuple]:
    """Returns the context [B, T, N, H], and the cached keys and values with the new ones written to them."""
    old_k, old_v, prefix = cache
    new_k, new_v = (
        _write(old, new.swapaxes(1, 2), shared.offset, shared.sources, axis=2) for old, new in ((old_k, k), (old_v, v))
    )
    before = None
    if prefix is not None:
        assert shared.prefix_mask is not None
        before = SharedPrefix(prefix[0], prefix[1], shared.prefix_mask)
    assert shared.mask is not None
    written = shared.offset + (q.shape[1] if shared.sources is None else shared.sources.shape[1])
    return attend_cached(q, new_k, new_v, shared.mask, before, matmul_backend, written), (new_k, new_v)


def _write(array: Any, values: jax.Array, offset: jax.Array | int, sources: jax.Array | None, axis: int) -> Any:
    """An array of a cache, or its view, with the values of new tokens; for `sources` see `KVCache`."""
    if sources is None:
        return write_slice(array, values, offset, axis)
    return write_places(array, values, offset, sources, axis)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, execution = self.config, self.execution

        def widen(name: str) -> jax.Array:
            y = _linear(c, execution.dtype, c.mlp_dim, ("embed", "mlp"), name)(x)
            return checkpoint_name(fusion_barrier(y, execution.fusion_barriers), name)

        hidden = fusion_barrier(nn.silu(widen("gate_proj")) * widen("up_proj"), execution.fusion_barriers)
        return _linear(c, execution.dtype, c.width, ("mlp", "embed"), "down_proj")(hidden)


class Block(nn.Module):
    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, cache: tuple | None, shared: _LayerInputs) -> tuple[jax.Array, tuple | None]:
        c, execution = self.config, self.execution

        def norm(name: str, x: jax.Array) -> jax.Array:
            return gradient_fusion_barrier(RMSNorm(c.norm_eps, name=name)(x), execution.fusion_barriers)

        context, cache = Attention(c, execution, name="attention")(norm("input_norm", x), cache, shared)
        x = x + context
        x = x + MLP(c, execution, name="mlp")(norm("mlp_norm", x))
        return x, cache


class DecoderStack(nn.Module):
    """All layers and the final norm."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: Any, shared: _LayerInputs, final_norm: bool = True
    ) -> tuple[jax.Array, Any]:
        x, per_layer = run_layers(self, Block, self.config, self.config.depth, self.execution, x, per_layer, shared)
        return RMSNorm(self.config.norm_eps, name="norm")(x) if final_norm else x, per_layer


class Llama(nn.Module):
    """Embedding table, layers and text head as three methods, so that Janus can put images between them."""

    config: LlamaConfig
    execution: Execution

    def setup(self):
        c = self.config
        self.embed_tokens = self.param(
            "embed_tokens", declare(Normal(c.init_std), ("token_rows", "token_columns")), (c.vocab_size, c.width)
        )
        self.decoder = DecoderStack(c, self.execution)
        self.lm_head = text_head(c, self.execution.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """[B, T] int32 -> [B, T, D]."""
        if self.execution.scan_in_place:
            return look_up(self.embed_tokens, tokens).astype(self.execution.dtype)
        return jnp.take(self.embed_tokens, tokens, axis=0).astype(self.execution.dtype)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: KVCache | None = None,
        prefix: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Embeddings to hidden states after the final norm.

        Args:
            x: [B, T, D] embeddings.
            positions: [B, T] position of each token inside its segment.
            segment_ids: [B, T] segment of each token; 0 is padding. Tokens see only their own segment.
            cache: keys and values of earlier tokens. The T new ones are written behind them and see them; `KVCache`
                says where its rows are of different length.
            prefix: keys and values before those of the cache, with R rows. Row b of the cache follows row b // (B / R).

        Returns:
            hidden [B, T, D], and the cache with T more tokens (None without a cache).
        """
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        if cache is None:
            hidden, _ = self.decoder(x, None, _LayerInputs(angles, positions, segment_ids))
            return hidden, None
        sources = cache.sources
        kv_positions = _write(cache.positions, positions, cache.length, sources, axis=1)
        kv_segment_ids = _write(cache.segment_ids, segment_ids, cache.length, sources, axis=1)
        mask = attention_mask(segment_ids, kv_segment_ids, positions, kv_positions, causal=True)
        scanned = self.execution.scan_layers
        prefix_mask = None if prefix is None else prefix.segment_ids > 0
        before = None if prefix is None else (prefix.k, prefix.v)
        per_layer: Any = (cache.k, cache.v, before)
        if not scanned:
            befores = [None] * len(cache.k) if prefix is None else zip(prefix.k, prefix.v, strict=True)
            per_layer = tuple(zip(cache.k, cache.v, befores, strict=True))
        rotation = rotation_once(angles)
        shared = _LayerInputs(angles, positions, segment_ids, rotation, mask, cache.length, sources, prefix_mask)
        hidden, new = self.decoder(x, per_layer, shared)
        k, v = new[:2] if scanned else zip(*new, strict=True)
        return hidden, KVCache(k, v, kv_positions, kv_segment_ids, cache.length + x.shape[1])

    def blocks(self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D] without the final norm.

        The alignment loss of JanusFlow runs the layers in two parts, to read the features in between.
        """
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        return self.decoder(x, None, _LayerInputs(angles, positions, segment_ids), final_norm=False)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] text logits."""
        return self.lm_head(hidden)


def text_head(config: LlamaConfig, dtype: DTypeLike) -> Linear:
    """The text head, [..., D] -> [..., V]."""
    return _linear(config, dtype, config.vocab_size, ("embed", "vocab"))


def _linear(config: LlamaConfig, dtype: DTypeLike, features: int, axes: Axes, name: str | None = None) -> Linear:
    return Linear(features, axes, dtype, use_bias=False, distribution=Normal(config.init_std), name=name)
