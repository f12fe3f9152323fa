"""Janus with its encoders and tasks as choices: the arms of the paper's ablation (Janus, section 4.3, Table 5).

    understanding: pixels -> encoder -> aligner ---------------------.
                   pixels -> VQ -> codes -> gen_aligner (shared) ----+-> LLM -> text head | image head
    generation:    pixels -> VQ -> codes -> gen_aligner -------------'

Between codes and `gen_aligner` there is a table, as in Janus, or the semantic decoder (appendix A), frozen or trained
as a run says. Modules that a choice leaves out have no parameters. Those of Janus have the same paths as there.

Letters: B rows, L tokens, I understanding images per row, N tokens per image, D width, C codes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from janus_jax.batches import Modality
from janus_jax.models.adapters import ImageHead, MlpAligner
from janus_jax.models.config import JanusVariantConfig
from janus_jax.models.encoders import build_encoder, encoder_name
from janus_jax.models.initializers import Normal, declare
from janus_jax.models.janus import Janus, place_images
from janus_jax.models.llama import Llama
from janus_jax.models.semantic_tokenizer import SemanticCache, SemanticDecoder, empty_semantic_cache
from janus_jax.models.vq import VQModel
from janus_jax.ops.codebook import lookup_codes
from janus_jax.ops.scatter_tokens import place_in_order, take_in_order


class JanusVariant(Janus):
    """The whole model: `Janus` with other modules and other inputs of the LLM."""

    config: JanusVariantConfig  # type: ignore[assignment]

    def setup(self):
        c, execution, width = self.config, self.execution, self.config.llama.width
        if c.encoder:
            setattr(self, encoder_name(c.encoder), build_encoder(c.encoder, execution))
        if c.has_aligner:
            self.aligner = MlpAligner(width, c.aligner_depth, execution.dtype, in_axis=self._code_axis(c.reads_codes))
        if c.vq:
            # In bfloat16, rounding would change the codes that the model reads.
            self.vq = VQModel(c.vq, dataclasses.replace(execution, dtype=jnp.float32))
        if c.semantic and c.vq:
            self.semantic = SemanticDecoder(c.semantic, c.vq.num_tokens, execution)
        elif c.vq:
            codes = (c.vq.num_codes, c.vq.code_dim)
            self.gen_embed = self.param("gen_embed", declare(Normal(1.0), ("codes", None)), codes)
        if c.generates or (c.reads_codes and c.shared_aligner):
            self.gen_aligner = MlpAligner(width, c.gen_aligner_depth, execution.dtype, in_axis=self._code_axis(True))
        if c.generates and c.vq:
            self.gen_head = ImageHead(c.image_head_width, c.vq.num_codes, execution.dtype)
        self.llm = Llama(c.llama, execution)

    def _code_axis(self, of_codes: bool) -> str | None:
        """Logical axis of an adaptor's input: vectors of a table are only a few numbers wide."""
        return None if of_codes and not self.config.semantic else "embed"

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """Understanding images in [-1, 1] [B, image, image, 3] -> LLM inputs [B, N, D]."""
        if self.config.encoder:
            return self.aligner(getattr(self, encoder_name(self.config.encoder))(pixels))
        features, _ = self._code_features(self.vq.encode(pixels.astype(jnp.float32)), None)
        return self.aligner(features) if self.config.has_aligner else self.gen_aligner(features)

    def embed_codes(self, codes: jax.Array) -> jax.Array:
        """Image codes [B, T], the first ones of each image -> LLM inputs [B, T, D]."""
        return self.gen_aligner(self._code_features(codes, None)[0])

    def embed_next_codes(self, codes: jax.Array, cache: SemanticCache) -> tuple[jax.Array, SemanticCache | None]:
        """The same for codes that follow those in the cache of the semantic decoder."""
        features, cache_after = self._code_features(codes, cache)
        return self.gen_aligner(features), cache_after

    def empty_cache(self, images: int) -> SemanticCache | None:
        """The cache of the semantic decoder before the first code; None for a model that needs none."""
        c = self.config
        if not (c.semantic and c.vq):
            return None
        return empty_semantic_cache(c.semantic, c.vq.num_tokens, self.execution, images)

    def _code_features(self, codes: jax.Array, cache: SemanticCache | None) -> tuple[jax.Array, SemanticCache | None]:
        if not self.config.semantic:
            return jnp.take(self.gen_embed, codes, axis=0), None
        return self.semantic(lookup_codes(codes, self.vq.codebook), cache)

    def embed(self, tokens: jax.Array, modality: jax.Array, pixels: jax.Array | None = None) -> jax.Array:
        """Rows of mixed modalities -> LLM inputs [B, L, D]; see `Janus.embed`."""
        x = self.embed_text(jnp.where(modality == Modality.TEXT, tokens, 0))
        if self.config.generates:
            x = self._place_generated(x, tokens, modality == Modality.GENERATION_IMAGE)
        return place_images(x, modality, pixels, self.embed_images)

    def _place_generated(self, x: jax.Array, tokens: jax.Array, is_code: jax.Array) -> jax.Array:
        """Puts the embeddings of generation images, which rows hold whole, at their positions of x [B, L, D].

        The semantic decoder runs over as many images as a row has room for.
        """
        codes = jnp.where(is_code, tokens, 0)
        if not self.config.semantic:
            return jnp.where(is_code[..., None], self.embed_codes(codes), x)
        (rows, length), size = tokens.shape, self.config.image_tokens
        images = length // size
        if not images:
            return x
        codes = take_in_order(codes, is_code, images * size)
        embedded = self.embed_codes(codes.reshape(rows * images, size))
        return place_in_order(x, is_code, embedded.reshape(rows, images * size, -1))

    def init_all(self) -> None:
        """Runs every submodule, because linen creates only the parameters of those that run."""
        c = self.config
        positions = jnp.zeros((1, 1), jnp.int32)
        x = self.embed_text(positions)
        hidden, _ = self(x, positions, positions)
        self.text_logits(hidden)
        if c.understands:
            size = c.understanding.image_size
            self.embed_images(jnp.zeros((1, size, size, 3)))
        if c.generates:
            self.embed_codes(positions), self.image_logits(hidden)
        if c.vq:
            self.vq.init_all()
