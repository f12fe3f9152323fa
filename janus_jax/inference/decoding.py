"""The two decoding loops: text until end-of-sentence, image codes with classifier-free guidance.

Each is two compiled programs: one reads the prompts, the other takes steps up to a number that is not a constant. So
the host may look at what is done (to print it, or how much it is) between portions of steps, and the steps themselves
never wait for it. On a mesh (`jax.set_mesh`) rows and heads of the caches are divided over its devices.

Letters: B prompts, P prompt length, I image slots, G images per prompt, U unconditional prompts, N codes per image,
V text vocabulary, C codes, D width.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from janus_jax.compiler_options import compiler_options
from janus_jax.inference.padding import Prompts
from janus_jax.inference.sampling import Sampling
from janus_jax.models.execution import ROWS_FIRST, Execution
from janus_jax.models.janus import Janus
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.params import Params, bind
from janus_jax.ops.sampling import guide
from janus_jax.sharding import row_shares, spread_cache, spread_rows

# Programs traced so far in this process, by name of the function: each new shape or static option compiles another.
programs: collections.Counter[str] = collections.Counter()
PORTION = 64  # codes between two reports of progress


def _program(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    return functools.partial(jax.jit, compiler_options=compiler_options("decode"), **options)


class TextState(NamedTuple):
    step: jax.Array  # tokens of each answer so far, from 1
    tokens: jax.Array  # [B, slots], end-of-sentence where nothing was written
    finished: jax.Array  # [B]
    prompt_lengths: jax.Array  # [B]
    cache: KVCache  # of the prompts and all tokens but the last


class ImageState(NamedTuple):
    step: jax.Array  # codes known so far, from 1
    codes: jax.Array  # [B G, N]
    cache: KVCache  # [2 B G] rows, its keys and values with `slots_first`
    prefix: KVCache  # [2 B] rows


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
    state = start_text(model, params, prompts, pixels, None, keys, slots=slots, sampling=sampling, eos_id=eos_id)
    state = continue_text(model, params, state, keys, max_new_tokens, slots, sampling=sampling, eos_id=eos_id)
    return state.tokens


@_program(static_argnames=("model", "slots", "eos_id"), donate_argnames="cache")
def start_text(
    model: Janus,
    params: Params,
    prompts: Prompts,
    pixels: jax.Array | None,
    cache: KVCache | None,
    keys: jax.Array,
    *,
    slots: int,
    sampling: Sampling,
    eos_id: int,
) -> TextState:
    """Reads the prompts, up to the first token of each answer; arguments of `decode_text`.

    Args:
        cache: what came before the prompts, whose positions go on from there, with room for them and `slots` more
            tokens; None makes one. It is used up.
    """
    programs["text prompt"] += 1
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


@_program(static_argnames=("model", "eos_id"), donate_argnames="state")
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
    """Takes steps until there are `until` tokens or every row has finished; uses up the state."""
    programs["text"] += 1
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


def decode_image_codes(
    model: Janus,
    params: Params,
    prompts: Prompts,
    unconditional: Prompts,
    unconditional_of: np.ndarray,
    keys: jax.Array,
    cfg_weight: jax.Array,
    *,
    sampling: Sampling,
    on_codes: Callable[[int], Any] | None = None,
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
        on_codes: told, after each `PORTION` of codes, how many each image has.
    """
    num_codes = model.config.image_tokens
    options = (keys.reshape(-1), cfg_weight)
    state = start_images(model, params, prompts, unconditional, unconditional_of, *options, sampling=sampling)
    take_steps = image_program(jax.default_backend())
    portion = num_codes if on_codes is None else PORTION
    for until in range(portion, num_codes + portion, portion):
        state = take_steps(model, params, state, *options, min(until, num_codes), sampling=sampling)
        if on_codes is not None:
            on_codes(int(state.step))
    return state.codes.reshape(*keys.shape, num_codes)


@_program(static_argnames="model")
def start_images(
    model: Janus,
    params: Params,
    prompts: Prompts,
    unconditional: Prompts,
    unconditional_of: np.ndarray,
    keys: jax.Array,
    cfg_weight: jax.Array,
    *,
    sampling: Sampling,
) -> ImageState:
    """Reads the prompts, up to the first code of each image; arguments of `decode_image_codes`, but keys [B G]."""
    programs["image prompt"] += 1
    apply = bind(model, params)
    batch = prompts.tokens.shape[0]
    images = keys.shape[0] // batch
    num_codes = model.config.image_tokens
    tokens, modality, segment_ids, positions = (
        jnp.concatenate(pair) for pair in zip(prompts, unconditional, strict=True)
    )
    prefix = spread_cache(init_cache(model.config.llama, model.execution, *tokens.shape))
    hidden, prefix = apply(apply(tokens, modality, method="embed"), positions, segment_ids, prefix)
    # From one row per distinct prompt to one per prompt and half of the guidance.
    halves = jnp.concatenate([jnp.arange(batch), batch + unconditional_of])
    axis = 1 if model.execution.scan_layers else 0
    k, v = jax.tree.map(lambda leaf: jnp.take(leaf, halves, axis), (prefix.k, prefix.v))
    prefix = prefix._replace(k=k, v=v, positions=positions[halves], segment_ids=segment_ids[halves])
    logits = _guided_logits(apply, jnp.repeat(hidden[halves, -1], images, axis=0), cfg_weight)
    first = sampling(keys, jnp.zeros((), jnp.int32), logits)
    empty = init_cache(model.config.llama, model.execution, 2 * batch * images, num_codes)
    return ImageState(
        step=jnp.ones((), jnp.int32),
        codes=jnp.zeros((batch * images, num_codes), jnp.int32).at[:, 0].set(first),
        cache=slots_first(spread_cache(empty), model.execution),
        prefix=spread_cache(prefix),
    )


