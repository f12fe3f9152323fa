"""Janus and Janus-Pro: engine and public API of models that generate images as codes.

Letters: B prompts, G images per prompt, N codes per image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import numpy as np
import PIL.Image

from janus_jax.data.condition_images import code_positions
from janus_jax.data.images import to_images, understanding_pixels
from janus_jax.errors import UserError
from janus_jax.inference.cache_lengths import IMAGE_PROMPT, cache_length
from janus_jax.inference.code_windows import AUTO, automatic_window
from janus_jax.inference.decode_image import (
    GuidedPrompts,
    ImageState,
    PromptState,
    decode_pixels,
    encode_pixels,
    guidance_rows,
    image_program,
    read_condition_images,
    read_prompts,
    read_prompts_with_codes,
    start_images,
    start_prompts,
)
from janus_jax.inference.engine import GREEDY, Engine, opened
from janus_jax.inference.memory import abstract_cache, cache_bytes
from janus_jax.inference.padding import next_power_of_two, round_up
from janus_jax.inference.pipeline import Pipeline
from janus_jax.inference.prompt_pieces import Piece, longest, total_length
from janus_jax.inference.requests import CodeOptions, Image, ImageRequest, is_image
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
        cfg_weight2: float = 5.0,
        sampling: Sampling = GREEDY,
        window: int | str = 1,
        on_codes: Callable[[int], Any] | None = None,
        on_passes: Callable[[int], Any] | None = None,
    ) -> np.ndarray:
        """Image codes [B, G, N] int32.

        Args:
            cfg_weight2: see `CodeOptions`; without condition images it means nothing.
            window: see `window`.
            on_codes: called after each `PORTION` of codes, or a few more, with the number that every image has.
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
        keys = image_keys(rows, images)
        if has_conditions(rows):
            prompts, weight = self.conditioned(rows), np.array([cfg_weight, cfg_weight2], np.float32)
        else:
            prompts, weight = self.guided([row.prompt for row in rows]), np.array(cfg_weight, np.float32)
        state = self.prefill_images(prompts, keys, weight, sampling=sampling, window=window)
        portion, known = num_codes if on_codes is None else PORTION, 0
        for end in range(portion, num_codes + portion, portion):
            until = min(end, num_codes)
            if known >= until:  # a window has gone beyond the portion before
                continue
            state = self.continue_images(state, keys, weight, until, sampling=sampling)
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
        rows, distinct = 2, num_prompts + next_power_of_two(len(lengths))
        if has_conditions(requests):
            rows, distinct = 3, 3 * num_prompts
        pieces = self.pieces([request.prompt for request in requests])
        length = self.prefix_slots(rows * num_prompts, total_length(pieces))
        slots = self.config.image_tokens + self.window(window, len(requests), num_images) - 1
        self.check_memory(
            {
                # The distinct prompts as they are read, then all rows of each prompt.
                f"{num_prompts} prompts": (distinct + rows * num_prompts, length),
                f"{num_prompts * images} images": (rows * num_prompts * images, slots),
            },
            (distinct, longest(pieces), length),
        )

    def prefix_slots(self, rows: int, needed: int) -> int:
        """Length of the cache of rows of prompts of images that fill `needed` slots of it; see `cache_lengths`."""
        # A step reads it once for all rows.
        slot = cache_bytes(self.config.llama, self.model.execution, rows, 1, self.mesh)
        fine = self.buckets.prompt
        return cache_length(round_up(needed, fine), IMAGE_PROMPT, fine, slot, local_bytes(self.params["llm"]))

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
        cfg_weight: float | np.ndarray,
        *,
        sampling: Sampling = GREEDY,
        window: int = 1,
    ) -> ImageState:
        """Reads prompts up to the first code of each image; for the arguments see `decode_image.start_images`."""
        weight = np.asarray(cfg_weight, np.float32)
        rows = [*prompts.conditional, *prompts.without_codes, *prompts.unconditional]
        pieces = self.pieces(rows)
        slots = self.prefix_slots(guidance_rows(weight) * len(prompts.conditional), total_length(pieces))
        with self.on_mesh():
            state = start_prompts(self.model, len(rows), slots, self.mesh)
            with phase("reading the prompt", total_length(pieces), " tokens") as advance:
                for piece in pieces:
                    state = self._read_piece(state, piece, prompts)
                    advance(piece.tokens.shape[1])
            arguments = state, prompts.unconditional_of, keys, weight
            return start_images(self.model, self.params, *arguments, sampling=sampling, window=window)

    def _read_piece(self, state: PromptState, piece: Piece, prompts: GuidedPrompts) -> PromptState:
        places = piece.positions, piece.segment_ids
        if piece.images is None:
            read = read_prompts_with_codes if prompts.without_codes else read_prompts
            return read(self.model, self.params, state, piece.tokens, *places)
        (pixels,) = self.pixels_of([piece._replace(images=piece.images[: len(prompts.images)])], prompts.images)
        pad = self.tokenizer.pad_id
        return read_condition_images(self.model, self.params, state, pixels, *places, pad_id=pad)

    def compile_images_ahead(
        self,
        requests: Sequence[ImageRequest],
        num_images: int,
        *,
        sampling: Sampling = GREEDY,
        window: int | str = 1,
        **_: Any,
    ) -> None:
        """Compiles the programs that generate and decode images of requests; see `Engine.compile_answer_ahead`.

        Those of requests with condition images are compiled when they first run.

        Args:
            sampling, window: as for `generate`, whose other options compile no other programs.
        """
        if has_conditions(requests):
            return
        window = self.window(window, len(requests), num_images)
        num_prompts, images = self.padded_counts(len(requests), num_images)
        rows = [*requests, *[requests[-1]] * (num_prompts - len(requests))]
        prompts = self.guided([row.prompt for row in rows])
        ids = [*prompts.conditional, *prompts.unconditional]
        slots = self.prefix_slots(2 * num_prompts, max(map(len, ids)))
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
        size = min(PIXEL_CHUNK, next_power_of_two(len(requests) * num_images))
        decode_pixels.compile_ahead(*common, np.zeros((size, self.config.image_tokens), np.int32))

    def continue_images(
        self,
        state: ImageState,
        keys: jax.Array,
        cfg_weight: float | np.ndarray,
        until: int,
        *,
        sampling: Sampling = GREEDY,
    ) -> ImageState:
        """Continues images up to `until` codes, at most N, or a few more where several are made at once.

        It uses up the state. See `prefill_images`.
        """
        take_steps = image_program(jax.default_backend())
        with self.on_mesh():
            weight, last = np.asarray(cfg_weight, np.float32), np.int32(until)
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

    def conditioned(self, requests: Sequence[ImageRequest]) -> GuidedPrompts:
        """Prompts of which some have condition images, and their counterparts.

        An unconditional prompt has pads at the features and codes of images too. It has the placeholder at the
        features all the same, since the rows of a request are read in the same pieces.

        Raises UserError for an unreadable image.
        """
        tokenizer, num_features = self.tokenizer, self.config.understanding.num_tokens
        full, without_codes, unconditional = [], [], []
        for request in requests:
            ids = np.array(request.prompt, np.int32)
            with_codes, empty = ids.copy(), np.array(tokenizer.unconditional(request.prompt), np.int32)
            places = code_positions(ids, tokenizer.image_id, num_features, self.config.image_tokens)
            for image, place in zip(request.images, places, strict=True):
                with_codes[place] = self.config.llama.vocab_size + self.encode(image)
            empty[ids == tokenizer.image_id] = tokenizer.image_id
            full.append(with_codes.tolist())
            without_codes.append(request.prompt)
            unconditional.append(empty.tolist())
        images = [request.images for request in requests]
        return GuidedPrompts(full, unconditional, np.arange(len(full), dtype=np.int32), without_codes, images)

    def encode(self, image: Image) -> np.ndarray:
        """Codes [N] of a condition image, which is padded to a square as an image to understand is (Janus-4o).

        Raises UserError for an unreadable image.
        """
        assert self.config.vq is not None
        pixels = understanding_pixels(opened(image), self.config.vq.image_size, self.normalization.pad_colour)
        with self.on_mesh():
            return to_host(encode_pixels(self.config.vq, self.params["vq"], pixels[None]))[0]


