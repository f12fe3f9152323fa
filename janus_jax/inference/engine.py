"""The engine: one model that is ready to decode, with everything that decoding needs around the compiled programs.

It owns the model, its parameters and their mesh, the tokenizer, the padding of batches, the memory check and the
compiled programs. Pipelines, chat sessions, evaluation, benchmarks and the training loop use its public methods.

Letters: B prompts, P prompt length, I image slots, G images per prompt.
"""

import contextlib
import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh
from jax.typing import DTypeLike

from janus_jax.data.images import JANUS_NORMALIZATION, Normalization, load_image, to_rgb, understanding_pixels
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.cache_lengths import CONVERSATION, cache_length
from janus_jax.inference.decode_text import TextState, continue_text, read_image, read_text, start_text
from janus_jax.inference.memory import NotEnoughMemoryError, abstract_cache, cache_bytes, check_fits
from janus_jax.inference.padding import (
    BUCKETS,
    Buckets,
    PaddedPrompts,
    check_buckets,
    next_power_of_two,
    pad_prompts,
    round_up,
)
from janus_jax.inference.prompt_pieces import Piece, longest, split, total_length
from janus_jax.inference.requests import Answer, Image, ImageBatch, ImageRequest, TextRequest, is_image
from janus_jax.inference.sampling import Sampling, answer_keys
from janus_jax.inference.validation import RequestReader
from janus_jax.models.config import FamilyConfig
from janus_jax.models.execution import decoding_execution
from janus_jax.models.llama import KVCache
from janus_jax.models.params import Params, build, flatten, unflatten
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.phases import phase
from janus_jax.sharding import decoding_shardings, local_bytes, row_shares, to_host
from janus_jax.weights.weight_layout import has_transposed_stacks, undo_transposed

GREEDY = Sampling()


