"""Choosing the next token: guidance, then temperature, top-k, top-p, then one sample per row.

Letters: B batch, V classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from janus_jax.ops.noinline import noinline

Number = Float[Array, ""] | np.float32 | float


def guide(
    conditional: Float[Array, "*B V"], unconditional: Float[Array, "*B V"], cfg_weight: Float[Array, ""] | float
) -> Float[Array, "*B V"]:
    """Classifier-free guidance l_u + s (l_c - l_u) (Janus, section 3.4), in float32."""
    conditional, unconditional = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    return unconditional + cfg_weight * (conditional - unconditional)


def blend_conditions(
    full: Float[Array, "*B V"], partial: Float[Array, "*B V"], partial_weight: Float[Array, ""] | float
) -> Float[Array, "*B V"]:
    """(l_full + w l_partial) / (1 + w) in float32: what takes the place of l_c in `guide` with condition images.

    Janus-4o (README of ShareGPT-4o-Image, `cfg_weight2`) blends the logits with all of the condition images and those
    without their codes, which has the features of the vision encoder alone.
    """
    full, partial = full.astype(jnp.float32), partial.astype(jnp.float32)
    return (full + partial_weight * partial) / (1 + partial_weight)


def keep_top_k(logits: Float[Array, "B V"], top_k: int) -> Float[Array, "B V"]:
    """Sets all but the `top_k` largest logits to -inf; 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "B V"], top_p: Number) -> Float[Array, "B V"]:
    """Keeps the smallest set of tokens whose probability reaches `top_p`, a number in (0, 1); the others get -inf."""
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # probability of the more likely tokens
    threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def sample_tokens(
    keys: Key[Array, " B"],
    logits: Float[Array, "B V"],
    *,
    temperature: Number | None,
    top_k: int = 0,
    top_p: Number | None = None,
) -> Int[Array, " B"]:
    """One token per row. Each row has its own key, so that its token does not depend on the rest of the batch.

    Without a temperature the token is the argmax; without `top_p` all tokens may be chosen. The order is that of the
    reference: temperature, top-k, top-p.
    """
    logits = logits.astype(jnp.float32)
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Computed once (see `noinline`). XLA may otherwise round the logits that a threshold is taken from and the logits
    # that are compared with it differently; then not even the largest logit would be kept.
    logits = noinline(jnp.divide)(logits, temperature)
    logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