def has_conditions(requests: Sequence[ImageRequest]) -> bool:
    """Whether a request has condition images, so that each image of the batch has three rows."""
    return any(len(request.images) for request in requests)


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
        condition_image: Image | Sequence[Image] | Sequence[Sequence[Image]] | None = None,
        on_codes: Callable[[int], Any] | None = None,
        **options: Unpack[CodeOptions],
    ) -> list[PIL.Image.Image]:
        """Generates `num_images` images of a prompt, or of each prompt of a list in order.

        Args:
            condition_image: image or list of images that the images are generated from, by a model that was trained to
                (Janus-4o); for a list of prompts a list of lists of images.
            on_codes: called now and then with the number of codes that each image has.
            options: cfg_weight, temperature, top_p, top_k, seed, prompt_numbers and window; see `CodeOptions`.
        """
        conditions: Any = condition_image
        if isinstance(prompt, str):
            prompt = [prompt]
            if conditions is not None:
                conditions = [[conditions] if is_image(conditions) else conditions]
        codes = self.generate_codes(prompt, num_images, condition_images=conditions, on_codes=on_codes, **options)
        return self.decode_codes(codes)

    def generate_codes(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        condition_images: Sequence[Sequence[Image]] | None = None,
        on_codes: Callable[[int], Any] | None = None,
        **options: Unpack[CodeOptions],
    ) -> np.ndarray:
        """Image codes [len(prompts) * num_images, N] int32, the images of a prompt together.

        Image i of a prompt depends on the prompt, its seed and number, and i alone, not on the batch; rounding aside,
        which may differ between batches of other shapes.

        Args:
            condition_images: those of each prompt.
            on_codes, options: those of `generate_images`.

        Raises:
            UserError: empty prompt, bad option, an unreadable condition image, a prompt that does not fit the context,
                or images that do not fit the memory.
        """
        requests, decoding = self.engine.reader.codes(prompts, num_images, condition_images=condition_images, **options)
        codes = self.engine.generate(requests, num_images, on_codes=on_codes, **decoding)
        return codes.reshape(-1, self.config.image_tokens)

    def decode_codes(self, codes: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes codes [images, N] to images. Raises UserError for another shape, or numbers that are not codes."""
        return self.engine.decode(codes)
