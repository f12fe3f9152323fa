"""The small modules between the encoders, the LLM and the image head (Janus, section 3.1)."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from janus_jax.models.layers import Linear, gelu


class MlpAligner(nn.Module):
    """Encoder features -> LLM inputs: a linear layer, then depth - 1 times GELU and a linear layer ("mlp_gelu")."""

    width: int
    depth: int
    dtype: DTypeLike
    in_axis: str | None = "embed"  # logical axis of the input; None for codes, which are only 8 wide

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            axes = ("mlp", "embed") if i else (self.in_axis, "mlp")
            x = Linear(self.width, axes, self.dtype, name=f"linear_{i}")(gelu(x) if i else x)
        return x


class ImageHead(nn.Module):
    """LLM hidden state [..., D] -> logits over the image codes [..., C]."""

    width: int
    num_codes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = gelu(Linear(self.width, ("embed", "mlp"), self.dtype, name="proj")(hidden))
        return Linear(self.num_codes, ("embed", "codes"), self.dtype, name="codes")(hidden)


class AlignmentHead(nn.Module):
    """LLM features [..., D] -> SigLIP features [..., E] by three linear layers (JanusFlow, section 3.4).

    Between them is SiLU, as in REPA's own code; the paper of JanusFlow does not say which activation it uses.
    """

    width: int  # width of the hidden layers
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = jax.nn.silu(Linear(self.width, ("embed", "mlp"), self.dtype, name=f"linear_{i}")(x))
        return Linear(self.features, ("embed", None), self.dtype, name="linear_2")(x)
