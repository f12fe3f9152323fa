"""Janus and Janus-Pro: engine and public API of models that generate images as codes.

Letters: B prompts, G images per prompt, N codes per image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import numpy as np
import PIL.Image

from janus_jax.data.images import to_images
from janus_jax.errors import UserError
from janus_jax.inference.cache_lengths import IMAGE_PROMPT, cache_length
from janus_jax.inference.code_windows import AUTO, automatic_window
from janus_jax.inference.decode_image import (
    GuidedPrompts,
    ImageState,
    decode_pixels,
    image_program,
    read_prompts,
    start_images,
    start_prompts,
)
from janus_jax.inference.engine import GREEDY, Engine
from janus_jax.inference.memory import abstract_cache, cache_bytes
from janus_jax.inference.padding import next_power_of_two, round_up
from janus_jax.inference.pipeline import Pipeline
from janus_jax.inference.prompt_pieces import total_length
from janus_jax.inference.requests import CodeOptions, ImageRequest
from janus_jax.inference.sampling import Sampling, image_keys
from janus_jax.models.config import CodeModelConfig
from janus_jax.phases import phase
from janus_jax.sharding import local_bytes, to_host

PIXEL_CHUNK = 16  # most images per device and VQ decoding call, a power of two: bounds the memory of a call
PORTION = 64  # number of codes between two reports of progress


class JanusEngine(Engine):
    """Answers, and generates image codes by guided next-token prediction."""

    config: CodeModelConfig

    def generate(  # type: ignore[override]  # the options of codes
        self,
        requests: Sequence[ImageRequest],
        num_images: int,
        *,
        cfg_weight: float = 5.0,
        sampling: Sampling = GREEDY,
        window: int | str = 1,
        on_codes: Callable[[int], Any] | None = None,
        on_passes: Callable[[int], Any] | None = None,
    ) -> np.ndarray:
        """Image codes [B, G, N] int32.

        Args:
            window: see `window`.
            on_codes: called after each `PORTION` of codes, or a few more, with the number of codes that each image has.
            on_passes: called at the end with the number of passes through the model that the N codes took.

        Raises UserError for images that do not fit the memory.
        """
        num_codes = self.config.image_tokens
        if not requests:
            return np.zeros((0, num_images, num_codes), np.int32)
        window = self.window(window, len(requests), num_images)
        self.check_images(requests, num_images, window)
        num_prompts, images = self.padded_counts(len(requests), num_images)
        rows = [*requests, *[requests[-1]] * (num_prompts - len(requests))]
        prompts = self.guided([row.prompt for row in rows])
        keys = image_keys(rows, images)
        state = self.prefill_images(prompts, keys, cfg_weight, sampling=sampling, window=window)
        portion, known = num_codes if on_codes is None else PORTION, 0
        for end in range(portion, num_codes + portion, portion):
            until = min(end, num_codes)
            if known >= until:  # a window has gone beyond the portion before
                continue
            state = self.continue_images(state, keys, cfg_weight, until, sampling=sampling)
            if on_codes is not None:
                known = int(state.step)
                on_codes(known)
        if on_passes is not None:
            on_passes(num_codes if state.passes is None else 1 + int(state.passes))
        codes = to_host(state.codes)[:, :num_codes]
        return codes.reshape(num_prompts, images, num_codes)[: len(requests), :num_images]

    def window(self, asked: int | str, num_prompts: int, num_images: int) -> int:
        """Codes of an image that a pass reads where `num_images` images of each prompt are generated.

        Args:
            asked: this number, or `code_windows.AUTO`.
        """
        if not isinstance(asked, str):
            return int(asked)
        images = math.prod(self.padded_counts(num_prompts, num_images))
        return automatic_window(self.config, images, jax.default_backend(), self.row_shares)

    def check_images(self, requests: Sequence[ImageRequest], num_images: int, window: int | str = AUTO) -> None:
        num_prompts, images = self.padded_counts(len(requests), num_images)
        lengths = {len(request.prompt) for request in requests}
        distinct = num_prompts + next_power_of_two(len(lengths))
        length = self.prefix_slots(num_prompts, max(lengths))
        slots = self.config.image_tokens + self.window(window, len(requests), num_images) - 1
        self.check_memory(
            {
                # The distinct prompts as they are read, then one row per prompt and half of the guidance.
                f"{num_prompts} prompts": (distinct + 2 * num_prompts, length),
                f"{num_prompts * images} images": (2 * num_prompts * images, slots),
            },
            (distinct, self.buckets.prompt, length),
        )

    def prefix_slots(self, prompts: int, longest: int) -> int:
        """Length of the cache of prompts of images, of which the longest has `longest` tokens; see `cache_lengths`."""
        # A step reads it once for both halves of the guidance.
        slot = cache_bytes(self.config.llama, self.model.execution, 2 * prompts, 1, self.mesh)
        fine = self.buckets.prompt
        return cache_length(round_up(longest, fine), IMAGE_PROMPT, fine, slot, local_bytes(self.params["llm"]))

    def decode(self, samples: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes codes [images, N] to images, 1, 2, 4, 8 or 16 per device at a time, each number a compiled program.

        Raises UserError for another shape, or numbers that are not codes.
        """
        codes = np.asarray(samples)
        if codes.dtype.kind not in "iu":
            raise UserError(f"codes of type {codes.dtype}, expected whole numbers")
        if codes.ndim != 2 or codes.shape[1] != self.config.image_tokens:
            raise UserError(f"codes of shape {codes.shape}, expected [images, {self.config.image_tokens}]")
        num_codes = self.config.vq.num_codes if self.config.vq else 0
        if codes.size and not 0 <= codes.min() <= codes.max() < num_codes:
            raise UserError(f"codes from {codes.min()} to {codes.max()}, expected 0 to {num_codes - 1}")
        images, shares = [], self.row_shares
        for start in range(0, len(codes), shares * PIXEL_CHUNK):
            chunk = codes[start : start + shares * PIXEL_CHUNK]
            size = shares * next_power_of_two(-(-len(chunk) // shares))
            with self.on_mesh(), phase("decoding images"):
                pixels = decode_pixels(self.model, self.params, np.pad(chunk, ((0, size - len(chunk)), (0, 0))))
                decoded = to_host(pixels)
            images += to_images(decoded)[: len(chunk)]
        return images

    def prefill_images(
        self,
        prompts: GuidedPrompts,
        keys: jax.Array,
        cfg_weight: float,
        *,
        sampling: Sampling = GREEDY,
        window: int = 1,
    ) -> ImageState:
        """Reads prompts up to the first code of each image; for the arguments see `decode_image.start_images`."""
        rows = [*prompts.conditional, *prompts.unconditional]
        slots = self.prefix_slots(len(prompts.conditional), max(map(len, rows)))
        with self.on_mesh():
            state = start_prompts(self.model, len(rows), slots, self.mesh)
            pieces = self.pieces(rows)
            with phase("reading the prompt", total_length(pieces), " tokens") as advance:
                for piece in pieces:
                    places = piece.positions, piece.segment_ids
                    state = read_prompts(self.model, self.params, state, piece.tokens, *places)
                    advance(piece.tokens.shape[1])
            arguments = state, prompts.unconditional_of, keys, np.float32(cfg_weight)
            return start_images(self.model, self.params, *arguments, sampling=sampling, window=window)

    def compile_images_ahead(
        self,
        requests: Sequence[ImageRequest],
        num_images: int,
        *,
        sampling: Sampling = GREEDY,
        window: int | str = 1,
        **_: Any,
    ) -> None:
        """Compiles the programs that generate images of requests in one batch; see `Engine.compile_answer_ahead`.

        Args:
            sampling, window: as for `generate`, whose other options compile no other programs.
        """
        window = self.window(window, len(requests), num_images)
        num_prompts, images = self.padded_counts(len(requests), num_images)
        rows = [*requests, *[requests[-1]] * (num_prompts - len(requests))]
        prompts = self.guided([row.prompt for row in rows])
        ids = [*prompts.conditional, *prompts.unconditional]
        slots = self.prefix_slots(num_prompts, max(map(len, ids)))
        cache = abstract_cache(self.config.llama, self.model.execution, len(ids), slots)
        state = start_prompts(self.model, len(ids), slots, None, cache)
        piece, keys, weight = self.pieces(ids)[0], image_keys(rows, images), np.float32(0)
        common = self.model, self.params
        read_prompts.compile_ahead(*common, state, piece.tokens, piece.positions, piece.segment_ids)
        first = *common, state, prompts.unconditional_of, keys, weight
        start_images.compile_ahead(*first, sampling=sampling, window=window)
        state = start_images.eval_shape(*first, sampling=sampling, window=window)
        loop = image_program(jax.default_backend())
        loop.compile_ahead(*common, state, keys, weight, np.int32(0), sampling=sampling)

    def continue_images(
        self, state: ImageState, keys: jax.Array, cfg_weight: float, until: int, *, sampling: Sampling = GREEDY
    ) -> ImageState:
        """Continues images up to `until` codes, at most N, or a few more where several are made at once.

        It uses up the state. See `prefill_images`.
        """
        take_steps = image_program(jax.default_backend())
        with self.on_mesh():
            weight, last = np.float32(cfg_weight), np.int32(until)
            return take_steps(self.model, self.params, state, keys, weight, last, sampling=sampling)

    def guided(self, prompts: Sequence[Sequence[int]]) -> GuidedPrompts:
        """Prompts and their unconditional counterparts.

        There is one unconditional prompt per distinct length. The last one is repeated up to a power of two, so that
        other lengths rarely compile another program.
        """
        lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
        by_length = {len(prompt): self.tokenizer.unconditional(prompt) for prompt in prompts}
        repeated = lengths + lengths[-1:] * (next_power_of_two(len(lengths)) - len(lengths))
        unconditional_of = np.array([lengths.index(len(prompt)) for prompt in prompts], np.int32)
        return GuidedPrompts(list(prompts), [by_length[length] for length in repeated], unconditional_of)


class JanusPipeline(Pipeline):
    """A Janus model that answers questions and generates images. Make one with `janus_jax.from_pretrained`."""

    engine: JanusEngine
    config: CodeModelConfig

    def __init__(self, *args: Any, **options: Any):
        """Takes the arguments of `JanusEngine`, and makes one."""
        super().__init__(JanusEngine(*args, **options))

    def generate_images(
        self,
        prompt: str | Sequence[str],
        num_images: int = 1,
        *,
        on_codes: Callable[[int], Any] | None = None,
        **options: Unpack[CodeOptions],
    ) -> list[PIL.Image.Image]:
        """Generates `num_images` images of a prompt, or of each prompt of a list in order.

        Args:
            on_codes: called now and then with the number of codes that each image has.
            options: cfg_weight, temperature, top_p, top_k, seed, prompt_numbers and window; see `CodeOptions`.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return self.decode_codes(self.generate_codes(prompts, num_images, on_codes=on_codes, **options))

    def generate_codes(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        on_codes: Callable[[int], Any] | None = None,
        **options: Unpack[CodeOptions],
    ) -> np.ndarray:
        """Image codes [len(prompts) * num_images, N] int32, the images of a prompt together.

        Image i of a prompt depends on the prompt, its seed and number, and i alone, not on the batch; rounding aside,
        which may differ between batches of other shapes.

        Args:
            on_codes, options: those of `generate_images`.

        Raises:
            UserError: empty prompt, bad option, a prompt that does not fit the context, or images that do not fit the
                memory.
        """
        requests, decoding = self.engine.reader.codes(prompts, num_images, **options)
        codes = self.engine.generate(requests, num_images, on_codes=on_codes, **decoding)
        return codes.reshape(-1, self.config.image_tokens)

    def decode_codes(self, codes: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes codes [images, N] to images. Raises UserError for another shape, or numbers that are not codes."""
        return self.engine.decode(codes)
