"""Reads requests: checks a user's options and turns prompts into token ids.

It needs a model's config and tokenizer but no weights, so that mistakes are reported before the weights are loaded.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data.condition_images import conditioned_prompt, with_markers
from janus_jax.data.prompts import (
    BEGIN_OF_IMAGE,
    IMAGE_MARKER,
    IMAGE_PLACEHOLDER,
    STYLES,
    Message,
    format_conversation,
    generation_prompt,
)
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.code_windows import AUTO, MAX_WINDOW, supports_windows
from janus_jax.inference.requests import ImageRequest, TextRequest, check_image_lists
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import FamilyConfig, JanusConfig, JanusFlowConfig, JanusVariantConfig
from janus_jax.ops.flow import SOLVERS

DEFAULT_NEW_TOKENS = 512  # length of an answer, where the context has room for it
# Logits beyond these limits overflow in float32; a larger seed or prompt number would be cut to 32 bits.
MIN_TEMPERATURE, MAX_TEMPERATURE, MAX_CFG_WEIGHT, MAX_SEED = 1e-6, 1e6, 1e6, 2**32 - 1
MAX_FLOW_STEPS = 10_000
MAX_IMAGES = 1_000_000  # of a request or a command; even a fast machine would take weeks


class RequestReader:
    """Reads requests for one model."""

    def __init__(self, config: FamilyConfig, tokenizer: Tokenizer):
        """Raises UserError for an unknown prompt style, or a tokenizer that lacks a role token of the style."""
        if config.prompt_style not in STYLES:
            raise UserError(f"prompt_style={config.prompt_style!r} of the model is not one of {sorted(STYLES)}")
        self._config, self._tokenizer = config, tokenizer
        self._style = STYLES[config.prompt_style]
        tokenizer.check_roles(self._style)

    def text(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 0.95,
        top_k: int = 0,
        seed: int | Sequence[int] = 0,
        prompt_numbers: Sequence[int] | None = None,
    ) -> tuple[list[TextRequest], Sampling]:
        """Reads the arguments of `Pipeline.answer` and raises its errors, except that it only counts the images.

        The options are those of `TextOptions`.
        """
        if isinstance(self._config, JanusVariantConfig) and not self._config.understands:
            raise UserError("the model only generates images (understands=False): it answers no questions")
        sampling = _sampling(temperature, top_p, top_k)
        if max_new_tokens is not None:
            _check_whole("max_new_tokens", max_new_tokens, 1)
        if len(conversations) != len(images):
            raise UserError(f"got {len(conversations)} conversations but {len(images)} lists of images")
        identities = _identities(len(conversations), seed, prompt_numbers)
        prompts = [
            self._question(messages, len(attached)) for messages, attached in zip(conversations, images, strict=True)
        ]
        limits = [self._room(prompt, max_new_tokens) for prompt in prompts]
        return list(map(TextRequest, prompts, images, limits, *identities)), sampling

    def codes(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        cfg_weight: float = 5.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | Sequence[int] = 0,
        prompt_numbers: Sequence[int] | None = None,
        condition_images: Sequence[Sequence[Any]] | None = None,
        cfg_weight2: float = 5.0,
        window: int | str = AUTO,
    ) -> tuple[list[ImageRequest], dict[str, Any]]:
        """Reads the arguments of `JanusPipeline.generate_codes` and raises its errors.

        Returns:
            The requests, and the options of `JanusEngine.generate`.
        """
        options = {"cfg_weight": cfg_weight, "sampling": _sampling(temperature, top_p, top_k), "window": window}
        _check_number("cfg_weight2", cfg_weight2)
        _check_range("cfg_weight2", cfg_weight2, 0, MAX_CFG_WEIGHT)
        self._check_window(window)
        requests = self._image_requests(prompts, num_images, cfg_weight, seed, prompt_numbers, condition_images)
        if condition_images is not None:
            options["cfg_weight2"] = cfg_weight2
        return requests, options

    def latents(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        cfg_weight: float = 2.0,
        num_steps: int = 30,
        solver: str = "euler",
        seed: int | Sequence[int] = 0,
        prompt_numbers: Sequence[int] | None = None,
    ) -> tuple[list[ImageRequest], dict[str, Any]]:
        """Reads the arguments of `JanusFlowPipeline.generate_latents`, except the noise, and raises its errors.

        Returns:
            The requests, and the options of `JanusFlowEngine.generate`.
        """
        _check_whole("num_steps", num_steps, 1, MAX_FLOW_STEPS)
        if not isinstance(solver, str) or solver not in SOLVERS:
            raise UserError(f"solver={solver!r} is not one of {sorted(SOLVERS)}")
        options = {"cfg_weight": cfg_weight, "num_steps": num_steps, "solver": solver}
        return self._image_requests(prompts, num_images, cfg_weight, seed, prompt_numbers), options

    def _image_requests(
        self,
        prompts: Sequence[str],
        num_images: int,
        cfg_weight: float,
        seed: int | Sequence[int],
        prompt_numbers: Sequence[int] | None,
        condition_images: Sequence[Sequence[Any]] | None = None,
    ) -> list[ImageRequest]:
        if isinstance(self._config, JanusVariantConfig) and not self._config.generates:
            raise UserError("the model only answers questions (generates=False): it generates no images")
        _check_number("cfg_weight", cfg_weight)
        _check_range("cfg_weight", cfg_weight, -MAX_CFG_WEIGHT, MAX_CFG_WEIGHT)
        _check_whole("num_images", num_images, 1, MAX_IMAGES)
        if isinstance(prompts, str):
            raise UserError(f"prompts={prompts!r}, expected a list of prompts")
        if len(prompts) * num_images > MAX_IMAGES:
            raise UserError(
                f"num_images={num_images} of each of {len(prompts)} prompts are {len(prompts) * num_images} images, "
                f"expected at most {MAX_IMAGES} in all"
            )
        identities = _identities(len(prompts), seed, prompt_numbers)
        if condition_images is None:
            return list(map(ImageRequest, [self._image_prompt(prompt) for prompt in prompts], *identities))
        if not isinstance(self._config, JanusConfig):
            raise UserError(
                "condition images: the model is no Janus or Janus-Pro, which alone read the codes of images"
            )
        check_image_lists(condition_images, prompts)
        ids = [self._conditioned_prompt(*pair) for pair in zip(prompts, condition_images, strict=True)]
        requests = map(ImageRequest, ids, *identities)
        return [each._replace(images=images) for each, images in zip(requests, condition_images, strict=True)]

    def _check_window(self, window: int | str) -> None:
        if isinstance(window, str):
            if window != AUTO:
                raise UserError(f"window={window!r}, expected {AUTO!r} or a whole number from 1 to {MAX_WINDOW}")
            return
        _check_whole("window", window, 1, MAX_WINDOW)
        if window > 1 and not supports_windows(self._config):
            raise UserError(f"window={window}: the semantic decoder of the model takes codes one by one, expected 1")

    def _question(self, messages: Sequence[Message], num_images: int) -> list[int]:
        if not all(isinstance(message, Message) and isinstance(message.text, str) for message in messages):
            raise UserError("a conversation is not a list of Message(role, text)")
        for message in messages:
            _check_unicode(message.text)
        if not messages or messages[-1].role != "user":
            raise UserError("a conversation does not end with a message of the user, which could be answered")
        ids = self._tokenizer.encode(format_conversation([*messages, Message("assistant", "")], self._style))
        self._refuse_begin_of_image(ids)
        placeholders = ids.count(self._tokenizer.image_id)
        if placeholders != num_images:
            raise UserError(f"{placeholders} {IMAGE_PLACEHOLDER} in the prompt, {num_images} images")
        return self._tokenizer.expand_images(ids, self._config.understanding.num_tokens).tolist()

    def _image_prompt(self, prompt: str) -> list[int]:
        _check_text(prompt, "a description of the image")
        ids = self._tokenizer.encode(generation_prompt(prompt, self._style))
        if self._tokenizer.image_id in ids:
            raise UserError(f"the prompt of an image contains {IMAGE_PLACEHOLDER}, which is only for questions")
        self._refuse_begin_of_image(ids[:-1])
        self._check_length(ids, self._config.image_tokens, "the tokens of an image")
        return ids

    def _conditioned_prompt(self, prompt: str, images: Sequence[Any]) -> list[int]:
        self._image_prompt(prompt)  # raises the errors of the text
        caption = with_markers(prompt, len(images))
        if caption.count(IMAGE_MARKER) != len(images):
            raise UserError(
                f"{caption.count(IMAGE_MARKER)} {IMAGE_MARKER} in the prompt, {len(images)} condition images"
            )
        sizes = self._config.understanding.num_tokens, self._config.image_tokens
        ids = conditioned_prompt(caption, self._tokenizer, self._style, *sizes).tolist()
        self._check_length(ids, self._config.image_tokens, "the tokens of an image")
        return ids

    def _refuse_begin_of_image(self, ids: Sequence[int]) -> None:
        """JanusFlow would take a `<begin_of_image>` that the user wrote for the first position of an image."""
        if isinstance(self._config, JanusFlowConfig) and self._tokenizer.begin_of_image_id in ids:
            raise UserError(f"the prompt contains {BEGIN_OF_IMAGE}, where JanusFlow would put an image")

    def _room(self, prompt: Sequence[int], max_new_tokens: int | None) -> int:
        """Number of new tokens of an answer: what was asked for, otherwise the default or what the context has left."""
        self._check_length(prompt, max_new_tokens or 1, "max_new_tokens" if max_new_tokens else "an answer")
        return int(max_new_tokens or 0) or min(DEFAULT_NEW_TOKENS, self._config.llama.max_length - len(prompt))

    def _check_length(self, prompt: Sequence[int], new_tokens: int, what: str) -> None:
        limit = self._config.llama.max_length
        if len(prompt) + new_tokens > limit:
            raise UserError(
                f"prompt of {len(prompt)} tokens and {new_tokens} for {what} exceed the context of {limit} tokens"
            )


def user_message(text: str, num_images: int) -> Message:
    """A user's message with a placeholder line for each image before the text, as in the official prompts."""
    _check_text(text, "a question")
    return Message("user", f"{IMAGE_PLACEHOLDER}\n" * num_images + text)


