"""JanusFlow: the LLM of Janus, which generates images by rectified flow instead of codes.

This module only wires the parts, which are modules of their own:

    understanding: pixels -> SigLIP -> aligner ----------.
    text:          tokens -> embedding ------------------+-> LLM -> text head | norm, aligner -> decoder -> velocity
    generation:    time, latents -> encoder -> aligner --'                                         ^
                                       '---------------------- long skip, time --------------------'

Letters: B rows, L tokens, I understanding images per row, N tokens per image, D width, H W latents, Z their channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.batches import Modality
from janus_jax.models.adapters import AlignmentHead
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Constant, declare
from janus_jax.models.layers import Linear, RMSNorm
from janus_jax.models.llama import KVCache, Llama
from janus_jax.models.siglip import Siglip
from janus_jax.models.uvit import Encoded, UViTDecoder, UViTEncoder
from janus_jax.ops.scatter_tokens import place_in_order


class JanusFlow(nn.Module):
    """The whole model without its VAE. Its methods are the steps of training and inference."""

    config: JanusFlowConfig
    execution: Execution

    def setup(self):
        c, dtype = self.config, self.execution.dtype
        self.siglip = Siglip(c.siglip, self.execution)
        self.aligner = Linear(c.llama.width, (None, "embed"), dtype)
        # This vector takes the place of <begin_of_image> in front of an understanding image.
        self.begin_of_understanding = self.param(
            "begin_of_understanding", declare(Constant(0.0), (None, "embed")), (1, c.llama.width)
        )
        self.gen_encoder = UViTEncoder(c.uvit, dtype)
        self.gen_aligner = Linear(c.llama.width, (None, "embed"), dtype)
        self.gen_decoder_norm = RMSNorm(c.llama.norm_eps)
        self.gen_decoder_aligner = Linear(c.uvit.width, ("embed", None), dtype)
        self.gen_decoder = UViTDecoder(c.uvit, dtype)
        self.llm = Llama(c.llama, self.execution)
        if c.alignment:
            self.alignment_head = AlignmentHead(c.alignment.width, c.siglip.width, dtype)

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """Text ids [B, L] -> [B, L, D]."""
        return self.llm.embed(tokens)

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """Understanding images in [-1, 1] [B, image, image, 3] -> LLM inputs [B, 1 + N, D], the begin vector first."""
        features = self.aligner(self.siglip(pixels))
        begin = jnp.broadcast_to(
            self.begin_of_understanding.astype(features.dtype), (len(features), 1, features.shape[2])
        )
        return jnp.concatenate([begin, features], axis=1)

    def embed(self, tokens: jax.Array, modality: jax.Array, pixels: jax.Array | None = None) -> jax.Array:
        """Rows of text and understanding images -> LLM inputs [B, L, D].

        Args:
            tokens: [B, L] text ids; ignored at understanding positions.
            modality: [B, L] `Modality` of each position. An understanding image has 1 + N positions, since its
                <begin_of_image> is one of them.
            pixels: [B, I, image, image, 3] in [-1, 1], understanding images in the order of their positions.
        """
        x = self.embed_text(jnp.where(modality == Modality.TEXT, tokens, 0))
        if pixels is None or pixels.shape[1] == 0:
            return x
        rows, images = pixels.shape[:2]
        features = self.embed_images(pixels.reshape(rows * images, *pixels.shape[2:]))
        features = features.reshape(rows, images * features.shape[1], -1)  # [B, I * (1 + N), D]
        return place_in_order(x, modality == Modality.UNDERSTANDING_IMAGE, features)

    def encode_latents(self, latents: jax.Array, time: jax.Array) -> Encoded:
        """Noisy latents [B, H, W, Z] and times in [0, 1000) [B] -> features of their tokens and of the time."""
        return self.gen_encoder(latents, time)

    def understand(self, pixels: jax.Array) -> jax.Array:
        """SigLIP's features of images in [-1, 1] [B, image, image, 3] -> [B, N, SigLIP's D]."""
        return self.siglip(pixels)

    def embed_latents(self, encoded: Encoded) -> jax.Array:
        """LLM inputs [B, 1 + N, D]: the time, which replaces the last token of the prompt, then the latents."""
        features = encoded.features
        tokens = self.gen_aligner(features.reshape(len(features), -1, features.shape[-1]))
        return jnp.concatenate([encoded.time_embedding[:, None], tokens], axis=1)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: KVCache | None = None,
        prefix: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """LLM inputs [B, L, D] -> hidden states after the final norm, which all heads read; see `Llama`."""
        return self.llm(x, positions, segment_ids, cache, prefix)

    def blocks(self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """LLM inputs [B, L, D] -> features after all layers, before the final norm; see `Llama.blocks`."""
        return self.llm.blocks(x, positions, segment_ids)

    def align(self, features: jax.Array) -> jax.Array:
        """Features of latent tokens [B, N, D] -> prediction of SigLIP's features of them, [B, N, SigLIP's D]."""
        return self.alignment_head(features)

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V]."""
        return self.llm.logits(hidden)

    def velocity(self, hidden: jax.Array, encoded: Encoded) -> jax.Array:
        """Hidden states of the N latent tokens [B, N, D] -> velocity [B, H, W, Z] float32."""
        x = self.gen_decoder_aligner(self.gen_decoder_norm(hidden))
        return self.gen_decoder(x.reshape(encoded.features.shape), encoded)

    def init_all(self) -> None:
        """Runs every submodule, because linen creates only the parameters of those that run."""
        size, uvit = self.config.siglip.image_size, self.config.uvit
        positions = jnp.zeros((1, 1), jnp.int32)
        modality = jnp.full((1, 1), Modality.UNDERSTANDING_IMAGE)
        x = self.embed(positions, modality, jnp.zeros((1, 1, size, size, 3)))
        hidden, _ = self(x, positions, modality)
        self.text_logits(hidden)
        latents = jnp.zeros((1, uvit.patch_size, uvit.patch_size, uvit.latent_channels))
        encoded = self.encode_latents(latents, jnp.zeros(1))
        self.velocity(self.embed_latents(encoded)[:, 1:], encoded)
        if self.config.alignment:
            self.align(x)
