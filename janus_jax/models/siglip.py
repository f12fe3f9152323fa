"""SigLIP vision transformer: the understanding encoder (Janus, section 3.1). No class token, no pooling head.

Letters: B images, P patches, N heads, H head dim, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.config import SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Normal, declare
from janus_jax.models.layers import ACTIVATIONS, Conv, Linear, layer_norm
from janus_jax.models.metric_config import ClipTowerConfig
from janus_jax.models.scan_layers import run_layers
from janus_jax.ops.attention import attend


class Block(nn.Module):
    """Pre-norm transformer block with biases in all linear layers, which CLIP has too."""

    config: SiglipConfig | ClipTowerConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, per_layer: None, mask: jax.Array | None) -> tuple[jax.Array, None]:
        """[B, P, D] -> [B, P, D].

        Args:
            mask: [B, P, P] bool, True where a token may see another; None means that all are visible (SigLIP).
        """
        c, dtype = self.config, self.execution.dtype
        y = layer_norm(c.norm_eps, dtype, "attention_norm")(x)
        q, k, v = (
            Linear(c.width, ("embed", "heads"), dtype, name=name)(y).reshape(*y.shape[:2], c.num_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        x = x + Linear(c.width, ("heads", "embed"), dtype, name="o_proj")(attend(q, k, v, mask).reshape(x.shape))
        y = layer_norm(c.norm_eps, dtype, "mlp_norm")(x)
        y = ACTIVATIONS[c.activation](Linear(c.mlp_dim, ("embed", "mlp"), dtype, name="fc1")(y))
        return x + Linear(c.width, ("mlp", "embed"), dtype, name="fc2")(y), None


class Siglip(nn.Module):
    """Pixels in [-1, 1] [B, image, image, 3] -> features of all patches after the final norm [B, P, D], row by row."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        c, dtype = self.config, self.execution.dtype
        expected = (c.image_size, c.image_size, 3)
        if pixels.shape[1:] != expected:
            raise ValueError(f"SigLIP got pixels of shape {pixels.shape}, expected [B, *{expected}]")
        patch_axes = (None, None, None, "embed")
        x = Conv(c.width, c.patch_size, dtype, stride=c.patch_size, axes=patch_axes, name="patch_embed")(pixels)
        x = x.reshape(x.shape[0], c.num_tokens, c.width)
        # The standard deviation is that of SigLIP's own code; Janus' code has 0.02, which is similar for width 1024.
        init = declare(Normal(c.width**-0.5), (None, "embed"))
        pos_embed = self.param("pos_embed", init, (c.num_tokens, c.width))
        x = x + pos_embed.astype(dtype)
        x, _ = run_layers(self, Block, c, c.depth, self.execution, x, None, None)
        return layer_norm(c.norm_eps, dtype, "norm")(x)

    def init_all(self) -> None:
        """Runs every submodule, on one image."""
        self(jnp.zeros((1, self.config.image_size, self.config.image_size, 3)))