def _sampling(temperature: float, top_p: float, top_k: int) -> Sampling:
    _check_number("temperature", temperature)
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # also NaN
        raise UserError(f"temperature={temperature}, expected 0 or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    _check_number("top_p", top_p)
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}, expected a value in (0, 1]")
    _check_whole("top_k", top_k, 0)  # 0 keeps all tokens
    return Sampling.of(float(temperature), float(top_p), int(top_k))


def _identities(
    count: int, seed: int | Sequence[int], prompt_numbers: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The seed and the prompt number of each of `count` prompts."""
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        seeds = _whole_numbers("seed", seed, count)
    else:
        _check_whole("seed", seed, 0, MAX_SEED)
        seeds = [int(seed)] * count
    if prompt_numbers is None:
        return seeds, list(range(count))
    return seeds, _whole_numbers("prompt_numbers", prompt_numbers, count)


def _whole_numbers(name: str, values: Sequence[Any] | np.ndarray, count: int) -> list[int]:
    is_list = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    if not is_list or getattr(values, "ndim", 1) != 1:
        raise UserError(f"{name}={values!r}, expected a list with a whole number for each of {count} prompts")
    if len(values) != count:
        raise UserError(f"{name} has {len(values)} numbers, expected one for each of {count} prompts")
    for value in values:
        _check_whole(name, value, 0, MAX_SEED)
    return [int(value) for value in values]


def _check_text(prompt: str, expected: str) -> None:
    if not isinstance(prompt, str):
        raise UserError(f"a prompt of type {type(prompt).__name__}, expected {expected}")
    if not prompt.strip():
        raise UserError(f"the prompt is empty, expected {expected}")
    _check_unicode(prompt)


def _check_unicode(text: str) -> None:
    """Refuses surrogates: a half of a character, or, from a command line or a terminal, a byte that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the prompt is no Unicode text: character {error.start + 1} is {ascii(text[error.start])}, a byte that is "
            "not UTF-8 or half of a character"
        ) from error


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UserError(f"{name}={value!r}, expected a number")


def _check_whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name}={value!r}, expected a whole number")
    _check_range(name, value, low, high)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        expected = f"at least {low}" if high == math.inf else f"{low:.10g} to {high:.10g}"
        raise UserError(f"{name}={value}, expected {expected}")