class Engine(ABC):
    """What the models of the family have in common: they answer. Subclasses generate images.

    Attributes:
        params: parameters, with one subtree per layer (`layers_0`, ...), or with layers stacked if the engine was made
            so, or on a CPU (`weight_layout`).
        reader: turns a user's prompts and options into requests for this engine.
    """

    def __init__(
        self,
        config: FamilyConfig,
        params: Params,
        tokenizer: Tokenizer,
        dtype: DTypeLike = jnp.float32,
        normalization: Normalization = JANUS_NORMALIZATION,
        buckets: Buckets = BUCKETS,
        mesh: Mesh | None = None,
        scan_layers: bool = False,
    ):
        """Makes an engine of parameters in any layout.

        Args:
            params: with layers stacked, as checkpoints hold them, or with one subtree per layer; also quantised, or
                with the transposed weight matrices of `weight_layout`. Stacks of transposed matrices are taken as they
                are, except on a mesh, where they are transposed back, since shardings are those of [in, out].
            dtype: compute dtype.
            mesh: devices of this process (`sharding.make_mesh`), over which parameters, caches and the rows of a
                request are divided; None uses the default device.
            scan_layers: take parameters with layers stacked as they are, with the shardings that they have and without
                a copy. A training loop samples in this way with its own parameters. Steps are slower than with one
                subtree per layer, because a scan copies the weights that it slices.

        Raises:
            UserError: the mesh does not divide a parameter, or buckets are not whole numbers from 1.
        """
        check_buckets(buckets)
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh
        self.normalization, self.buckets = normalization, buckets
        self.reader = RequestReader(config, tokenizer)
        scan_layers = scan_layers or (mesh is None and has_transposed_stacks(params))
        self.params = params if scan_layers else _unrolled(config, params, dtype, mesh)
        execution = decoding_execution(dtype, jax.default_backend(), on_mesh=mesh is not None)
        self.model: Any = build(config, dataclasses.replace(execution, scan_layers=scan_layers))

    def with_params(self, params: Params) -> Self:
        """The same engine, with the same compiled programs, for other values of the parameters.

        Raises ValueError when their paths, shapes or dtypes are not those of the present parameters.
        """

        def kinds(tree: Params) -> dict[str, tuple]:
            return {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(tree).items()}

        expected, found = kinds(self.params), kinds(params)
        differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        if differing:
            raise ValueError(f"parameters that are not of the engine's paths, shapes and dtypes: {differing[:5]}")
        engine = copy.copy(self)
        engine.params = params
        return engine

    def answer(self, requests: Sequence[TextRequest], sampling: Sampling = GREEDY) -> list[Answer]:
        """Answers requests in one batch.

        Raises UserError for an unreadable image, or a batch that does not fit the memory.
        """
        if not requests:
            return []
        # Padding rows, so that every device gets the same number, and a last, smaller batch rarely compiles programs.
        shares = self.row_shares
        spare = shares * next_power_of_two(-(-len(requests) // shares)) - len(requests)
        rows = [*requests, *[requests[-1]._replace(images=(), prompt=[0], max_new_tokens=1)] * spare]
        pieces = self.pieces([row.prompt for row in rows])
        limits = [row.max_new_tokens for row in rows]
        slots = self.slots(len(rows), total_length(pieces) + max(limits))
        self.check_memory({f"{len(rows)} prompts": (len(rows), slots)}, (len(rows), longest(pieces), slots))
        pixels = self.pixels_of(pieces, [row.images for row in rows])
        keys = answer_keys(rows)
        state = self.prefill(pieces, pixels, keys, slots=slots, sampling=sampling)
        state = self.continue_(state, keys, limits, max(limits), sampling=sampling)
        tokens = to_host(state.tokens)[: len(requests)].tolist()
        return [
            self.to_answer(request.prompt, row[: request.max_new_tokens])
            for request, row in zip(requests, tokens, strict=True)
        ]

    @abstractmethod
    def generate(self, requests: Sequence[ImageRequest], num_images: int, **options: Any) -> np.ndarray:
        """Generates `num_images` samples of each request in one batch: codes, or latents of JanusFlow.

        Returns:
            [B, G, ...]; the options are those of the subclass.
        """

    @abstractmethod
    def check_images(self, requests: Sequence[ImageRequest], num_images: int) -> None:
        """Raises NotEnoughMemoryError if `generate` could not hold `num_images` images of each request."""

    @abstractmethod
    def decode(self, samples: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes samples of `generate`, [images, ...], to images."""

    def prefill(
        self,
        pieces: Sequence[Piece],
        pixels: Sequence[np.ndarray | None],
        keys: jax.Array,
        *,
        slots: int,
        sampling: Sampling = GREEDY,
        cache: KVCache | None = None,
        eos_id: int | None = None,
    ) -> TextState:
        """Reads prompts up to the first token of each answer.

        Args:
            pieces: those of the prompts (`pieces`).
            pixels: those of each piece (`pixels_of`).
            keys: [B] random keys, one per row, so that a row does not depend on its batch.
            slots: length of the cache, with room for the prompts and their answers (`slots`).
            cache: what the prompts follow; it is used up. None makes a new cache.
            eos_id: the token that ends an answer; None is the tokenizer's, and -1 lets no token end it.
        """
        eos_id = self.tokenizer.eos_id if eos_id is None else eos_id
        with self.on_mesh():
            state = start_text(self.model, len(pieces[0].tokens), slots, eos_id, self.mesh, cache)
            with phase("reading the prompt", total_length(pieces), " tokens") as advance:
                for piece, images in zip(pieces, pixels, strict=True):
                    read, values = (read_text, piece.tokens) if images is None else (read_image, images)
                    places = piece.positions, piece.segment_ids
                    state = read(
                        self.model, self.params, state, values, *places, keys, sampling=sampling, eos_id=eos_id
                    )
                    if len(pieces) > 1 and self.mesh is None:
                        jax.block_until_ready(state.step)  # so that the amount that is shown has been read
                    advance(piece.tokens.shape[1])
        return state

    def compile_answer_ahead(self, request: TextRequest, sampling: Sampling = GREEDY) -> None:
        """Compiles the programs that answer a request alone, for an engine whose parameters may be abstract.

        An engine with parameters of these shapes and dtypes then takes them. On one device only.
        """
        pieces = self.pieces([request.prompt])
        slots = self.slots(1, total_length(pieces) + request.max_new_tokens)
        eos_id = self.tokenizer.eos_id
        cache = abstract_cache(self.config.llama, self.model.execution, 1, slots)
        state = start_text(self.model, 1, slots, eos_id, None, cache)
        size, keys = self.config.understanding.image_size, answer_keys([request])
        common = self.model, self.params, state
        for piece in pieces:  # equal ones are compiled once
            places = piece.positions, piece.segment_ids, keys
            if piece.images is None:
                read_text.compile_ahead(*common, piece.tokens, *places, sampling=sampling, eos_id=eos_id)
            else:
                pixels = np.zeros((1, size, size, 3), np.float32)
                read_image.compile_ahead(*common, pixels, *places, sampling=sampling, eos_id=eos_id)
        limits = np.zeros(1, np.int32)
        continue_text.compile_ahead(*common, keys, limits, np.int32(0), sampling=sampling, eos_id=eos_id)

    def continue_(
        self,
        state: TextState,
        keys: jax.Array,
        max_new_tokens: Sequence[int],
        until: int,
        *,
        sampling: Sampling = GREEDY,
        eos_id: int | None = None,
    ) -> TextState:
        """Continues answers up to `until` tokens; uses up the state. Other arguments are those of `prefill`."""
        eos_id = self.tokenizer.eos_id if eos_id is None else eos_id
        limits, last = np.asarray(max_new_tokens, np.int32), np.int32(until)
        with self.on_mesh():
            return continue_text(self.model, self.params, state, keys, limits, last, sampling=sampling, eos_id=eos_id)

    def to_answer(self, prompt: list[int], tokens: Sequence[int]) -> Answer:
        """The answer that decoded tokens stand for, up to end-of-sentence."""
        ids = self.until_end(tokens)
        return Answer(self.tokenizer.decode(ids).strip(), ids, prompt)

    def until_end(self, tokens: Sequence[int]) -> list[int]:
        """Removes end-of-sentence and the tokens after it."""
        ids = list(tokens)
        return ids[: ids.index(self.tokenizer.eos_id)] if self.tokenizer.eos_id in ids else ids

    def pieces(self, prompts: Sequence[Sequence[int]], first: int = 0) -> list[Piece]:
        """The pieces in which prompts are read; for the arguments see `prompt_pieces.split`."""
        image_tokens = self.config.understanding.num_tokens + len(self.image_ids) - 1
        return split(prompts, self.image_ids, image_tokens, self.buckets.prompt, first)

    def slots(self, rows: int, needed: int) -> int:
        """Length of the cache of `rows` prompts and answers of together `needed` tokens; see `cache_lengths`."""
        reads_all = self.model.execution.matmul_backend == "xla"  # "gemv" reads a cache as far as it is written
        slot = cache_bytes(self.config.llama, self.model.execution, rows, 1, self.mesh) if reads_all else 0
        return cache_length(needed, CONVERSATION, self.buckets.answer, slot, local_bytes(self.params["llm"]))

    def pad(self, prompts: Sequence[Sequence[int]]) -> PaddedPrompts:
        """One batch of prompts, whose length is a multiple of the prompt bucket."""
        return pad_prompts(prompts, self.image_ids, self.buckets.prompt)

    def padded_length(self, length: int) -> int:
        """The length to which `pad` pads prompts of which the longest has `length` tokens."""
        return round_up(length, self.buckets.prompt)

    def pixels(self, images: Sequence[Sequence[Image]]) -> jax.Array | None:
        """Normalised images [B, I, image, image, 3] of each row; None if there are no images.

        Rows with fewer images than others are filled up with zeros, which nothing reads.

        Raises UserError for an unreadable image.
        """
        return jnp.asarray(self._pixels(images)) if any(images) else None

    def pixels_of(self, pieces: Sequence[Piece], images: Sequence[Sequence[Image]]) -> list[np.ndarray | None]:
        """Normalised images [B, image, image, 3] of each piece, None for a piece of text, from the images of each row.

        Raises UserError for an unreadable image.
        """

        def of_piece(piece: Piece) -> np.ndarray | None:
            if piece.images is None:
                return None
            numbers = zip(images, piece.images, strict=True)
            return self._pixels([[] if number is None else [row[number]] for row, number in numbers])[:, 0]

        return [of_piece(piece) for piece in pieces]

    def _pixels(self, images: Sequence[Sequence[Image]]) -> np.ndarray:
        size = self.config.understanding.image_size
        pixels = np.zeros((len(images), max(map(len, images)), size, size, 3), np.uint8)
        for row, attached in enumerate(images):
            for slot, image in enumerate(attached):
                pixels[row, slot] = understanding_pixels(opened(image), size, self.normalization.pad_colour)
        return self.normalization(pixels)

    def check_memory(self, caches: Mapping[str, tuple[int, int]], *scores: tuple[int, int, int]) -> None:
        """Raises NotEnoughMemoryError if a request does not fit; for the arguments see `memory.check_fits`."""
        check_fits(self.config.llama, self.model.execution, caches, scores, self.mesh)

    def batches(self, num_prompts: int, num_images: int, at_a_time: int) -> Iterator[ImageBatch]:
        """Divides `num_images` images of each prompt into batches of up to `at_a_time` images.

        A batch holds all images of some prompts, or a part of the images of one prompt. On a mesh every batch except
        the last needs as few padding images as possible, and may therefore have more than `at_a_time` images.
        """
        shares = self.row_shares
        if num_images > at_a_time:
            parts = -(-num_images // at_a_time)
            size = round_up(-(-num_images // parts), shares)  # equal parts take the same compiled programs
            images = [range(first, min(first + size, num_images)) for first in range(0, num_images, size)]
            yield from (ImageBatch(slice(i, i + 1), part) for i in range(num_prompts) for part in images)
            return
        multiple = shares // math.gcd(shares, num_images)
        size = multiple * max(1, at_a_time // (multiple * num_images))
        yield from (ImageBatch(slice(i, i + size), range(num_images)) for i in range(0, num_prompts, size))

    def fitting_batches(
        self, requests: Sequence[ImageRequest], num_images: int, at_a_time: int
    ) -> tuple[list[ImageBatch], int]:
        """The `batches` of the largest number of images, `at_a_time` or a half, a quarter, ... of it, that fits.

        Returns:
            The batches, and that number.

        Raises:
            NotEnoughMemoryError: not even one image fits.
        """
        by_length = sorted(requests, key=lambda request: len(request.prompt), reverse=True)
        while True:
            batches = list(self.batches(len(requests), num_images, at_a_time))
            try:
                for batch in batches[:1]:  # no other is larger
                    self.check_images(by_length[batch.prompts], len(batch.images))
                return batches, at_a_time
            except NotEnoughMemoryError:
                if at_a_time == 1:
                    raise
                at_a_time //= 2

    def padded_counts(self, num_prompts: int, num_images: int) -> tuple[int, int]:
        """(prompts, images of each) with padding, so that every device gets the same number of images.

        Whichever of the two needs fewer padding images is padded. On a tie it is the number of images, because images
        of one prompt share the cache of the prompt.
        """
        shares = self.row_shares
        more_images = num_prompts, round_up(num_images, shares // math.gcd(shares, num_prompts))
        more_prompts = round_up(num_prompts, shares // math.gcd(shares, num_images)), num_images
        return min(more_images, more_prompts, key=math.prod)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Token ids whose positions are filled with the features of an understanding image."""
        return (self.tokenizer.image_id,)

    @property
    def row_shares(self) -> int:
        """Number of equal parts into which the devices divide the rows of a batch."""
        return 1 if self.mesh is None else row_shares(self.mesh)

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which the compiled programs run."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def opened(image: Image) -> PIL.Image.Image:
    """An image in RGB. Raises UserError for an unreadable one."""
    if not is_image(image):
        raise UserError(f"image of type {type(image).__name__}, expected a PIL image or the path of a file")
    return to_rgb(image, "image") if isinstance(image, PIL.Image.Image) else load_image(image)


def _unrolled(config: FamilyConfig, params: Params, dtype: DTypeLike, mesh: Mesh | None) -> Params:
    """Parameters with one subtree per layer, placed on the mesh."""
    params = unstack_layers(params)
    if mesh is None:
        return params
    shardings = decoding_shardings(config, mesh)
    placed = undo_transposed(params, dtype)
    return unflatten({path: jax.device_put(leaf, shardings[path]) for path, leaf in flatten(placed).items()})
