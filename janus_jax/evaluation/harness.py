"""Answers the requests of other evaluation harnesses: chat messages with images, and options by transformers' names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from janus_jax.data.prompts import IMAGE_PLACEHOLDER, Message
from janus_jax.errors import UserError
from janus_jax.inference.pipeline import Pipeline
from janus_jax.inference.requests import Image, TextRequest
from janus_jax.inference.sampling import Sampling

SHOWN_REFUSALS = 10


class HarnessRequest(NamedTuple):
    """One question of a harness.

    Attributes:
        name: where it comes from, for messages.
        messages: each {"role": ..., "content": [{"type": "text", "text": ...} or {"type": "image", "url": ...}]}; an
            image is one of PIL or the path of a file.
        options: `max_new_tokens`, `do_sample`, `temperature`, `top_p`, `top_k` and `until` (strings that end the
            answer). `num_beams` may be 1. Others are ignored, as other models of a harness ignore them.
    """

    name: str
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]


class _Asked(NamedTuple):
    """A request as the engine takes it."""

    place: int  # in the list of requests
    request: TextRequest
    sampling: Sampling


def answer_all(
    pipeline: Pipeline, requests: Sequence[HarnessRequest], batch_size: int, system_prompt: str | None = None
) -> list[str]:
    """Answers requests in batches of similar length, and returns the answers in the order of the requests.

    A request that the model cannot take, such as one that is longer than its context, gets an empty answer and is
    counted in a warning, so that it counts as wrong and a long run goes on. A sampled answer depends on its request
    and place alone.

    Args:
        system_prompt: of requests without one; None is that of the checkpoint's prompt style.

    Raises:
        UserError: an option or a message that no model of the family takes, or a batch that does not fit the memory.
    """
    answers = [""] * len(requests)
    groups: dict[tuple[Any, ...], list[_Asked]] = {}
    refused = []
    for place, request in enumerate(requests):
        messages, images = to_messages(request, system_prompt)
        decoding = to_decoding(request)
        try:
            (asked,), sampling = pipeline.engine.reader.text([messages], [images], prompt_numbers=[place], **decoding)
        except UserError as error:
            refused.append(f"{request.name}: {error}")
            continue
        key = (decoding["temperature"], decoding["top_p"], decoding["top_k"])
        groups.setdefault(key, []).append(_Asked(place, asked, sampling))
    for group in groups.values():
        group.sort(key=lambda asked: (len(asked.request.images), len(asked.request.prompt)), reverse=True)
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            made = pipeline.engine.answer([asked.request for asked in batch], batch[0].sampling)
            for place, answer in zip([asked.place for asked in batch], made, strict=True):
                answers[place] = cut(answer.text, requests[place].options.get("until"))
    if refused:
        shown = "; ".join(refused[:SHOWN_REFUSALS])
        logging.warning("%d of %d requests get an empty answer: %s", len(refused), len(requests), shown)
    return answers


def to_messages(request: HarnessRequest, system_prompt: str | None = None) -> tuple[list[Message], list[Image]]:
    """The conversation with a placeholder line for each image, and the images in order.

    Raises UserError for audio, video and other content, which no model of the family takes.
    """
    messages, images = [], []
    if system_prompt is not None and request.messages[0]["role"] != "system":
        messages.append(Message("system", system_prompt))
    for message in request.messages:
        text = ""
        for content in message["content"]:
            if content["type"] == "text":
                text += content["text"]
            elif content["type"] == "image":
                text += f"{IMAGE_PLACEHOLDER}\n"
                images.append(content["url"])
            else:
                raise UserError(f"{request.name}: content of type {content['type']!r}, expected text and images")
        messages.append(Message(message["role"], text))
    return messages, images


def to_decoding(request: HarnessRequest) -> dict[str, Any]:
    """Options of `RequestReader.text`. Raises UserError for beam search."""
    options = request.options
    if options.get("num_beams") not in (None, 1):
        raise UserError(f"{request.name}: num_beams={options['num_beams']}, expected 1: there is no beam search")
    temperature = options.get("temperature")
    samples = options.get("do_sample", bool(temperature))
    if not samples:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0
    top_p, top_k = options.get("top_p"), options.get("top_k")
    return {
        "max_new_tokens": options.get("max_new_tokens"),
        "temperature": float(temperature),
        "top_p": 1.0 if top_p is None or not samples else float(top_p),
        "top_k": 0 if top_k is None or not samples else int(top_k),
    }


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the strings that end an answer."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop)[0]
    return text.strip()
