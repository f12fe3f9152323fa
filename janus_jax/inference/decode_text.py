"""The decoding loop of text: from prompts to answers that end with end-of-sentence.

It consists of three compiled programs: two read the pieces of the prompts (`prompt_pieces`), those of text and those
of images, and one takes steps up to a number that is an argument, not a constant. The host can therefore look at the
tokens between two portions of steps, for example to print them, and the steps themselves never wait for the host. On
a mesh (`jax.set_mesh`) rows and heads of the caches are divided over its devices.

Letters: B prompts, T tokens of a piece, S slots of the cache, D width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax.inference.compiled_programs import program
from janus_jax.inference.memory import empty_cache
from janus_jax.inference.sampling import Sampling
from janus_jax.models.janus import Janus
from janus_jax.models.llama import KVCache
from janus_jax.models.params import Params, bind
from janus_jax.sharding import spread_cache


class TextState(NamedTuple):
    """Answers that are being written. Before the first piece is read, the arrays are those of NumPy."""

    step: Any  # number of tokens of each answer so far, 0 before the prompts are read
    tokens: Any  # [B, S], end-of-sentence where nothing has been written; as long as the cache
    finished: Any  # [B]
    prompt_lengths: Any  # [B]
    cache: KVCache  # the prompts and all tokens of the answers except the last


def start_text(model: Janus, rows: int, slots: int, eos_id: int, mesh: Mesh | None, cache: KVCache | None) -> TextState:
    """The state before the first piece of the prompts.

    Args:
        cache: what the prompts follow, with `slots` slots; it is used up. None makes an empty one.
    """
    if cache is None:
        cache = empty_cache(model.config.llama, model.execution, rows, slots, mesh)
    return TextState(
        step=np.zeros((), np.int32),
        tokens=np.full((rows, slots), eos_id, np.int32),
        finished=np.zeros(rows, bool),
        prompt_lengths=np.zeros(rows, np.int32),
        cache=cache,
    )


@program("text of a prompt", static_argnames=("model", "eos_id"), donate_argnames="state")
def read_text(
    model: Janus,
    params: Params,
    state: TextState,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    *,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """Reads a piece of text of each prompt, [B, T], behind what the cache holds; uses up the state.

    Args:
        segment_ids: 0 at padding, which is on the left; a row that is all padding has no part in this piece.
        keys: [B] random keys, one per row, so that a row does not depend on its batch.
    """
    apply = bind(model, params)
    x = apply(tokens, method="embed_text")
    return _read(apply, state, x, positions, segment_ids, keys, sampling, eos_id)


@program("image of a prompt", static_argnames=("model", "eos_id"), donate_argnames="state")
def read_image(
    model: Janus,
    params: Params,
    state: TextState,
    pixels: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    *,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """`read_text` for an image of each prompt, [B, image, image, 3] in [-1, 1]."""
    apply = bind(model, params)
    return _read(apply, state, apply(pixels, method="embed_images"), positions, segment_ids, keys, sampling, eos_id)


def _read(
    apply: Callable[..., Any],
    state: TextState,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """Reads inputs [B, T, D], and samples the token that follows the last one of each row that has a part in them.

    This token is the first one of the answer if the prompt ends here; otherwise the next piece replaces it.
    """
    hidden, cache = apply(x, positions, segment_ids, spread_cache(state.cache))
    sampled = sampling(keys, jnp.zeros((), jnp.int32), apply(hidden[:, -1], method="text_logits"))
    has_part = segment_ids[:, -1] > 0
    first = jnp.where(has_part, sampled, state.tokens[:, 0])
    return TextState(
        step=jnp.ones((), jnp.int32),
        tokens=jnp.full_like(state.tokens, eos_id).at[:, 0].set(first),
        finished=first == eos_id,
        prompt_lengths=jnp.where(has_part, positions[:, -1] + 1, state.prompt_lengths),
        cache=spread_cache(cache),
    )


@program("answer", static_argnames=("model", "eos_id"), donate_argnames="state")
def continue_text(
    model: Janus,
    params: Params,
    state: TextState,
    keys: jax.Array,
    max_new_tokens: jax.Array,
    until: jax.Array | int,
    *,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """Takes steps until there are `until` tokens or every row has finished; uses up the state.

    Args:
        max_new_tokens: [B], from 1 to the slots that the prompts leave of the cache. It is an argument, so that other
            limits take the same program.
    """
    apply = bind(model, params)

    def unfinished(state: TextState) -> jax.Array:
        return ~state.finished.all() & (state.step < until)

    def body(state: TextState) -> TextState:
        step = state.step
        x = apply(jax.lax.dynamic_slice_in_dim(state.tokens, step - 1, 1, axis=1), method="embed_text")
        positions = (state.prompt_lengths + step - 1)[:, None]
        hidden, cache = apply(x, positions, jnp.ones_like(positions), state.cache)
        new = jnp.where(state.finished, eos_id, sampling(keys, step, apply(hidden[:, -1], method="text_logits")))
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, new[:, None], step, axis=1)
        finished = state.finished | (new == eos_id) | (step + 1 >= max_new_tokens)
        return TextState(step + 1, tokens, finished, state.prompt_lengths, spread_cache(cache))

    finished = state.finished | (state.step >= max_new_tokens)
    return jax.lax.while_loop(unfinished, body, state._replace(finished=finished))
