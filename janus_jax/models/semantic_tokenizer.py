"""The semantic tokenizer (Janus, appendix A): codes that are decoded to pixels, and to the features of a SigLIP.

The semantic decoder is a causal transformer behind the quantiser, so that the features of a code do not depend on later
ones: while an image is generated, each new code passes it once, with a KV cache of its own. The paper does not state
the input layer, the positions and the head; they are those of BEiT v2 where it has them.

Letters: B images, T codes, S cache slots, Q code dim, N heads, H head dim, D width, E width of the teacher's features.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.config import SemanticDecoderConfig, SemanticTokenizerConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Axes, Normal, declare
from janus_jax.models.layers import Linear, gelu, layer_norm
from janus_jax.models.scan_layers import run_layers
from janus_jax.models.vq import VQModel, VQOutput
from janus_jax.ops.attention import attend
from janus_jax.ops.codebook import lookup_codes, straight_through
from janus_jax.ops.layer_view import values_of, write_slice

_FRESH = Normal(0.02)  # as BEiT v2


class SemanticCache(NamedTuple):
    """Keys and values of the codes so far. An explicit input and output of the model, never hidden state."""

    k: Any  # [layers, B, S, N, H]; a tuple with [B, S, N, H] of each layer where layers are not scanned
    v: Any  # the same shape
    length: jax.Array  # scalar, number of slots written so far


class SemanticOutput(NamedTuple):
    """What training needs of images that went through the codes."""

    vq: VQOutput
    features: jax.Array  # [B, T, D], what a language model would see
    predicted: jax.Array  # [B, T, E], to be compared with the features of the teacher


class _LayerInputs(NamedTuple):
    mask: jax.Array  # [B, T, S], true where a code sees another
    offset: jax.Array  # place of the first code in the image, and its slot in a cache


class CausalBlock(nn.Module):
    """Pre-norm transformer block like SigLIP's, in which a code sees itself and those before it."""

    config: SemanticDecoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, cache: tuple | None, shared: _LayerInputs) -> tuple[jax.Array, tuple | None]:
        c, dtype = self.config, self.execution.dtype
        y = layer_norm(c.norm_eps, dtype, "attention_norm")(x)
        q, k, v = (
            _linear(c.width, ("embed", "heads"), dtype, name)(y).reshape(*y.shape[:2], c.num_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if cache is not None:
            cache = tuple(write_slice(old, new, shared.offset, axis=1) for old, new in zip(cache, (k, v), strict=True))
            k, v = map(values_of, cache)
        context = attend(q, k, v, shared.mask).reshape(x.shape)
        x = x + _linear(c.width, ("heads", "embed"), dtype, "o_proj")(context)
        y = layer_norm(c.norm_eps, dtype, "mlp_norm")(x)
        y = gelu(_linear(c.mlp_dim, ("embed", "mlp"), dtype, "fc1")(y))
        return x + _linear(c.width, ("mlp", "embed"), dtype, "fc2")(y), cache


class SemanticDecoder(nn.Module):
    """Vectors of codes -> semantic features."""

    config: SemanticDecoderConfig
    num_tokens: int
    execution: Execution

    @nn.compact
    def __call__(self, codes: jax.Array, cache: SemanticCache | None) -> tuple[jax.Array, SemanticCache | None]:
        """[B, T, Q] -> [B, T, D], and the cache with T more codes.

        Without a cache the codes are the first ones of an image, row by row; with one they follow those in the cache.
        """
        c, dtype = self.config, self.execution.dtype
        batch, length, _ = codes.shape
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        positions = self.param("pos_embed", declare(_FRESH, (None, "embed")), (self.num_tokens, c.width))
        x = _linear(c.width, (None, "embed"), dtype, "input")(codes)
        x = x + jax.lax.dynamic_slice_in_dim(positions, start, length).astype(dtype)
        slots = length if cache is None else jax.tree.leaves(cache.k)[0].shape[-3]
        visible = jnp.arange(slots) <= start + jnp.arange(length)[:, None]
        shared = _LayerInputs(jnp.broadcast_to(visible, (batch, length, slots)), start)
        per_layer: Any = None
        if cache is not None:
            per_layer = (cache.k, cache.v) if self.execution.scan_layers else list(zip(cache.k, cache.v, strict=True))
        x, new = run_layers(self, CausalBlock, c, c.depth, self.execution, x, per_layer, shared)
        if cache is not None:
            k, v = new if self.execution.scan_layers else zip(*new, strict=True)
            cache = SemanticCache(k, v, cache.length + length)
        return layer_norm(c.norm_eps, dtype, "norm")(x), cache


class FeatureHead(nn.Module):
    """Semantic features [..., D] -> the teacher's width [..., E]; the same layers as in BEiT v2."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(_linear(x.shape[-1], ("embed", "mlp"), self.dtype, "hidden")(x))
        return _linear(self.features, ("mlp", "embed"), self.dtype, "output")(hidden)


class SemanticTokenizer(nn.Module):
    """Image tokenizer: pixels <-> codes -> semantic features. Its module `vq` is a whole tokenizer of its own."""

    config: SemanticTokenizerConfig
    execution: Execution

    def setup(self):
        c = self.config
        self.vq = VQModel(c.vq, self.execution)
        self.semantic = SemanticDecoder(c.decoder, c.vq.num_tokens, self.execution)
        self.head = FeatureHead(c.teacher.width, self.execution.dtype)

    def encode(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> codes [B, T] int32, row by row."""
        return self.vq.encode(pixels)

    def decode(self, codes: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
        """Codes [B, T] -> pixels [B, H, W, 3]."""
        return self.vq.decode(codes, grid)

    def features(self, codes: jax.Array, cache: SemanticCache | None = None) -> tuple[jax.Array, SemanticCache | None]:
        """Codes [B, T] -> semantic features [B, T, D], and the cache with T more codes; see `SemanticDecoder`."""
        return self.semantic(lookup_codes(codes, self.vq.codebook), cache)

    def __call__(self, pixels: jax.Array) -> SemanticOutput:
        """Reconstruction and features through the straight-through estimator, for training.

        The gradient of the features reaches the encoder, but not the codebook.
        """
        output = self.vq(pixels)
        codes = straight_through(output.latents, output.quantized)
        features, _ = self.semantic(codes.reshape(len(pixels), -1, codes.shape[-1]), None)
        return SemanticOutput(output, features, self.head(features))

    def init_all(self) -> None:
        """Runs every submodule, on the pixels of one code."""
        side = self.config.vq.downsampling
        self(jnp.zeros((1, side, side, 3)))


def init_semantic_cache(config: SemanticTokenizerConfig, dtype: DTypeLike, batch: int) -> SemanticCache:
    """An empty cache for all codes of an image, for each of `batch` images."""
    return empty_semantic_cache(config.decoder, config.vq.num_tokens, Execution(dtype=dtype), batch)


def empty_semantic_cache(
    config: SemanticDecoderConfig, num_tokens: int, execution: Execution, batch: int
) -> SemanticCache:
    """An empty cache for `num_tokens` codes of each of `batch` images, in the layout of the execution's layers."""
    shape = (batch, num_tokens, config.num_heads, config.width // config.num_heads)
    if execution.scan_layers:
        empty: Any = jnp.zeros((config.depth, *shape), execution.dtype)
    else:
        empty = tuple(jnp.zeros(shape, execution.dtype) for _ in range(config.depth))
    return SemanticCache(empty, empty, jnp.zeros((), jnp.int32))


def _linear(features: int, axes: Axes, dtype: DTypeLike, name: str) -> Linear:
    return Linear(features, axes, dtype, distribution=_FRESH, name=name)
