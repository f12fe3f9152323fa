"""The two compiled decoding loops: text until end-of-sentence, image codes with classifier-free guidance.

Letters: B prompts, P prompt length, I image slots, G images per prompt, U unconditional prompts, N codes per image,
V text vocabulary, C codes, D width.
"""

import collections
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.inference.prompt import Prompts
from janus_jax.models.janus import Janus
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.parameters import Params, bind
from janus_jax.ops.sampling import guide, sample_tokens

# Programs traced so far in this process, by name of the function: each new shape or option compiles another.
programs: collections.Counter[str] = collections.Counter()


class Sampling(NamedTuple):
    """How the next token is drawn; temperature 0 is argmax."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


class _TextState(NamedTuple):
    step: jax.Array
    tokens: jax.Array  # [B, max_new_tokens], end-of-sentence where nothing was written
    next_token: jax.Array  # [B]
    finished: jax.Array  # [B]
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("model", "slots", "sampling", "eos_id"))
def decode_text(
    model: Janus,
    params: Params,
    prompts: Prompts,
    pixels: jax.Array | None,
    keys: jax.Array,
    max_new_tokens: jax.Array,
    *,
    slots: int,
    sampling: Sampling,
    eos_id: int,
) -> jax.Array:
    """Answers [B, slots] int32, filled up with `eos_id`; stops when every row has finished.

    Args:
        pixels: [B, I, image, image, 3] in [-1, 1], each prompt's images in order; None without images.
        keys: [B] random keys, one per row, so that a row does not depend on its batch.
        max_new_tokens: [B], from 1 to `slots`: not a constant, so that other limits take the same program.
    """
    programs["text"] += 1
    apply = bind(model, params)
    batch, length = prompts.tokens.shape
    prompt_lengths = prompts.segment_ids.sum(axis=1)

    def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        logits = apply(hidden, method="text_logits")
        return sample_tokens(
            step_keys, logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )

    def unfinished(state: _TextState) -> jax.Array:
        return ~state.finished.all()

    def body(state: _TextState) -> _TextState:
        token = jnp.where(state.finished, eos_id, state.next_token)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1)
        x = apply(token[:, None], method="embed_text")
        positions = (prompt_lengths + state.step)[:, None]
        hidden, cache = apply(x, positions, jnp.ones_like(positions), state.cache)
        next_token = choose(hidden[:, -1], state.step + 1)
        finished = (token == eos_id) | (state.step + 1 >= max_new_tokens)
        return _TextState(state.step + 1, tokens, next_token, state.finished | finished, cache)

    x = apply(prompts.tokens, prompts.modality, pixels, method="embed")
    cache = init_cache(model.config.llama, model.execution, batch, length + slots)
    hidden, cache = apply(x, prompts.positions, prompts.segment_ids, cache)
    state = _TextState(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((batch, slots), eos_id, jnp.int32),
        next_token=choose(hidden[:, -1], jnp.zeros((), jnp.int32)),
        finished=jnp.zeros(batch, bool),
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, body, state).tokens


@functools.partial(jax.jit, static_argnames=("model", "sampling"))
def decode_image_codes(
    model: Janus,
    params: Params,
    prompts: Prompts,
    unconditional: Prompts,
    unconditional_of: jax.Array,
    keys: jax.Array,
    cfg_weight: jax.Array,
    *,
    sampling: Sampling,
) -> jax.Array:
    """Image codes [B, G, N] int32 by guided next-token prediction (Janus, 3.4).

    Both halves of the guidance run as one batch of 2 B G rows, conditional then unconditional. What comes before the
    codes is computed once per prompt and held once for its G images. The unconditional prompt keeps BOS and
    `<begin_of_image>`; the pads between them *are* attended to, as in the original.

    Args:
        prompts: ending with `<begin_of_image>`.
        unconditional: U prompts of the same padded length, the condition replaced by pads: one per length.
        unconditional_of: [B] which of them belongs to a prompt.
        keys: [B, G] random keys, one per image.
        cfg_weight: 1 is purely conditional, 0 unconditional.
    """
    programs["image"] += 1
    apply = bind(model, params)
    batch, images = keys.shape
    num_codes = model.config.image_tokens
    keys = keys.reshape(-1)
    tokens, modality, segment_ids, positions = (
        jnp.concatenate(pair) for pair in zip(prompts, unconditional, strict=True)
    )

    def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
        """Hidden states [2 B G, D] -> codes [B G]."""
        conditional, unconditional = jnp.split(apply(hidden, method="image_logits"), 2)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        logits = guide(conditional, unconditional, cfg_weight)
        return sample_tokens(
            step_keys, logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )

    prefix = init_cache(model.config.llama, model.execution, *tokens.shape)
    hidden, prefix = apply(apply(tokens, modality, method="embed"), positions, segment_ids, prefix)
    # From one row per distinct prompt to one per prompt and half of the guidance.
    halves = jnp.concatenate([jnp.arange(batch), batch + unconditional_of])
    axis = 1 if model.execution.scan_layers else 0
    prefix = prefix._replace(
        k=jax.tree.map(lambda leaf: jnp.take(leaf, halves, axis), prefix.k),
        v=jax.tree.map(lambda leaf: jnp.take(leaf, halves, axis), prefix.v),
        segment_ids=prefix.segment_ids[halves],
    )
    prompt_lengths = jnp.repeat(prefix.segment_ids.sum(axis=1), images)

    def body(carry: tuple[jax.Array, KVCache], step: jax.Array) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
        code, cache = carry
        x = apply(jnp.concatenate([code, code])[:, None], method="embed_codes")
        step_positions = (prompt_lengths + step - 1)[:, None]
        hidden, cache = apply(x, step_positions, jnp.ones_like(step_positions), cache, prefix)
        return (choose(hidden[:, -1], step), cache), code

    first = choose(jnp.repeat(hidden[halves, -1], images, axis=0), jnp.zeros((), jnp.int32))
    cache = init_cache(model.config.llama, model.execution, 2 * batch * images, num_codes - 1)
    (last, _), codes = jax.lax.scan(body, (first, cache), jnp.arange(1, num_codes))
    return jnp.concatenate([codes, last[None]]).T.reshape(batch, images, num_codes)


@functools.partial(jax.jit, static_argnames="model")
def decode_pixels(model: Janus, params: Params, codes: jax.Array) -> jax.Array:
    """Codes [B, N] -> pixels [B, image, image, 3], nominally in [-1, 1].

    One image after the other: that bounds the memory, and an image is the same bits in any batch.
    """
    programs["pixels"] += 1
    apply = bind(model, params)
    return jax.lax.map(lambda image: apply(image[None], method="decode_codes")[0].astype(jnp.float32), codes)
