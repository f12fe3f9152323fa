"""The decoding loop of image codes with classifier-free guidance, and the decoding of codes to pixels (Janus, 3.4).

The R rows of an image run as one batch of R B G rows, first the conditional rows, then the unconditional ones. R is 2.
It is 3 where prompts have condition images: the conditional rows without the codes of these images then come between
(Janus-4o), and the weight of the guidance is a pair. The prompt before the codes is computed once and held once for its
G images. Three compiled programs take part: one reads the prompts piece by piece (`prompt_pieces`), one samples the
first code of each image, and one takes steps up to a number that is an argument, so that the host can report progress
between two portions of steps. A step makes one code of each image, or, with a window of more than one, as many as
`code_windows` allows. On a mesh (`jax.set_mesh`) rows and heads of the caches are divided over its devices.

Letters: B prompts, P slots of a prompt, T tokens of a piece, G images per prompt, U unconditional prompts, R rows per
image, N codes per image, W window, C number of codes, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from janus_jax.batches import Modality
from janus_jax.inference.code_windows import advance, most_ahead, num_right, put_codes
from janus_jax.inference.compiled_programs import Program, image_loop_program, program
from janus_jax.inference.memory import empty_cache
from janus_jax.inference.requests import Image
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import VQConfig
from janus_jax.models.execution import ROWS_FIRST, Execution
from janus_jax.models.janus import Janus
from janus_jax.models.janus_variant import JanusVariant
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.params import Params, bind, build
from janus_jax.models.semantic_tokenizer import SemanticCache
from janus_jax.ops.pixels import normalize
from janus_jax.ops.sampling import blend_conditions, guide
from janus_jax.sharding import row_shares, spread_cache, spread_rows


class GuidedPrompts(NamedTuple):
    """Token ids of the prompts of images with their unconditional counterparts.

    A prompt with condition images (`data.condition_images`) has the placeholder at their features, also where it is
    unconditional. Ids from the size of the vocabulary on are image codes.

    An unconditional prompt keeps BOS and `<begin_of_image>`; its condition is replaced by pad tokens, which *are*
    attended to, as in the original. It therefore depends on the length of the prompt alone, and prompts of equal
    length share one.
    """

    conditional: list[Sequence[int]]  # B prompts, each ending with `<begin_of_image>`
    unconditional: list[Sequence[int]]  # U prompts
    unconditional_of: np.ndarray  # [B] index of each prompt's unconditional prompt
    without_codes: Sequence[Sequence[int]] = ()  # B prompts whose condition images have no codes; none if R is 2
    images: Sequence[Sequence[Image]] = ()  # condition images of each prompt


class PromptState(NamedTuple):
    """Prompts of images that are being read: (R - 1) B conditional ones, then U unconditional ones."""

    hidden: Any  # [(R - 1) B + U, D] hidden state of the last token that was read of each
    cache: KVCache  # (R - 1) B + U rows of P slots


class ImageState(NamedTuple):
    """Images that are being generated."""

    step: jax.Array  # number of codes that every image has so far, at least 1
    codes: jax.Array  # [B G, N + W - 1]; with a window W > 1 the known ones are followed by guesses
    cache: KVCache  # R B G rows of N + W - 1 slots; its keys and values as `slots_first` orders them
    prefix: KVCache  # R B rows: the prompts
    semantic: SemanticCache | None = None  # B G rows of codes; None: the model embeds each code on its own
    ahead: jax.Array | None = None  # [B G] number of codes that an image has beyond `step`; None: window 1
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
    return _read(apply, state, apply(tokens, method="embed_text"), positions, segment_ids)


@program("prompt with codes", static_argnames=("model",), donate_argnames="state")
def read_prompts_with_codes(
    model: Janus,
    params: Params,
    state: PromptState,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
) -> PromptState:
    """`read_prompts` for rows that also have image codes, which are the ids from the size of the vocabulary on."""
    apply = bind(model, params)
    num_ids = model.config.llama.vocab_size
    is_code = tokens >= num_ids
    modality = jnp.where(is_code, Modality.GENERATION_IMAGE, Modality.TEXT)
    x = apply(jnp.where(is_code, tokens - num_ids, tokens), modality, method="embed")
    return _read(apply, state, x, positions, segment_ids)


@program("condition image of a prompt", static_argnames=("model", "pad_id"), donate_argnames="state")
def read_condition_images(
    model: Janus,
    params: Params,
    state: PromptState,
    pixels: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    pad_id: int,
) -> PromptState:
    """Reads the features of a condition image of each prompt, pixels [B, image, image, 3] in [-1, 1].

    Both rows with conditions see the features, and the unconditional one as many pad tokens.
    """
    apply = bind(model, params)
    features = apply(pixels, method="embed_images")
    pads = apply(jnp.full(features.shape[:2], pad_id, jnp.int32), method="embed_text")
    return _read(apply, state, jnp.concatenate([features, features, pads]), positions, segment_ids)


def _read(
    apply: Callable[..., Any], state: PromptState, x: jax.Array, positions: jax.Array, segment_ids: jax.Array
) -> PromptState:
    hidden, cache = apply(x, positions, segment_ids, spread_cache(state.cache))
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
        cfg_weight: weight of the guidance; 1 is purely conditional, 0 unconditional. For R = 3 an array [2] of this
            weight and that of the rows without codes (`ops.sampling.blend_conditions`).
        window: codes of an image that a pass reads, the last known one and guesses; 1 for a model with a semantic
            decoder.
    """
    apply = bind(model, params)
    batch = unconditional_of.shape[0]
    conditional = (guidance_rows(cfg_weight) - 1) * batch
    images = keys.shape[0] // batch
    places = model.config.image_tokens + window - 1
    # From one row per distinct prompt to R rows per prompt.
    rows = jnp.concatenate([jnp.arange(conditional), conditional + unconditional_of])
    axis, read = (1 if model.execution.scan_layers else 0), prompts.cache
    k, v = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis), (read.k, read.v))
    prefix = read._replace(k=k, v=v, positions=read.positions[rows], segment_ids=read.segment_ids[rows])
    logits = _guided_logits(apply, jnp.repeat(prompts.hidden[rows], images, axis=0), cfg_weight)
    first = sampling(keys, jnp.zeros((), jnp.int32), logits)
    empty = init_cache(model.config.llama, model.execution, len(rows) * images, places)
    codes = jnp.zeros((batch * images, places), jnp.int32)
    return ImageState(
        step=jnp.ones((), jnp.int32),
        codes=codes.at[:, 0].set(first) if window == 1 else put_codes(codes, first[:, None], jnp.zeros_like(first)),
        cache=slots_first(spread_cache(empty), model.execution),
        prefix=spread_cache(prefix),
        semantic=apply(batch * images, method="empty_cache") if _has_semantic_decoder(model) else None,
        ahead=None if window == 1 else jnp.zeros_like(first),
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
    prefix, rows = state.prefix, guidance_rows(cfg_weight)
    images = rows * keys.shape[0] // prefix.segment_ids.shape[0]
    prompt_lengths = jnp.repeat(prefix.segment_ids.sum(axis=1), images)
    num_codes = model.config.image_tokens
    window = state.codes.shape[1] - num_codes + 1
    slack = most_ahead(keys.shape[0], num_codes)

    def body(
        step: jax.Array, carry: tuple[jax.Array, KVCache, SemanticCache | None]
    ) -> tuple[jax.Array, KVCache, SemanticCache | None]:
        codes, cache, semantic = carry
        code = jax.lax.dynamic_slice_in_dim(codes, step - 1, 1, axis=1)
        if semantic is None:
            x = apply(jnp.concatenate([code] * rows), method="embed_codes")
        else:
            x, semantic = apply(code, semantic, method="embed_next_codes")
            x = jnp.concatenate([x] * rows)
        positions = (prompt_lengths + step - 1)[:, None]
        hidden, cache = apply(x, positions, jnp.ones_like(positions), cache, prefix)
        new = sampling(keys, step, _guided_logits(apply, hidden[:, -1], cfg_weight))
        codes = jax.lax.dynamic_update_slice_in_dim(codes, new[:, None], step, axis=1)
        return codes, _stored_slots_first(spread_cache(cache), model.execution), semantic

    def windowed(
        carry: tuple[jax.Array, jax.Array, KVCache, jax.Array],
    ) -> tuple[jax.Array, jax.Array, KVCache, jax.Array]:
        known, codes, cache, passes = carry
        # Slots of wrong guesses are written again: the pass begins at the slot of the last known code.
        places = known[:, None] - 1 + jnp.arange(window)
        read = jnp.take_along_axis(codes, places, axis=1)
        x = apply(jnp.concatenate([read] * rows), method="embed_codes")
        positions = prompt_lengths[:, None] + jnp.concatenate([places] * rows)
        cache = _to_continue(cache, jnp.concatenate([known] * rows) - 1, window, slack)
        hidden, cache = apply(x, positions, jnp.ones_like(positions), cache, prefix)
        new = sampling.several_steps(keys, known, _guided_logits(apply, hidden, cfg_weight))
        codes = put_codes(codes, new, known)
        known = advance(known, num_right(new, read), num_codes)
        return known, codes, _stored_slots_first(spread_cache(cache), model.execution), passes + 1

    codes, cache = state.codes, slots_first(state.cache, model.execution)
    if window == 1:
        codes, cache, semantic = jax.lax.fori_loop(state.step, until, body, (codes, cache, state.semantic))
        return ImageState(jnp.asarray(until, jnp.int32), codes, slots_first(cache, model.execution), prefix, semantic)
    assert state.ahead is not None and state.passes is not None
    known, codes, cache, passes = jax.lax.while_loop(
        lambda carry: jnp.min(carry[0]) < until, windowed, (state.step + state.ahead, codes, cache, state.passes)
    )
    step, cache = jnp.min(known), slots_first(cache, model.execution)
    return ImageState(step, codes, cache, prefix, ahead=known - step, passes=passes)


def _to_continue(cache: KVCache, first: jax.Array, window: int, slack: int) -> KVCache:
    """The cache whose rows are continued with `window` tokens from slot `first` [R B G] on.

    Args:
        slack: how many slots the rows may differ by; they are written in one block. 0: the rows go on together.
    """
    if slack == 0:
        return cache._replace(length=first[0])
    places = window + slack
    start = jnp.minimum(jnp.min(first), cache.positions.shape[1] - places)
    return cache._replace(length=start, sources=jnp.arange(places) - (first - start)[:, None])


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


def guidance_rows(cfg_weight: Any) -> int:
    """R, the number of rows of an image, for the weight of the guidance or a pair of weights."""
    return 2 + np.ndim(cfg_weight)


def _guided_logits(apply: Callable[..., Any], hidden: jax.Array, cfg_weight: jax.Array) -> jax.Array:
    """Hidden states [R B G, D], conditional to unconditional -> logits [B G, C]."""
    rows = guidance_rows(cfg_weight)
    conditional, *partial, unconditional = jnp.split(apply(hidden, method="image_logits"), rows)
    if not partial:
        return guide(conditional, unconditional, cfg_weight)
    return guide(blend_conditions(conditional, partial[0], cfg_weight[1]), unconditional, cfg_weight[0])


@Program.of("codes of a condition image", static_argnames=("config",))
def encode_pixels(config: VQConfig, params: Params, pixels: jax.Array) -> jax.Array:
    """Pixels uint8 [B, image, image, 3] -> codes [B, N], computed in float32 as in training."""
    tokenizer = build(config, Execution(dtype=jnp.float32))
    return bind(tokenizer, params)(normalize(pixels, jnp.float32), method="encode")


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
