"""Representation alignment, REPA (Yu et al., 2024; JanusFlow, section 3.4).

Letters: B images, N tokens per image, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def alignment_loss(predicted: Float[Array, "B N D"], features: Float[Array, "B N D"]) -> Float[Array, " B"]:
    """Minus the cosine similarity, averaged over the tokens of each image, in float32.

    Args:
        predicted: projected features that the LLM has for the noisy latents.
        features: features that the understanding encoder has for the clean image. They get no gradient.
    """
    predicted, features = predicted.astype(jnp.float32), jax.lax.stop_gradient(features.astype(jnp.float32))
    similarity = jnp.sum(predicted * features, axis=-1) * _inverse_norm(predicted) * _inverse_norm(features)
    return -jnp.mean(similarity, axis=-1)


def _inverse_norm(x: Array) -> Array:
    """1 / max(|x|, 1e-8) as in PyTorch's cosine similarity, with a finite gradient at zero."""
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), 1e-16))