@functools.cache
def image_program(platform: str) -> Any:
    """`continue_images` as `jax.jit` makes it for devices of a platform: "cpu", "gpu" or "tpu"."""
    options = compiler_options("image_loop", platform=platform)
    return jax.jit(continue_images, compiler_options=options, static_argnames="model", donate_argnames="state")


def continue_images(
    model: Janus,
    params: Params,
    state: ImageState,
    keys: jax.Array,
    cfg_weight: jax.Array,
    until: jax.Array | int,
    *,
    sampling: Sampling,
) -> ImageState:
    """Takes steps until each image has `until` codes, at most N; uses up the state. Run as `image_program`."""
    programs["image"] += 1
    apply = bind(model, params)
    prefix = state.prefix
    images = 2 * keys.shape[0] // prefix.segment_ids.shape[0]
    prompt_lengths = jnp.repeat(prefix.segment_ids.sum(axis=1), images)

    def body(step: jax.Array, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
        codes, cache = carry
        code = jax.lax.dynamic_slice_in_dim(codes, step - 1, 1, axis=1)
        x = apply(jnp.concatenate([code, code]), method="embed_codes")
        positions = (prompt_lengths + step - 1)[:, None]
        hidden, cache = apply(x, positions, jnp.ones_like(positions), cache, prefix)
        new = sampling(keys, step, _guided_logits(apply, hidden[:, -1], cfg_weight))
        codes = jax.lax.dynamic_update_slice_in_dim(codes, new[:, None], step, axis=1)
        return codes, _stored_slots_first(spread_cache(cache), model.execution)

    codes, cache = jax.lax.fori_loop(state.step, until, body, (state.codes, slots_first(state.cache, model.execution)))
    return ImageState(jnp.asarray(until, jnp.int32), codes, slots_first(cache, model.execution), prefix)


def slots_first(cache: KVCache, execution: Execution) -> KVCache:
    """Keys and values [B, K, S, H] of each layer -> [S, K, B, H], as XLA:TPU holds them inside of the loop; and back.

    There a step writes one block for all rows. With rows first, each call would copy the whole cache before its first
    step and after its last. A CPU, where slots first would cost these copies, keeps the cache as it is.
    """
    if execution.cache_layout == ROWS_FIRST:
        return cache
    k, v = jax.tree.map(lambda leaf: leaf.swapaxes(-4, -2), (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def _stored_slots_first(cache: KVCache, execution: Execution) -> KVCache:
    """A cache with rows first, in memory as `slots_first` has it.

    XLA:TPU would choose that by itself with weights of bfloat16, but with 8 bits slots, rows, heads: then each call
    would copy the whole cache twice.
    """
    if execution.cache_layout == ROWS_FIRST:
        return cache

    def store(leaf: jax.Array) -> jax.Array:
        *layers, rows, heads, slots, head = range(leaf.ndim)
        return with_layout_constraint(leaf, Layout((*layers, slots, heads, rows, head)))

    k, v = jax.tree.map(store, (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def _guided_logits(apply: Callable[..., Any], hidden: jax.Array, cfg_weight: jax.Array) -> jax.Array:
    """Hidden states [2 B G, D], conditional then unconditional -> logits [B G, C]."""
    conditional, unconditional = jnp.split(apply(hidden, method="image_logits"), 2)
    return guide(conditional, unconditional, cfg_weight)


@functools.partial(jax.jit, static_argnames="model")
def decode_pixels(model: Janus, params: Params, codes: jax.Array) -> jax.Array:
    """Codes [B, N] -> pixels [B, image, image, 3], nominally in [-1, 1].

    One image after the other, on each device of a mesh its own (B is a multiple of `row_shares`): that bounds the
    memory, and an image is the same bits in any batch.
    """
    programs["pixels"] += 1
    apply = bind(model, params)
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty else row_shares(mesh)

    def decode(images: jax.Array) -> jax.Array:
        return spread_rows(apply(spread_rows(images), method="decode_codes").astype(jnp.float32))

    pixels = jax.lax.map(decode, codes.reshape(shares, -1, codes.shape[1]).swapaxes(0, 1)).swapaxes(0, 1)
    return spread_rows(pixels.reshape(-1, *pixels.shape[2:]))
