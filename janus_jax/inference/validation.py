"""What is asked of a model, checked and turned into token ids: needs its config and tokenizer, but no weights.

So that a mistake is told before the weights are loaded.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

from janus_jax.data.prompts import (
    BEGIN_OF_IMAGE,
    IMAGE_PLACEHOLDER,
    STYLES,
    Message,
    format_conversation,
    generation_prompt,
)
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import FamilyConfig, JanusFlowConfig
from janus_jax.ops.flow import SOLVERS

DEFAULT_NEW_TOKENS = 512  # of an answer, where the context has room for them
# Beyond these the float32 logits overflow, or a seed has the random numbers of another.
MIN_TEMPERATURE, MAX_TEMPERATURE, MAX_CFG_WEIGHT, MAX_SEED = 1e-6, 1e6, 1e6, 2**32 - 1
MAX_FLOW_STEPS = 10_000


class TextRequest(NamedTuple):
    prompts: list[list[int]]  # a placeholder per token of an image
    max_new_tokens: list[int]  # of each answer
    sampling: Sampling


class ImageRequest(NamedTuple):
    prompts: list[list[int]]  # ending with `<begin_of_image>`
    sampling: Sampling


class RequestReader:
    """Reads requests for one model."""

    def __init__(self, config: FamilyConfig, tokenizer: Tokenizer):
        """Raises UserError for an unknown prompt style, or a tokenizer without its role tokens."""
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
        max_new_tokens: int | None,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int,
    ) -> TextRequest:
        """Arguments and errors of `JanusPipeline.answer`, except that images are only counted."""
        sampling = _sampling(temperature, top_p, top_k, seed)
        if max_new_tokens is not None:
            _check_whole("max_new_tokens", max_new_tokens, 1)
        if len(conversations) != len(images):
            raise UserError(f"got {len(conversations)} conversations but {len(images)} lists of images")
        prompts = [self._question(messages, len(own)) for messages, own in zip(conversations, images, strict=True)]
        limits = [self._room(prompt, max_new_tokens) for prompt in prompts]
        return TextRequest(prompts, limits, sampling)

    def images(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        cfg_weight: float,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int,
    ) -> ImageRequest:
        """Arguments and errors of `JanusPipeline.generate_codes`."""
        sampling = _sampling(temperature, top_p, top_k, seed)
        _check_drawing(prompts, num_images, cfg_weight)
        return ImageRequest([self._drawing(prompt) for prompt in prompts], sampling)

    def latents(
        self, prompts: Sequence[str], num_images: int, *, cfg_weight: float, num_steps: int, solver: str, seed: int
    ) -> list[list[int]]:
        """Arguments and errors of `JanusFlowPipeline.generate_latents`, except its noise; returns the prompts' ids."""
        _check_drawing(prompts, num_images, cfg_weight)
        _check_whole("seed", seed, 0, MAX_SEED)
        _check_whole("num_steps", num_steps, 1, MAX_FLOW_STEPS)
        if not isinstance(solver, str) or solver not in SOLVERS:
            raise UserError(f"solver={solver!r} is not one of {sorted(SOLVERS)}")
        return [self._drawing(prompt) for prompt in prompts]

    def _question(self, messages: Sequence[Message], num_images: int) -> list[int]:
        if not all(isinstance(message, Message) for message in messages):
            raise UserError("a conversation is not a list of Message(role, text)")
        if not messages or messages[-1].role != "user":
            raise UserError("a conversation does not end with a message of the user, which could be answered")
        ids = self._tokenizer.encode(format_conversation([*messages, Message("assistant", "")], self._style))
        self._refuse_begin_of_image(ids)
        placeholders = ids.count(self._tokenizer.image_id)
        if placeholders != num_images:
            raise UserError(f"{placeholders} {IMAGE_PLACEHOLDER} in the prompt, {num_images} images")
        return self._tokenizer.expand_images(ids, self._config.siglip.num_tokens).tolist()

    def _drawing(self, prompt: str) -> list[int]:
        _check_text(prompt, "a description of the image")
        ids = self._tokenizer.encode(generation_prompt(prompt, self._style))
        if self._tokenizer.image_id in ids:
            raise UserError(f"the prompt of a drawing contains {IMAGE_PLACEHOLDER}, which is for questions")
        self._refuse_begin_of_image(ids[:-1])
        self._check_length(ids, self._config.image_tokens, "the tokens of an image")
        return ids

    def _refuse_begin_of_image(self, ids: Sequence[int]) -> None:
        """Before images are put in: JanusFlow would take a written one for the first place of an image."""
        if isinstance(self._config, JanusFlowConfig) and self._tokenizer.begin_of_image_id in ids:
            raise UserError(f"the prompt contains {BEGIN_OF_IMAGE}, where JanusFlow would put an image")

    def _room(self, prompt: Sequence[int], max_new_tokens: int | None) -> int:
        """New tokens of an answer: as many as asked for, else the default or what the context has left."""
        self._check_length(prompt, max_new_tokens or 1, "max_new_tokens" if max_new_tokens else "an answer")
        return max_new_tokens or min(DEFAULT_NEW_TOKENS, self._config.llama.max_length - len(prompt))

    def _check_length(self, prompt: Sequence[int], new_tokens: int, what: str) -> None:
        limit = self._config.llama.max_length
        if len(prompt) + new_tokens > limit:
            raise UserError(
                f"prompt of {len(prompt)} tokens and {new_tokens} for {what} exceed the context of {limit} tokens"
            )


def user_message(text: str, num_images: int) -> Message:
    """A user's turn with its images in front, a line each, as in the official prompts."""
    _check_text(text, "a question")
    return Message("user", f"{IMAGE_PLACEHOLDER}\n" * num_images + text)


def _sampling(temperature: float, top_p: float, top_k: int, seed: int) -> Sampling:
    _check_number("temperature", temperature)
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # also NaN
        raise UserError(f"temperature={temperature}, expected 0 or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    _check_number("top_p", top_p)
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}, expected a value in (0, 1]")
    _check_whole("top_k", top_k, 0)  # 0 is off
    _check_whole("seed", seed, 0, MAX_SEED)
    return Sampling.of(float(temperature), float(top_p), int(top_k))


def _check_drawing(prompts: Sequence[str], num_images: int, cfg_weight: float) -> None:
    _check_number("cfg_weight", cfg_weight)
    _check_range("cfg_weight", cfg_weight, -MAX_CFG_WEIGHT, MAX_CFG_WEIGHT)
    _check_whole("num_images", num_images, 1)
    if isinstance(prompts, str):
        raise UserError(f"prompts={prompts!r}, expected a list of prompts")


def _check_text(prompt: str, expected: str) -> None:
    if not isinstance(prompt, str):
        raise UserError(f"a prompt of type {type(prompt).__name__}, expected {expected}")
    if not prompt.strip():
        raise UserError(f"the prompt is empty, expected {expected}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UserError(f"{name}={value!r}, expected a number")


def _check_whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name}={value!r}, expected a whole number")
    _check_range(name, value, low, high)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        expected = f"at least {low}" if high == math.inf else f"{low:.10g} to {high:.10g}"
        raise UserError(f"{name}={value}, expected {expected}")
