"""What an engine is asked and what it answers, as token ids."""

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import PIL.Image

Image: TypeAlias = PIL.Image.Image | str | os.PathLike  # a decoded image, or the path of a file


class TextRequest(NamedTuple):
    """One prompt to be continued."""

    prompt: list[int]  # token ids, with the placeholder of an image once for each token of the image
    images: Sequence[Image]  # images in the order of their placeholders
    max_new_tokens: int
    seed: int = 0  # with the prompt number it determines the random key of the answer (`sampling.sample_keys`)
    prompt_number: int = 0


class ImageRequest(NamedTuple):
    """One prompt to generate images of."""

    prompt: list[int]  # token ids, ending with `<begin_of_image>`
    seed: int = 0  # with the prompt number and the number of an image it determines the image's random key
    prompt_number: int = 0
    first_image: int = 0  # number of the first image, where an earlier batch has made those before it


class ImageBatch(NamedTuple):
    """What of some prompts, with the same number of images each, is generated together."""

    prompts: slice
    images: range  # numbers of the images of each of these prompts


class Answer(NamedTuple):
    """The answer to a `TextRequest`."""

    text: str
    token_ids: list[int]  # without end-of-sentence
    prompt_token_ids: list[int]


def is_image(value: object) -> bool:
    """Whether a value is an `Image`."""
    return isinstance(value, PIL.Image.Image | str | os.PathLike)
