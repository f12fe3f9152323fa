"""The decoding loop of image codes with classifier-free guidance, and the decoding of codes to pixels (Janus, 3.4).

Both halves of the guidance run as one batch of 2 B G rows, first the conditional rows, then the unconditional ones.
The prompt before the codes is computed once and held once for its G images. Three compiled programs take part: one
reads the prompts piece by piece (`prompt_pieces`), one samples the first code of each image, and one takes steps up to
a number that is an argument, so that the host can report progress between two portions of steps. A step makes one
code of each image, or, with a window of more than one, as many as `code_windows` allows. On a mesh (`jax.set_mesh`)
rows and heads of the caches are divided over its devices.

Letters: B prompts, P slots of a prompt, T tokens of a piece, G images per prompt, U unconditional prompts, N codes per
image, W window, C number of codes, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from janus_jax.inference.code_windows import guess, num_known
from janus_jax.inference.compiled_programs import Program, image_loop_program, program
from janus_jax.inference.memory import empty_cache
from janus_jax.inference.sampling import Sampling
from janus_jax.models.execution import ROWS_FIRST, Execution
from janus_jax.models.janus import Janus
from janus_jax.models.janus_variant import JanusVariant
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.params import Params, bind
from janus_jax.models.semantic_tokenizer import SemanticCache
from janus_jax.ops.sampling import guide
from janus_jax.sharding import row_shares, spread_cache, spread_rows


class GuidedPrompts(NamedTuple):
    """Token ids of the prompts of images with their unconditional counterparts.

    An unconditional prompt keeps BOS and `<begin_of_image>`; its condition is replaced by pad tokens, which *are*
    attended to, as in the original. It therefore depends on the length of the prompt alone, and prompts of equal
    length share one.
    """

    conditional: list[Sequence[int]]  # B prompts, each ending with `<begin_of_image>`
    unconditional: list[Sequence[int]]  # U prompts
    unconditional_of: np.ndarray  # [B] index of each prompt's unconditional prompt


class PromptState(NamedTuple):
    """Prompts of images that are being read: B conditional ones, then U unconditional ones."""

    hidden: Any  # [B + U, D] hidden state of the last token that was read of each
    cache: KVCache  # B + U rows of P slots


class ImageState(NamedTuple):
    """Images that are being generated."""

    step: jax.Array  # number of codes of each image so far, at least 1
    codes: jax.Array  # [B G, N + W - 1]; with a window W > 1 the known ones are followed by guesses
    cache: KVCache  # 2 B G rows of N + W - 1 slots; its keys and values as `slots_first` orders them
    prefix: KVCache  # 2 B rows: the prompts
    semantic: SemanticCache | None = None  # B G rows of codes; None: the model embeds each code on its own
    passes: jax.Array | None = None  # number of passes through the model after the first code; None: window 1


def start_prompts(
    model: Janus, rows: int, slots: int, mesh: Mesh | None = None, cache: KVCache | None = None
) -> PromptState:
    """The state before the first piece of the prompts; without a cache it gets an empty one."""
    config, execution = model.config.llama, model.execution
    hidden = np.zeros((rows, config.width), execution.dtype)
    return PromptState(hidden, empty_cache(config, execution, rows, slots, mesh) if cache is None else cache)


@program("prompt of images", static_argnames=("model",), donate_argnames="state")
def read_prompts(
    model: Janus,
    params: Params,
    state: PromptState,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
) -> PromptState:
    """Reads a piece of each prompt, [B + U, T], behind what the cache holds; uses up the state.

    Args:
        segment_ids: 0 at padding, which is on the left.
    """
    apply = bind(model, params)
    hidden, cache = apply(apply(tokens, method="embed_text"), positions, segment_ids, spread_cache(state.cache))
    return PromptState(jnp.where(segment_ids[:, -1:] > 0, hidden[:, -1], state.hidden), spread_cache(cache))


@program("first code of images", static_argnames=("model", "window"))
def start_images(
    model: Janus,
    params: Params,
    prompts: PromptState,
    unconditional_of: jax.Array,
    keys: jax.Array,
    cfg_weight: jax.Array,
    *,
    sampling: Sampling,
    window: int = 1,
) -> ImageState:
    """Samples the first code of each image, after all pieces of the prompts.

    Args:
        unconditional_of: [B] index of each prompt's unconditional prompt.
        keys: [B G] random keys, one per image, those of a prompt together.
        cfg_weight: weight of the guidance; 1 is purely conditional, 0 unconditional.
        window: codes of an image that a pass reads, the last known one and guesses; 1 for a model with a semantic
            decoder.
    """
    apply = bind(model, params)
    batch = unconditional_of.shape[0]
    images = keys.shape[0] // batch
    places = model.config.image_tokens + window - 1
    # From one row per distinct prompt to one row per prompt and half of the guidance.
    halves = jnp.concatenate([jnp.arange(batch), batch + unconditional_of])
    axis, read = (1 if model.execution.scan_layers else 0), prompts.cache
    k, v = jax.tree.map(lambda leaf: jnp.take(leaf, halves, axis), (read.k, read.v))
    prefix = read._replace(k=k, v=v, positions=read.positions[halves], segment_ids=read.segment_ids[halves])
    logits = _guided_logits(apply, jnp.repeat(prompts.hidden[halves], images, axis=0), cfg_weight)
    first = sampling(keys, jnp.zeros((), jnp.int32), logits)
    empty = init_cache(model.config.llama, model.execution, 2 * batch * images, places)
    codes = jnp.zeros((batch * images, places), jnp.int32).at[:, 0].set(first)
    return ImageState(
        step=jnp.ones((), jnp.int32),
        codes=codes if window == 1 else guess(codes, known=1, sampled=1, window=window),
        cache=slots_first(spread_cache(empty), model.execution),
        prefix=spread_cache(prefix),
        semantic=apply(batch * images, method="empty_cache") if _has_semantic_decoder(model) else None,
        passes=None if window == 1 else jnp.zeros((), jnp.int32),
    )


@functools.cache
def image_program(platform: str) -> Any:
    """`continue_images` compiled for the devices of a platform: "cpu", "gpu" or "tpu"."""
    return image_loop_program(
        "codes of images", continue_images, platform, static_argnames=("model",), donate_argnames="state"
    )


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
    """Takes steps until each image has `until` codes, at most N; uses up the state. Run it as `image_program`.

    With a window of several codes the images may have more than `until` afterwards.
    """
    apply = bind(model, params)
    prefix = state.prefix
    images = 2 * keys.shape[0] // prefix.segment_ids.shape[0]
    prompt_lengths = jnp.repeat(prefix.segment_ids.sum(axis=1), images)
    num_codes = model.config.image_tokens
    window = state.codes.shape[1] - num_codes + 1

    def body(
        step: jax.Array, carry: tuple[jax.Array, KVCache, SemanticCache | None]
    ) -> tuple[jax.Array, KVCache, SemanticCache | None]:
        codes, cache, semantic = carry
        code = jax.lax.dynamic_slice_in_dim(codes, step - 1, 1, axis=1)
        if semantic is None:
            x = apply(jnp.concatenate([code, code]), method="embed_codes")
        else:
            x, semantic = apply(code, semantic, method="embed_next_codes")
            x = jnp.concatenate([x, x])
        positions = (prompt_lengths + step - 1)[:, None]
        hidden, cache = apply(x, positions, jnp.ones_like(positions), cache, prefix)
        new = sampling(keys, step, _guided_logits(apply, hidden[:, -1], cfg_weight))
        codes = jax.lax.dynamic_update_slice_in_dim(codes, new[:, None], step, axis=1)
        return codes, _stored_slots_first(spread_cache(cache), model.execution), semantic

    def windowed(
        carry: tuple[jax.Array, jax.Array, KVCache, jax.Array],
    ) -> tuple[jax.Array, jax.Array, KVCache, jax.Array]:
        known, codes, cache, passes = carry
        read = jax.lax.dynamic_slice_in_dim(codes, known - 1, window, axis=1)
        x = apply(jnp.concatenate([read, read]), method="embed_codes")
        positions = prompt_lengths[:, None] + (known - 1 + jnp.arange(window))
        # Slots of wrong guesses are written again: the pass begins at the slot of the last known code.
        cache = cache._replace(length=known - 1)
        hidden, cache = apply(x, positions, jnp.ones_like(positions), cache, prefix)
        new = sampling.several_steps(keys, known, _guided_logits(apply, hidden, cfg_weight))
        codes = jax.lax.dynamic_update_slice_in_dim(codes, new, known, axis=1)
        after = jnp.minimum(known + num_known(new, read), num_codes)
        codes = guess(codes, after, known + window, window)
        return after, codes, _stored_slots_first(spread_cache(cache), model.execution), passes + 1

    codes, cache = state.codes, slots_first(state.cache, model.execution)
    if window == 1:
        codes, cache, semantic = jax.lax.fori_loop(state.step, until, body, (codes, cache, state.semantic))
        return ImageState(jnp.asarray(until, jnp.int32), codes, slots_first(cache, model.execution), prefix, semantic)
    assert state.passes is not None
    step, codes, cache, passes = jax.lax.while_loop(
        lambda carry: carry[0] < until, windowed, (state.step, codes, cache, state.passes)
    )
    return ImageState(step, codes, slots_first(cache, model.execution), prefix, passes=passes)


def _has_semantic_decoder(model: Janus) -> bool:
    return isinstance(model, JanusVariant) and model.config.semantic is not None


def slots_first(cache: KVCache, execution: Execution) -> KVCache:
    """Reorders keys and values of each layer, [B, K, S, H] -> [S, K, B, H]; a second call restores the order.

    XLA:TPU holds them in this order inside the loop, where a step writes one block for all rows. If the arguments of
    the loop had rows first, each call would copy the whole cache before its first step and after its last (compiler
    estimate; tests/compile_check/test_compiled_decode.py). A CPU would have to copy for slots first, so its cache
    stays as it is.
    """
    if execution.cache_layout == ROWS_FIRST:
        return cache
    k, v = jax.tree.map(lambda leaf: leaf.swapaxes(-4, -2), (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def _stored_slots_first(cache: KVCache, execution: Execution) -> KVCache:
    """The same cache, with rows first, whose memory is laid out as `slots_first` orders it.

    With weights of bfloat16 XLA:TPU chooses this layout by itself. With int8 weights it would choose slots, rows,
    heads, and each call would copy the whole cache twice (compiler estimate; tests/compile_check).
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


@Program.of("pixels", static_argnames=("model",))
def decode_pixels(model: Janus, params: Params, codes: jax.Array) -> jax.Array:
    """Codes [B, N] -> pixels [B, image, image, 3], nominally in [-1, 1].

    Each device of a mesh decodes its images one after the other; B must be a multiple of `row_shares`. This bounds
    the memory and gives an image the same bits in any batch.
    """
    apply = bind(model, params)
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty else row_shares(mesh)

    def decode(images: jax.Array) -> jax.Array:
        return spread_rows(apply(spread_rows(images), method="decode_codes").astype(jnp.float32))

    pixels = jax.lax.map(decode, codes.reshape(shares, -1, codes.shape[1]).swapaxes(0, 1)).swapaxes(0, 1)
    return spread_rows(pixels.reshape(-1, *pixels.shape[2:]))
