"""CLIP (Radford et al., 2021) as transformers' CLIPModel computes it, on SigLIP's blocks. It measures, it never trains.

Letters: B images or texts, T tokens, D width, E width of the common space.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Constant, Normal, declare
from janus_jax.models.layers import Conv, Linear, layer_norm
from janus_jax.models.metric_config import ClipConfig
from janus_jax.models.scan_layers import run_layers
from janus_jax.models.siglip import Block

_EMBED = declare(Normal(0.02), (None, "embed"))
_LOGIT_SCALE = declare(Constant(2.6592), ())  # log(1 / 0.07), the paper's first temperature


class VisionTower(nn.Module):
    """Normalised pixels [B, image, image, 3] -> the class token after the last norm [B, D]."""

    config: ClipConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        c, tower, dtype = self.config, self.config.vision, self.execution.dtype
        expected = (c.image_size, c.image_size, 3)
        if pixels.shape[1:] != expected:
            raise ValueError(f"CLIP got pixels of shape {pixels.shape}, expected [B, *{expected}]")
        patch_axes = (None, None, None, "embed")
        patch_embed = Conv(
            tower.width, c.patch_size, dtype, stride=c.patch_size, axes=patch_axes, use_bias=False, name="patch_embed"
        )
        patches = patch_embed(pixels).reshape(len(pixels), -1, tower.width)
        class_embed = self.param("class_embed", declare(Normal(tower.width**-0.5), ("embed",)), (tower.width,))
        class_token = jnp.broadcast_to(class_embed.astype(dtype), (len(pixels), 1, tower.width))
        x = jnp.concatenate([class_token, patches], axis=1)
        x = x + self.param("pos_embed", _EMBED, (c.num_tokens, tower.width)).astype(dtype)
        x = layer_norm(tower.norm_eps, dtype, "pre_norm")(x)
        x, _ = run_layers(self, Block, tower, tower.depth, self.execution, x, None, None)
        return layer_norm(tower.norm_eps, dtype, "norm")(x[:, 0])


class TextTower(nn.Module):
    """Token ids [B, T] -> the last token of each text after the last norm [B, D]; each token sees those before it."""

    config: ClipConfig
    execution: Execution

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        c, tower, dtype = self.config, self.config.text, self.execution.dtype
        batch, length = ids.shape
        embed = self.param("token_embed", _EMBED, (c.vocab_size, tower.width))
        positions = self.param("pos_embed", _EMBED, (c.max_length, tower.width))
        x = embed.astype(dtype)[ids] + positions[:length].astype(dtype)
        causal = jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length))
        x, _ = run_layers(self, Block, tower, tower.depth, self.execution, x, None, causal)
        # Padding after the end of a text is never seen by its end.
        end = jnp.argmax(ids if c.end_id is None else ids == c.end_id, axis=-1)
        return layer_norm(tower.norm_eps, dtype, "norm")(x[jnp.arange(batch), end])


class Clip(nn.Module):
    """Embeds images and texts. The embeddings are not normalised."""

    config: ClipConfig
    execution: Execution

    def setup(self):
        c, dtype = self.config, self.execution.dtype
        self.vision = VisionTower(c, self.execution)
        self.text = TextTower(c, self.execution)
        self.vision_projection = Linear(c.embed_dim, ("embed", None), dtype, use_bias=False)
        self.text_projection = Linear(c.embed_dim, ("embed", None), dtype, use_bias=False)
        self.logit_scale = self.param("logit_scale", _LOGIT_SCALE, ())

    def encode_images(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [B, image, image, 3] -> [B, E]."""
        return self.vision_projection(self.vision(pixels))

    def encode_texts(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, T], T up to `config.max_length`, each text with its start and its end -> [B, E]."""
        return self.text_projection(self.text(ids))

    def init_all(self) -> None:
        """Runs every submodule, on one image and one text."""
        self.encode_images(jnp.zeros((1, self.config.image_size, self.config.image_size, 3)))
        self.encode_texts(jnp.zeros((1, 1), jnp.int32))
