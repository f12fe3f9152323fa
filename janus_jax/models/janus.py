"""Janus and Janus-Pro: one LLM, one visual encoder for understanding and another for generation.

This module only wires the parts, which are modules of their own:

    understanding: pixels -> SigLIP -> aligner --------.
    text:          tokens -> embedding ----------------+-> LLM -> text head | image head
    generation:    pixels -> VQ -> codes -> gen_aligner'

Letters: B rows, L tokens, I understanding images per row, N tokens per image, D width, C codes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.batches import Modality
from janus_jax.models.adapters import ImageHead, MlpAligner
from janus_jax.models.config import CodeModelConfig, JanusConfig, LlamaConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Normal, declare
from janus_jax.models.llama import KVCache, Llama, text_head
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQModel
from janus_jax.ops.scatter_tokens import place_in_order


class Head(NamedTuple):
    """A head as a function of its own parameters, for losses that differentiate it separately from the model."""

    path: tuple[str, ...]  # path of its parameters in those of the model
    logits: Callable[[Any, jax.Array], Any]  # (parameters, hidden [..., D]) -> [..., classes]

    def params(self, model_params: Any) -> Any:
        """The parameters of the head, from those of the model."""
        return functools.reduce(lambda tree, name: tree[name], self.path, model_params)


def language_head(llama: LlamaConfig, execution: Execution) -> Head:
    """The text head, which all models of the family have."""
    return Head(("llm", "lm_head"), _function(text_head(llama, execution.dtype)))


def janus_heads(config: CodeModelConfig, execution: Execution) -> dict[str, Head]:
    """The text head, and the image head of a model with an image tokenizer."""
    heads = {"text": language_head(config.llama, execution)}
    if config.vq:
        image = ImageHead(config.image_head_width, config.vq.num_codes, execution.dtype)
        heads["image"] = Head(("gen_head",), _function(image))
    return heads


def _function(head: nn.Module) -> Callable[[Any, jax.Array], Any]:
    return lambda params, hidden: head.apply({"params": params}, hidden)


def place_images(
    x: jax.Array, modality: jax.Array, pixels: jax.Array | None, embed_images: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Puts the embeddings of understanding images, if there are any, at their positions of x [B, L, D].

    Args:
        modality: [B, L] `Modality` of each position.
        pixels: [B, I, image, image, 3] in [-1, 1], in the order of their positions.
        embed_images: [B * I, image, image, 3] -> [B * I, N, D].
    """
    if pixels is None or pixels.shape[1] == 0:
        return x
    rows, images = pixels.shape[:2]
    features = embed_images(pixels.reshape(rows * images, *pixels.shape[2:]))
    features = features.reshape(rows, images * features.shape[1], -1)  # [B, I * N, D]
    return place_in_order(x, modality == Modality.UNDERSTANDING_IMAGE, features)


class Janus(nn.Module):
    """The whole model. Its methods are the steps of training and inference."""

    config: JanusConfig
    execution: Execution

    def setup(self):
        c, execution = self.config, self.execution
        self.siglip = Siglip(c.siglip, execution)
        self.aligner = MlpAligner(c.llama.width, c.aligner_depth, execution.dtype)
        self.vq = VQModel(c.vq, execution)
        codes = (c.vq.num_codes, c.vq.code_dim)
        self.gen_embed = self.param("gen_embed", declare(Normal(1.0), ("codes", None)), codes)
        self.gen_aligner = MlpAligner(c.llama.width, c.gen_aligner_depth, execution.dtype, in_axis=None)
        self.gen_head = ImageHead(c.image_head_width, c.vq.num_codes, execution.dtype)
        self.llm = Llama(c.llama, execution)

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """Text ids [B, L] -> [B, L, D]."""
        return self.llm.embed(tokens)

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """Understanding images in [-1, 1] [B, image, image, 3] -> LLM inputs [B, N, D]."""
        return self.aligner(self.siglip(pixels))

    def embed_codes(self, codes: jax.Array) -> jax.Array:
        """Image codes [...] -> LLM inputs [..., D]. The table `gen_embed` is not the codebook of the VQ model."""
        return self.gen_aligner(jnp.take(self.gen_embed, codes, axis=0))

    def embed(self, tokens: jax.Array, modality: jax.Array, pixels: jax.Array | None = None) -> jax.Array:
        """Rows of mixed modalities -> LLM inputs [B, L, D].

        Args:
            tokens: [B, L] text ids, and image codes at generation positions; ignored at understanding positions.
            modality: [B, L] `Modality` of each position.
            pixels: [B, I, image, image, 3] in [-1, 1], understanding images in the order of their positions.
        """
        is_code = modality == Modality.GENERATION_IMAGE
        x = self.embed_text(jnp.where(modality == Modality.TEXT, tokens, 0))
        x = jnp.where(is_code[..., None], self.embed_codes(jnp.where(is_code, tokens, 0)), x)
        return place_images(x, modality, pixels, self.embed_images)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: KVCache | None = None,
        prefix: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """LLM inputs [B, L, D] -> hidden states after the final norm, which both heads read; see `Llama`."""
        return self.llm(x, positions, segment_ids, cache, prefix)

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V]."""
        return self.llm.logits(hidden)

    def image_logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., C]. The hidden state at `<begin_of_image>` predicts code 0, that at code k code k + 1."""
        return self.gen_head(hidden)

    def encode_codes(self, pixels: jax.Array) -> jax.Array:
        """Generation images in [-1, 1] [B, H, W, 3] -> codes [B, N]."""
        return self.vq.encode(pixels)

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N] -> pixels [B, H, W, 3], nominally in [-1, 1]."""
        return self.vq.decode(codes)

    def init_all(self) -> None:
        """Runs every submodule, because linen creates only the parameters of those that run."""
        size = self.config.siglip.image_size
        positions = jnp.zeros((1, 1), jnp.int32)
        modality = jnp.full((1, 1), Modality.UNDERSTANDING_IMAGE)
        x = self.embed(positions, modality, jnp.zeros((1, 1, size, size, 3)))
        hidden, _ = self(x, positions, modality)
        self.text_logits(hidden), self.image_logits(hidden)
        self.vq.init_all()
