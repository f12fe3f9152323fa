"""Training losses. They return sums and weights separately, so that callers choose (and log) the normalisation.

Letters: T tokens, G groups of tokens (tasks), D width, V classes, Q code dim.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.ops.codebook import l2_normalize

LogitsFn = Callable[[Any, Float[Array, "T D"]], Float[Array, "T V"]]


class TokenLoss(NamedTuple):
    """Weighted sums over the tokens of each group; divide by `weight` for means."""

    loss: Float[Array, " G"]  # sum of weight * cross-entropy, nats
    correct: Float[Array, " G"]  # sum of weight * (no logit is above the target's)
    weight: Float[Array, " G"]  # sum of weights


def chunked_cross_entropy(
    logits_fn: LogitsFn,
    params: Any,
    hidden: Float[Array, "T D"],
    targets: Int[Array, " T"],
    weights: Float[Array, " T"],
    groups: Float[Array, "G T"],
    chunk_size: int,
    z_loss: float = 0.0,
    skip_unweighted: bool = False,
) -> tuple[Float[Array, ""], TokenLoss]:
    """Next-token cross-entropy (Janus, eq. 1) without ever storing the logits of all tokens.

    Only the logits of `chunk_size` tokens exist at a time. Where a gradient is wanted, the forward pass computes it
    from them right away, so that logits are neither stored nor computed a second time.

    Args:
        logits_fn: (params, hidden [chunk, D]) -> logits [chunk, V].
        params: parameters of the head. Only the first result passes a gradient to them and to `hidden`.
        weights: the first result is sum(weights * (cross-entropy + z_loss * log_partition^2)).
        groups: weights of the sums of the second result, one row per group, such as a task. They get no gradient.
        skip_unweighted: whether to sort the tokens with a weight to the front and skip all chunks without one. That is
            less work, but how much less depends on the data.

    Returns:
        The weighted sum, and the sums per group.
    """
    tokens: tuple[Array, ...] = (hidden, targets, weights, groups.T)
    used = None
    if skip_unweighted:
        weighted = (weights != 0) | (groups != 0).any(axis=0)
        order = jnp.argsort(~weighted)
        tokens = tuple(x.at[order].get(unique_indices=True, mode="promise_in_bounds") for x in tokens)
        used = -(-jnp.sum(weighted) // min(chunk_size, weighted.size))
    return _chunked(logits_fn, chunk_size, z_loss, params, used, *tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(
    logits_fn: LogitsFn, chunk_size: int, z_loss: float, params: Any, used: Array | None, hidden: Array, *labels: Array
) -> tuple[Array, TokenLoss]:
    def add_chunk(total: Any, chunk: tuple[Array, ...]) -> tuple[Any, None]:
        loss, sums, _ = _cross_entropy(logits_fn(params, chunk[0]), z_loss, *chunk[1:])
        return jax.tree.map(jnp.add, total, (loss, sums)), None

    return _scan(add_chunk, _zero_sums(labels[-1]), _split((hidden, *labels), chunk_size), used)[0]


def _chunked_forward(
    logits_fn: LogitsFn, chunk_size: int, z_loss: float, params: Any, used: Array | None, hidden: Array, *labels: Array
) -> tuple[tuple[Array, TokenLoss], tuple[Any, Array]]:
    # Integers, such as an int8 weight matrix, have no gradient: None in the tree of the others.
    floats = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, params)

    def logits_of(floats: Any, hidden: Array) -> Array:
        whole = jax.tree.map(lambda leaf, value: leaf if value is None else value, params, floats)
        return logits_fn(whole, hidden)

    def add_chunk(total: Any, chunk: tuple[Array, ...]) -> tuple[Any, Array]:
        logits, pull_back = jax.vjp(logits_of, floats, chunk[0])
        loss, sums, slope = _cross_entropy(logits, z_loss, *chunk[1:])
        params_gradient, hidden_gradient = pull_back(slope.astype(logits.dtype))
        return jax.tree.map(jnp.add, total, (loss, sums, params_gradient)), hidden_gradient

    zero = (*_zero_sums(labels[-1]), jax.tree.map(jnp.zeros_like, floats))
    total, hidden_gradient = _scan(add_chunk, zero, _split((hidden, *labels), chunk_size), used)
    loss, sums, params_gradient = total
    return (loss, sums), (params_gradient, hidden_gradient.reshape(-1, hidden.shape[1])[: hidden.shape[0]])


def _chunked_backward(
    logits_fn: LogitsFn, chunk_size: int, z_loss: float, gradients: tuple[Any, Array], cotangents: tuple[Array, Any]
) -> tuple[Any, ...]:
    del logits_fn, chunk_size, z_loss
    params_gradient, hidden_gradient = jax.tree.map(
        lambda gradient: gradient * cotangents[0].astype(gradient.dtype), gradients
    )
    return params_gradient, None, hidden_gradient, None, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _scan(
    add_chunk: Callable[[Any, Any], tuple[Any, Any]], total: Any, chunks: tuple[Array, ...], used: Array | None
) -> tuple[Any, Any]:
    """`jax.lax.scan` over the first `used` chunks (None: all). The outputs of the others are zero."""
    if used is None:
        return jax.lax.scan(add_chunk, total, chunks)
    one = jax.eval_shape(add_chunk, total, tuple(x[0] for x in chunks))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((chunks[0].shape[0], *leaf.shape), leaf.dtype), one)

    def step(i: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        total, outputs = state
        total, output = add_chunk(total, tuple(x[i] for x in chunks))
        return total, jax.tree.map(lambda all_outputs, new: all_outputs.at[i].set(new), outputs, output)

    return jax.lax.fori_loop(0, used, step, (total, zeros))


def _zero_sums(groups: Array) -> tuple[Array, TokenLoss]:
    return jnp.zeros(()), TokenLoss(*(jnp.zeros(groups.shape[1]) for _ in TokenLoss._fields))


def _split(tokens: tuple[Array, ...], chunk_size: int) -> tuple[Array, ...]:
    """[T, ...] -> [chunks, chunk_size, ...]. The last chunk is padded with tokens of weight zero."""
    length = tokens[0].shape[0]
    chunk_size = min(chunk_size, length)
    padding = -length % chunk_size
    return tuple(
        jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk_size, *x.shape[1:]) for x in tokens
    )


def _cross_entropy(
    logits: Array, z_loss: float, targets: Array, weights: Array, groups: Array
) -> tuple[Array, TokenLoss, Array]:
    """Weighted sum, sums per group, and the gradient of the weighted sum with respect to the logits, all in float32."""
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=-1)
    log_partition = largest + jnp.log(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1))
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    target_logits = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    loss = log_partition - target_logits
    total = jnp.sum(weights * (loss + z_loss * jnp.square(log_partition)))
    softmax = jnp.exp(logits - log_partition[:, None])
    slope = softmax * (weights * (1 + 2 * z_loss * log_partition))[:, None] - jnp.where(hit, weights[:, None], 0.0)
    sums = TokenLoss(loss=loss @ groups, correct=(target_logits >= largest) @ groups, weight=jnp.sum(groups, axis=0))
    return total, sums, slope


def vq_loss(
    latents: Float[Array, "*B Q"], quantized: Float[Array, "*B Q"], commitment: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Codebook term mean |sg[z] - e|^2 and commitment term `commitment` * mean |z - sg[e]|^2 (van den Oord, 2017).

    Both vectors must already be l2-normalised. The original puts its factor 0.25 on the commitment term, and so do we;
    Hugging Face's code puts it on the codebook term.
    """
    codebook_term = jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - quantized))
    commitment_term = commitment * jnp.mean(jnp.square(latents - jax.lax.stop_gradient(quantized)))
    return codebook_term, commitment_term


def code_entropy_loss(
    latents: Float[Array, "T Q"], codebook: Float[Array, "C Q"], temperature: float, axes: tuple[str, ...] = ()
) -> Float[Array, ""]:
    """Mean entropy of the codes of each token, minus the entropy of the mean: low where tokens decide and codes vary.

    A token takes each code with probability softmax(-d / temperature), d being the squared distances of unit vectors
    (`compute_entropy_loss` of LlamaGen). Both arguments get a gradient. It needs arrays of [T, C].

    Args:
        axes: mesh axes over which the tokens are divided, so that the mean is that of all devices.
    """
    similarity = jnp.einsum(
        "TQ,CQ->TC", l2_normalize(latents), l2_normalize(codebook), precision=jax.lax.Precision.HIGHEST
    )
    logits = (2 * similarity - 2) / temperature
    log_probabilities = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    mean = jnp.mean(probabilities, axis=0)
    mean = jax.lax.pmean(mean, axes) if axes else mean
    of_the_mean = -jnp.sum(mean * jnp.log(mean + 1e-5))
    return -jnp.mean(jnp.sum(probabilities * log_probabilities, axis=-1)) - of_the_mean
