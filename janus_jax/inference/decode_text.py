"""The decoding loop of text: from prompts to answers that end with end-of-sentence.

It consists of two compiled programs: one reads the prompts, the other takes steps up to a number that is an argument,
not a constant. The host can therefore look at the tokens between two portions of steps, for example to print them,
and the steps themselves never wait for the host. On a mesh (`jax.set_mesh`) rows and heads of the caches are divided
over its devices.

Letters: B prompts, P prompt length, I image slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.inference.compiled_programs import program, traced
from janus_jax.inference.padding import PaddedPrompts
from janus_jax.inference.sampling import Sampling
from janus_jax.models.janus import Janus
from janus_jax.models.janus_variant import JanusVariant
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.params import Params, bind
from janus_jax.sharding import spread_cache


class TextState(NamedTuple):
    """Answers that are being written."""

    step: jax.Array  # number of tokens of each answer so far, at least 1
    tokens: jax.Array  # [B, slots], end-of-sentence where nothing has been written
    finished: jax.Array  # [B]
    prompt_lengths: jax.Array  # [B]
    cache: KVCache  # the prompts and all tokens of the answers except the last


@program(static_argnames=("model", "slots", "eos_id"), donate_argnames="cache")
def start_text(
    model: Janus | JanusVariant,
    params: Params,
    prompts: PaddedPrompts,
    pixels: jax.Array | None,
    cache: KVCache | None,
    keys: jax.Array,
    *,
    slots: int,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """Reads the prompts and samples the first token of each answer.

    Args:
        pixels: [B, I, image, image, 3] in [-1, 1], each prompt's images in order; None without images.
        cache: the tokens before the prompts, whose positions continue from there. It needs room for the prompts and
            `slots` more tokens, and is used up. None makes a new cache.
        keys: [B] random keys, one per row, so that a row does not depend on its batch.
        slots: room for tokens of each answer.
    """
    traced["text prompt"] += 1
    apply = bind(model, params)
    batch, length = prompts.tokens.shape
    if cache is None:
        cache = init_cache(model.config.llama, model.execution, batch, length + slots)
    x = apply(prompts.tokens, prompts.modality, pixels, method="embed")
    hidden, cache = apply(x, prompts.positions, prompts.segment_ids, spread_cache(cache))
    first = sampling(keys, jnp.zeros((), jnp.int32), apply(hidden[:, -1], method="text_logits"))
    return TextState(
        step=jnp.ones((), jnp.int32),
        tokens=jnp.full((batch, slots), eos_id, jnp.int32).at[:, 0].set(first),
        finished=first == eos_id,
        prompt_lengths=jnp.asarray(prompts.positions)[:, -1] + 1,
        cache=spread_cache(cache),
    )


@program(static_argnames=("model", "eos_id"), donate_argnames="state")
def continue_text(
    model: Janus | JanusVariant,
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
        max_new_tokens: [B], from 1 to the slots of the state. It is an argument, so that other limits take the same
            program.
    """
    traced["text"] += 1
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
