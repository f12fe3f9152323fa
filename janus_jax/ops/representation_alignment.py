"""Representation alignment, REPA (Yu et al., 2024; JanusFlow, section 3.4).

Letters: B images, N tokens per image, D width.
"""

import math

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


def on_coarser_grid(values: Float[Array, "B N D"], num_tokens: int) -> Float[Array, "B M D"]:
    """Averages a square grid of N tokens over the cells of a square grid of M = `num_tokens` tokens.

    The side of the finer grid must be a multiple of that of the coarser one. With M = N the values are the same.
    """
    images, fine, coarse = len(values), math.isqrt(values.shape[1]), math.isqrt(num_tokens)
    cells = values.reshape(images, coarse, fine // coarse, coarse, fine // coarse, -1)
    return jnp.mean(cells, axis=(2, 4)).reshape(images, num_tokens, -1)


def _inverse_norm(x: Array) -> Array:
    """1 / max(|x|, 1e-8) as in PyTorch's cosine similarity, with a finite gradient at zero."""
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), 1e-16))
