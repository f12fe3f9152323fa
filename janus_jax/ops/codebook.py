"""Vector quantisation with l2-normalised codes (LlamaGen, section 2.1; `VectorQuantizer` of the reference).

Letters: Q code dim, C number of codes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def l2_normalize(x: Float[Array, "*B Q"]) -> Float[Array, "*B Q"]:
    """x / max(|x|, 1e-12) over the last axis, in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def nearest_codes(latents: Float[Array, "*B Q"], codebook: Float[Array, "C Q"]) -> Int[Array, "*B"]:
    """Index of the code with the largest cosine similarity, which is also the nearest normalised code.

    Latents *and* codebook are normalised, as in the original. Hugging Face's encoder normalises neither, so it chooses
    other codes as soon as the rows of the codebook are not of unit length.
    """
    similarity = jnp.einsum(
        "...Q,CQ->...C", l2_normalize(latents), l2_normalize(codebook), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)


def lookup_codes(codes: Int[Array, "*B"], codebook: Float[Array, "C Q"]) -> Float[Array, "*B Q"]:
    """Rows of the normalised codebook with these ids."""
    return jnp.take(l2_normalize(codebook), codes, axis=0)


def straight_through(latents: Float[Array, "*B Q"], quantized: Float[Array, "*B Q"]) -> Float[Array, "*B Q"]:
    """Returns the value of `quantized`, whose gradient goes to `latents`."""
    return latents + jax.lax.stop_gradient(quantized - latents)
