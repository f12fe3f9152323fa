"""Training losses. Sums and weights are returned apart so that callers choose (and log) the normalisation.

Letters: T tokens, G groups of tokens (tasks), D width, V classes, Q code dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenLoss(NamedTuple):
    """Weighted sums over the tokens of each group; divide by `weight` for means."""

    loss: Float[Array, " G"]  # sum of weight * cross-entropy, nats
    correct: Float[Array, " G"]  # sum of weight * (argmax == target)
    weight: Float[Array, " G"]  # sum of weights


def chunked_cross_entropy(
    logits_fn: Callable[[Float[Array, "T D"]], Float[Array, "T V"]],
    hidden: Float[Array, "T D"],
    targets: Int[Array, " T"],
    weights: Float[Array, "G T"],
    chunk_size: int,
) -> TokenLoss:
    """Next-token cross-entropy (Janus, eq. 1) without ever holding the logits of all tokens.

    `logits_fn` (final linear layer, or the whole image head) runs on `chunk_size` tokens at a time and is
    recomputed in the backward pass, so memory is O(chunk_size * V) instead of O(T * V). Each row of `weights` is
    summed apart, so one pass gives the losses of several tasks.
    """
    length, width = hidden.shape
    num_chunks = max(1, -(-length // chunk_size))
    if num_chunks == 1:
        return _cross_entropy(logits_fn, hidden, targets, weights)
    padding = num_chunks * chunk_size - length
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, chunk_size, width)
    targets = jnp.pad(targets, (0, padding)).reshape(num_chunks, chunk_size)
    weights = jnp.pad(weights, ((0, 0), (0, padding)))  # padding weighs nothing
    weights = weights.reshape(-1, num_chunks, chunk_size).swapaxes(0, 1)  # [chunks, G, chunk_size]

    @jax.checkpoint
    def add_chunk(total: TokenLoss, chunk: tuple[Array, Array, Array]) -> tuple[TokenLoss, None]:
        return jax.tree.map(jnp.add, total, _cross_entropy(logits_fn, *chunk)), None

    zero = TokenLoss(*(jnp.zeros(weights.shape[1], jnp.float32) for _ in TokenLoss._fields))
    return jax.lax.scan(add_chunk, zero, (hidden, targets, weights))[0]


def _cross_entropy(logits_fn: Callable, hidden: Array, targets: Array, weights: Array) -> TokenLoss:
    logits = logits_fn(hidden).astype(jnp.float32)
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    return TokenLoss(
        loss=jnp.sum(weights * (log_partition - target_logits), axis=-1),
        correct=jnp.sum(weights * correct, axis=-1),
        weight=jnp.sum(weights, axis=-1),
    )


def vq_loss(
    latents: Float[Array, "*B Q"], quantized: Float[Array, "*B Q"], commitment: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Codebook term mean |sg[z] - e|^2 and commitment term `commitment` * mean |z - sg[e]|^2 (van den Oord, 2017).

    Both vectors are already l2-normalised. Hugging Face puts the 0.25 on the codebook term; the original, which
    we follow, on the commitment term.
    """
    codebook_term = jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - quantized))
    commitment_term = commitment * jnp.mean(jnp.square(latents - jax.lax.stop_gradient(quantized)))
    return codebook_term, commitment_term
