"""The objects behind the public API: a model with its tokenizer that answers questions and draws."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike

from janus_jax.data.images import (
    JANUS_NORMALIZATION,
    Normalization,
    load_image,
    to_images,
    to_rgb,
    understanding_pixels,
)
from janus_jax.data.prompts import Message
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.chat_session import Conversation
from janus_jax.inference.decoding import decode_image_codes, decode_pixels, decode_text
from janus_jax.inference.memory import check_fits
from janus_jax.inference.padding import BUCKETS, Buckets, Prompts, check_buckets, pad_prompts, round_up
from janus_jax.inference.validation import RequestReader, user_message
from janus_jax.models.config import FamilyConfig, JanusConfig
from janus_jax.models.execution import decoding_execution
from janus_jax.models.llama import cache_dtype
from janus_jax.models.params import Params, build, flatten, unflatten
from janus_jax.models.scan_layers import stack_layers, unstack_layers
from janus_jax.sharding import decoding_shardings, row_shares
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.weight_layout import undo_row_major
from janus_jax.weights.write_model import write_model

Image: TypeAlias = PIL.Image.Image | str | os.PathLike  # decoded, or the path of a file
PIXEL_CHUNK = 16  # most images of a device per VQ decoding call, a power of two: bounds its memory


class Answer(NamedTuple):
    text: str
    token_ids: list[int]  # without end-of-sentence
    prompt_token_ids: list[int]


class Pipeline:
    """What all models of the family do alike: answer, and be saved.

    Attributes:
        params: layers apart (`models.scan_layers.unstack_layers`), as decoding is fastest.
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
    ):
        """Takes parameters with layers stacked, as checkpoints hold them, or apart, also as `quantization` or
        `kernels` make them; a mesh, which divides kernels as [in, out], turns transposed ones back.

        Args:
            mesh: of devices of this process (`sharding.make_mesh`), over which parameters, caches and rows of a
                request are divided; None is the default device.

        Raises:
            UserError: the mesh does not divide a parameter, or buckets that are not whole numbers from 1.
        """
        check_buckets(buckets)
        self.config = config
        self.params = unstack_layers(params)
        self._mesh = mesh
        if mesh is not None:
            shardings = decoding_shardings(config, mesh)
            self.params = undo_row_major(self.params, dtype)
            placed = {path: jax.device_put(leaf, shardings[path]) for path, leaf in flatten(self.params).items()}
            self.params = unflatten(placed)
        self.tokenizer = tokenizer
        self._normalization = normalization
        self._buckets = buckets
        self._requests = RequestReader(config, tokenizer)
        self._model: Any = build(config, decoding_execution(dtype, jax.default_backend(), on_mesh=mesh is not None))

    @overload
    def chat(self, images: Image | Sequence[Image], prompt: str, **options: Any) -> str: ...
    @overload
    def chat(self, images: Sequence[Sequence[Image]], prompt: Sequence[str], **options: Any) -> list[str]: ...

    def chat(self, images: Any, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """Answers a question about images.

        Args:
            images: an image or a list of images for the prompt; for a list of prompts, a list of lists of images.
            prompt: a question, or a list of questions.
            options: of `answer`.

        Returns:
            The answer; a list of answers for a list of prompts.

        Raises:
            UserError: empty prompt, unreadable image, a prompt that does not fit the context, or images of another
                form.
        """
        if isinstance(prompt, str):
            return self.chat([[images] if _is_image(images) else images], [prompt], **options)[0]
        for own in [images, *images] if isinstance(images, list | tuple) else [images]:
            if not isinstance(own, list | tuple):
                raise UserError(f"chat got {type(own).__name__} where a list of images of a prompt is expected")
        if len(images) != len(prompt):
            raise UserError(f"chat got {len(prompt)} prompts but {len(images)} lists of images")
        conversations = [[user_message(text, len(own))] for text, own in zip(prompt, images, strict=True)]
        return [answer.text for answer in self.answer(conversations, images, **options)]

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Image]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 0.95,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[Answer]:
        """Continues conversations that end with a user's message.

        Args:
            conversations: messages whose texts hold an `<image_placeholder>` per image.
            images: of each conversation, in the order of the placeholders.
            max_new_tokens: None is 512, or what a prompt leaves of the context; a number must fit.
            temperature: 0 is greedy.
            top_p, top_k: sample among the most probable tokens only; 1.0 and 0 keep all.

        Raises:
            UserError: bad option, unreadable image, a prompt that does not fit the context, or a batch that does not
                fit the memory.
        """
        request = self._requests.text(
            conversations,
            images,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        prompts, limits = request.prompts, request.max_new_tokens
        if not prompts:
            return []
        extra = -len(prompts) % self._row_shares  # rows that nobody asked for, so that the devices have equally many
        rows = len(prompts) + extra
        padded = self._pad([*prompts, *prompts[-1:] * extra])
        slots = round_up(max(limits), self._buckets.answer)
        length = padded.tokens.shape[1]
        self._check_memory({f"{rows} prompts": (rows, length + slots)}, (rows, length, length + slots))
        pixels = self._pixels([*images, *[()] * extra])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(rows))
        with self._on_mesh():
            tokens = decode_text(
                self._model,
                self.params,
                padded,
                pixels,
                keys,
                jnp.asarray(limits + [1] * extra, jnp.int32),
                slots=slots,
                sampling=request.sampling,
                eos_id=self.tokenizer.eos_id,
            )
        answered = zip(prompts, limits, np.asarray(tokens)[: len(prompts)].tolist(), strict=True)
        return [self._answer(prompt, row[:limit]) for prompt, limit, row in answered]

    def conversation(self) -> Conversation:
        """A new conversation of one question after the other, which keeps its key-value cache and streams answers."""
        return Conversation(self)

    def groups(self, num_prompts: int, num_images: int, at_a_time: int) -> Iterator[slice]:
        """Divides prompts into requests of up to `at_a_time` images, `num_images` of each prompt, and at least one.

        On a mesh of as few prompts as have no image drawn that nobody asked for, but in the last request.
        """
        unit = self._row_shares // math.gcd(self._row_shares, num_images)
        size = unit * max(1, at_a_time // (unit * num_images))
        return (slice(start, start + size) for start in range(0, num_prompts, size))

    def save_pretrained(self, folder: epath.PathLike, format: str = "orbax", dtype: DTypeLike | None = None) -> None:
        """Writes a complete model folder, which `janus_jax.from_pretrained` reads.

        Args:
            folder: new or empty.
            format: "orbax" (ours), "hf" (transformers' JanusForConditionalGeneration) or "deepseek" (the original).
            dtype: of the parameters; None keeps that of `self.params`.

        Raises:
            UserError: unknown format, one that cannot hold this model, a quantised model, a folder that is not empty,
                or a full disk.
        """
        self._write(folder, format, dtype)

    def _write(self, folder: epath.PathLike, format: str, dtype: DTypeLike | None, vae: Any = None) -> None:
        if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(self.params)):
            raise UserError("the model is quantised to int8, expected one in full precision to save")
        params = undo_row_major(self.params, self._model.execution.dtype)
        params = stack_layers(params, join=_Layers)  # joined a layer at a time
        source = model_in_memory(self.config, params, self.tokenizer, self._normalization)
        write_model(source, folder, format, dtype, vae=vae)

    @property
    def _image_ids(self) -> tuple[int, ...]:
        """The ids of prompts whose places an understanding image takes."""
        return (self.tokenizer.image_id,)

    @property
    def _row_shares(self) -> int:
        """In how many equal parts the devices need the rows of a request."""
        return 1 if self._mesh is None else row_shares(self._mesh)

    def _drawn(self, num_prompts: int, num_images: int) -> tuple[int, int]:
        """(prompts, images of each) that are drawn, so that the devices have equally many images.

        Either has as few as possible that nobody asked for: more images of a prompt share what comes before them.
        """
        shares = self._row_shares
        images = num_prompts, round_up(num_images, shares // math.gcd(shares, num_prompts))
        prompts = round_up(num_prompts, shares // math.gcd(shares, num_images)), num_images
        return min(images, prompts, key=math.prod)

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Where the decoding loops run."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _until_end(self, ids: list[int]) -> list[int]:
        """Without end-of-sentence and what follows it."""
        return ids[: ids.index(self.tokenizer.eos_id)] if self.tokenizer.eos_id in ids else ids

    def _answer(self, prompt: list[int], row: list[int]) -> Answer:
        ids = self._until_end(row)
        return Answer(self.tokenizer.decode(ids).strip(), ids, prompt)

    def _pad(self, prompts: Sequence[Sequence[int]]) -> Prompts:
        return pad_prompts(prompts, self._image_ids, self._buckets.prompt)

    def _check_memory(self, caches: Mapping[str, tuple[int, int]], *scores: tuple[int, int, int]) -> None:
        """Of a request whose caches have these (rows, slots), and scores of attention (rows, queries, keys)."""
        check_fits(self.config.llama, cache_dtype(self._model.execution), caches, scores, self._mesh)

    def _pixels(self, images: Sequence[Sequence[Image]]) -> jax.Array | None:
        """[B, I, image, image, 3] normalised; conversations with fewer images get zeros, which nothing reads."""
        slots = max(len(own) for own in images)
        if slots == 0:
            return None
        size = self.config.siglip.image_size
        pixels = np.zeros((len(images), slots, size, size, 3), np.uint8)
        for row, own in enumerate(images):
            for slot, image in enumerate(own):
                if not _is_image(image):
                    raise UserError(f"image of type {type(image).__name__}, expected a PIL image or the path of a file")
                rgb = to_rgb(image, "image") if isinstance(image, PIL.Image.Image) else load_image(image)
                pixels[row, slot] = understanding_pixels(rgb, size, self._normalization.pad_colour)
        return jnp.asarray(self._normalization(pixels))


class JanusPipeline(Pipeline):
    """A Janus model ready to be asked and to draw. Make one with `janus_jax.from_pretrained`."""

    config: JanusConfig

    def generate_images(
        self, prompt: str | Sequence[str], num_images: int = 1, **options: Any
    ) -> list[PIL.Image.Image]:
        """Draws `num_images` images of a prompt (of each prompt of a list, in order); options of `generate_codes`."""
        return self.draw(self.generate_codes([prompt] if isinstance(prompt, str) else prompt, num_images, **options))

    def generate_codes(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        cfg_weight: float = 5.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        on_codes: Callable[[int], Any] | None = None,
    ) -> np.ndarray:
        """Image codes [len(prompts) * num_images, N] int32, the images of a prompt together.

        Image i of a prompt depends on the seed, i and the prompt alone, not on the batch it is drawn in; but for
        rounding, which may differ between programs of other shapes.

        Args:
            on_codes: told now and then how many codes each image has.

        Raises:
            UserError: empty prompt, bad option, a prompt that does not fit the context, or images that do not fit the
                memory.
        """
        request = self._requests.images(
            prompts,
            num_images,
            cfg_weight=cfg_weight,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        if not request.prompts:
            return np.zeros((0, self.config.image_tokens), np.int32)
        rows, drawn = self._drawn(len(prompts), num_images)
        spare = [request.prompts[-1]] * (rows - len(prompts))
        conditional, unconditional, unconditional_of = self._guided([*request.prompts, *spare])
        length = conditional.tokens.shape[1]
        self._check_memory(
            {
                f"{rows} prompts": (3 * rows + len(unconditional.tokens), length),  # as read, then for both halves
                f"{rows * drawn} images": (2 * rows * drawn, self.config.image_tokens),
            },
            (rows + len(unconditional.tokens), length, length),
        )
        per_image = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(drawn))
        with self._on_mesh():
            codes = decode_image_codes(
                self._model,
                self.params,
                conditional,
                unconditional,
                unconditional_of,
                jnp.tile(per_image, (rows, 1)),
                jnp.float32(cfg_weight),
                sampling=request.sampling,
                on_codes=on_codes,
            )
        return np.asarray(codes)[: len(prompts), :num_images].reshape(-1, self.config.image_tokens)

    def draw(self, codes: np.ndarray) -> list[PIL.Image.Image]:
        """Image codes [B, N] -> images, decoded in portions of 1, 2, 4, 8 or 16 per device, each a compiled program.

        Raises:
            UserError: another shape, or numbers that are not codes.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise UserError(f"codes of type {codes.dtype}, expected whole numbers")
        if codes.ndim != 2 or codes.shape[1] != self.config.image_tokens:
            raise UserError(f"codes of shape {codes.shape}, expected [images, {self.config.image_tokens}]")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.config.vq.num_codes:
            raise UserError(f"codes from {codes.min()} to {codes.max()}, expected 0 to {self.config.vq.num_codes - 1}")
        images, shares = [], self._row_shares
        for start in range(0, len(codes), shares * PIXEL_CHUNK):
            chunk = codes[start : start + shares * PIXEL_CHUNK]
            size = shares << ((len(chunk) - 1) // shares).bit_length()  # a power of two for each device
            with self._on_mesh():
                pixels = decode_pixels(self._model, self.params, np.pad(chunk, ((0, size - len(chunk)), (0, 0))))
            images += to_images(pixels)[: len(chunk)]
        return images

    def _guided(self, prompts: Sequence[Sequence[int]]) -> tuple[Prompts, Prompts, np.ndarray]:
        """Prompts, their unconditional ones, and the index of each prompt's among these.

        An unconditional prompt depends on the length alone, so there is one per length; repeated up to a power of two,
        so that other lengths rarely compile another program.
        """
        conditional = self._pad(prompts)
        lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
        by_length = {len(prompt): self.tokenizer.unconditional(prompt) for prompt in prompts}
        repeated = lengths + lengths[-1:] * ((1 << (len(lengths) - 1).bit_length()) - len(lengths))
        unconditional = self._pad([by_length[length] for length in repeated])
        return conditional, unconditional, np.array([lengths.index(len(prompt)) for prompt in prompts], np.int32)


class _Layers(tuple):
    """The layers of a parameter, apart, where one stacked array is read layer by layer."""

    @property
    def dtype(self) -> np.dtype:
        return self[0].dtype


def _is_image(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image | str | os.PathLike)
