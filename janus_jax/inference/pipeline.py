"""The object behind the public API: a model with its tokenizer that answers questions and draws."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.typing import DTypeLike

from janus_jax.convert import folders
from janus_jax.data.images import JANUS_NORMALIZATION, Normalization, load_image, to_images, understanding_pixels
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, STYLES, Message, format_conversation, generation_prompt
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.decoding import Sampling, decode_image_codes, decode_pixels, decode_text
from janus_jax.inference.prompt import pad_prompts
from janus_jax.models.config import Execution, JanusConfig
from janus_jax.models.parameters import Params, build
from janus_jax.models.stack import unstack_layers

Image: TypeAlias = PIL.Image.Image | str | os.PathLike  # decoded, or the path of a file
PIXEL_CHUNK = 16  # images per VQ decoding call: bounds its memory


class Answer(NamedTuple):
    text: str
    token_ids: list[int]  # without end-of-sentence
    prompt_token_ids: list[int]


class JanusPipeline:
    """A Janus model ready to be asked and to draw. Make one with `janus_jax.from_pretrained`."""

    def __init__(
        self,
        config: JanusConfig,
        params: Params,
        tokenizer: Tokenizer,
        dtype: DTypeLike = jnp.float32,
        normalization: Normalization = JANUS_NORMALIZATION,
    ):
        """Takes parameters with stacked layers, as checkpoints hold them."""
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self._normalization = normalization
        self._style = STYLES[config.prompt_style]
        self._model = build(config, Execution(dtype=dtype, scan_layers=False))
        self._decoding_params = unstack_layers(params)

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
            UserError: empty prompt, unreadable image, or a prompt that does not fit the context.
        """
        if isinstance(prompt, str):
            own_images = [images] if isinstance(images, (PIL.Image.Image, str, os.PathLike)) else images
            return self.chat([own_images], [prompt], **options)[0]
        if len(images) != len(prompt):
            raise UserError(f"chat got {len(prompt)} prompts but {len(images)} lists of images")
        conversations = [[user_message(text, len(own))] for text, own in zip(prompt, images, strict=True)]
        return [answer.text for answer in self.answer(conversations, images, **options)]

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Image]],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> list[Answer]:
        """Continues conversations that end with a user's message.

        Args:
            conversations: messages whose texts hold an `<image_placeholder>` per image.
            images: of each conversation, in the order of the placeholders.
            temperature: 0 is greedy.

        Raises:
            UserError: bad option, unreadable image, or a prompt that does not fit the context.
        """
        sampling = _sampling(temperature, top_p)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}, expected at least 1")
        if not conversations:
            return []
        tokens_per_image = self.config.siglip.num_tokens
        prompts = []
        for messages, own in zip(conversations, images, strict=True):
            text = format_conversation([*messages, Message("assistant", "")], self._style)
            ids = self.tokenizer.encode(text)
            if ids.count(self.tokenizer.image_id) != len(own):
                raise UserError(
                    f"{ids.count(self.tokenizer.image_id)} {IMAGE_PLACEHOLDER} in the prompt, {len(own)} images"
                )
            prompts.append(self.tokenizer.expand_images(ids, tokens_per_image).tolist())
        self._check_length(prompts, max_new_tokens, "max_new_tokens")
        pixels = self._pixels(images)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
        tokens = decode_text(
            self._model,
            self._decoding_params,
            pad_prompts(prompts, self.tokenizer.image_id),
            pixels,
            keys,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_id=self.tokenizer.eos_id,
        )
        answers = []
        for prompt, row in zip(prompts, np.asarray(tokens).tolist(), strict=True):
            ids = row[: row.index(self.tokenizer.eos_id)] if self.tokenizer.eos_id in row else row
            answers.append(Answer(self.tokenizer.decode(ids).strip(), ids, prompt))
        return answers

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
        seed: int = 0,
    ) -> np.ndarray:
        """Image codes [len(prompts) * num_images, N] int32, the images of a prompt together.

        Image i of a prompt depends on the seed, i and the prompt alone, not on the batch it is drawn in.

        Raises:
            UserError: empty prompt, bad option, or a prompt that does not fit the context.
        """
        sampling = _sampling(temperature, top_p)
        if num_images < 1:
            raise UserError(f"num_images={num_images}, expected at least 1")
        if any(not prompt.strip() for prompt in prompts):
            raise UserError("the prompt is empty, expected a description of the image")
        if not prompts:
            return np.zeros((0, self.config.image_tokens), np.int32)
        ids = [
            self.tokenizer.encode(generation_prompt(prompt, self._style))
            for prompt in prompts
            for _ in range(num_images)
        ]
        if any(self.tokenizer.image_id in prompt for prompt in ids):
            raise UserError(f"the prompt of a drawing contains {IMAGE_PLACEHOLDER}, which is for questions")
        self._check_length(ids, self.config.image_tokens, "the tokens of an image")
        conditional = pad_prompts(ids, self.tokenizer.image_id)
        unconditional = pad_prompts([self.tokenizer.unconditional(prompt) for prompt in ids], self.tokenizer.image_id)
        image_index = jnp.tile(jnp.arange(num_images), len(prompts))
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), image_index)
        codes = decode_image_codes(
            self._model,
            self._decoding_params,
            conditional,
            unconditional.tokens,
            keys,
            jnp.float32(cfg_weight),
            sampling=sampling,
        )
        return np.asarray(codes)

    def draw(self, codes: np.ndarray) -> list[PIL.Image.Image]:
        """Image codes [B, N] -> images."""
        images = []
        for start in range(0, len(codes), PIXEL_CHUNK):
            chunk = codes[start : start + PIXEL_CHUNK]
            padded = np.pad(chunk, ((0, PIXEL_CHUNK - len(chunk)), (0, 0)))  # one compiled shape
            pixels = decode_pixels(self._model, self._decoding_params, padded)
            images += to_images(pixels)[: len(chunk)]
        return images

    def save_pretrained(self, folder: epath.PathLike, format: str = "orbax", dtype: DTypeLike | None = None) -> None:
        """Writes a complete model folder, which `janus_jax.from_pretrained` reads.

        Args:
            folder: new or empty.
            format: "orbax" (ours), "hf" (transformers' JanusForConditionalGeneration) or "deepseek" (the original).
            dtype: of the parameters; None keeps that of `self.params`.

        Raises:
            UserError: unknown format, one that cannot hold this model, a folder that is not empty, or a full disk.
        """
        source = folders.MemorySource(self.config, self.params, self.tokenizer, self._normalization)
        folders.write_folder(source, folder, format, dtype)

    def _pixels(self, images: Sequence[Sequence[Image]]) -> jax.Array | None:
        """[B, I, image, image, 3] normalised; conversations with fewer images get zeros, which nothing reads."""
        slots = max(len(own) for own in images)
        if slots == 0:
            return None
        size = self.config.siglip.image_size
        pixels = np.zeros((len(images), slots, size, size, 3), np.uint8)
        for row, own in enumerate(images):
            for slot, image in enumerate(own):
                loaded = image.convert("RGB") if isinstance(image, PIL.Image.Image) else load_image(image)
                pixels[row, slot] = understanding_pixels(loaded, size, self._normalization.pad_colour)
        return jnp.asarray(self._normalization(pixels))

    def _check_length(self, prompts: Sequence[Sequence[int]], new_tokens: int, what: str) -> None:
        longest, limit = max(len(prompt) for prompt in prompts), self.config.llama.max_length
        if longest + new_tokens > limit:
            raise UserError(
                f"prompt of {longest} tokens and {new_tokens} for {what} exceed the context of {limit} tokens"
            )


def from_pretrained(path: epath.PathLike, dtype: DTypeLike | None = None) -> JanusPipeline:
    """Loads a model: a folder or training workdir of janus_jax, a Hugging Face or a DeepSeek folder.

    Args:
        dtype: of parameters and compute; None is float32 on CPU and bfloat16 on accelerators.

    Raises:
        UserError: not a model folder, not a Janus model, or damaged.
    """
    source = folders.open_folder(path)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    params = folders.load_params(source, dtype)
    return JanusPipeline(source.config, params, source.tokenizer, dtype, source.normalization)


def user_message(text: str, num_images: int) -> Message:
    """A user's turn with its images in front, a line each, as in the official prompts."""
    if not text.strip():
        raise UserError("the prompt is empty, expected a question")
    return Message("user", f"{IMAGE_PLACEHOLDER}\n" * num_images + text)


def _sampling(temperature: float, top_p: float) -> Sampling:
    if temperature < 0:
        raise UserError(f"temperature={temperature}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}, expected a value in (0, 1]")
    return Sampling(temperature, top_p)
