"""Lets a model of the family answer the questions of a benchmark, and generate its images."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import PIL.Image
import PIL.PngImagePlugin

from janus_jax.data.images import decode_image
from janus_jax.data.prompts import STYLES, Message, format_conversation
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference, ImageRequest, Question
from janus_jax.evaluation.records import AnswerRecord
from janus_jax.inference.pipeline import Pipeline
from janus_jax.inference.requests import TextRequest
from janus_jax.inference.validation import RequestReader, user_message
from janus_jax.models.config import FamilyConfig, JanusFlowConfig

READING_THREADS = 8  # Pillow decodes several images at the same time.
# The prompt style with the role strings of VLMEvalKit's adaptor, by the style of a checkpoint. The system prompt stays.
VLMEVALKIT_STYLES = {"janus_pro": "janus", "janus_pro_tiny": "janus_plain"}
ROLE_STRINGS = ("checkpoint", "vlmevalkit")


class ReadImage(NamedTuple):
    """An image of a question."""

    image: PIL.Image.Image | None
    sha256: str  # of the encoded image; "" when it could not be read
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a model is asked, the same for all requests of a benchmark.

    Attributes:
        generation: options of `generate_codes` or `generate_latents` as it is for the model, without the seed.
        max_new_tokens: length of the longest answer.
        system_prompt: of questions; "" is none, and None is that of the checkpoint's prompt style.
        role_strings: one of `ROLE_STRINGS`; the strings for user and assistant in questions.
    """

    generation: Mapping[str, Any]
    max_new_tokens: int = 128
    system_prompt: str | None = None
    role_strings: str = "checkpoint"
    seed: int = 0


def published_generation(config: FamilyConfig, cfg_weight: float | None = None) -> dict[str, Any]:
    """Options of images as published for the kind of model: codes without truncation, 30 steps of Euler for JanusFlow.

    Args:
        cfg_weight: None is that of the kind of model.
    """
    if isinstance(config, JanusFlowConfig):
        return {"cfg_weight": 2.0 if cfg_weight is None else cfg_weight, "num_steps": 30, "solver": "euler"}
    return {"cfg_weight": 5.0 if cfg_weight is None else cfg_weight, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


class ModelAnswers:
    """The model of an `evaluation.runner.run`.

    Answers are greedy. Image i of a request depends on its prompt, the seed, the request's index and i alone.
    """

    def __init__(self, pipeline: Pipeline, decoding: Decoding):
        """Args: pipeline: one of a kind that generates images; for questions the base class is enough."""
        self._pipeline: Any = pipeline
        self._decoding = decoding
        self._requests = RequestMaker(pipeline.config, pipeline.tokenizer, decoding)

    def answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        """Answers questions in one batch. One that cannot be asked gets a record with the reason."""
        names = {image.name: image for question in questions for image in question.images}
        with ThreadPoolExecutor(READING_THREADS) as pool:
            images = dict(zip(names, pool.map(_read, names.values()), strict=True))
        asked: list[tuple[int, TextRequest]] = []
        records: dict[int, AnswerRecord] = {}
        for place, question in enumerate(questions):
            attached = [images[image.name] for image in question.images]
            hashes = tuple(image.sha256 for image in attached)
            try:
                asked.append((place, self._requests.text(question, attached)))
                records[place] = AnswerRecord(question.index, "", 0, "", "", hashes)
            except UserError as error:
                records[place] = AnswerRecord(question.index, "", 0, "", str(error), hashes)
        answers = self._pipeline.engine.answer([request for _, request in asked])
        for (place, request), answer in zip(asked, answers, strict=True):
            length = len(answer.token_ids)
            finish = "length" if length == request.max_new_tokens else "stop"
            records[place] = records[place]._replace(text=answer.text, num_tokens=length, finish=finish)
        return [records[place] for place in range(len(questions))]

    def generate(self, requests: Sequence[ImageRequest]) -> list[list[bytes] | str]:
        """Generates the images of requests for the same number of images, as PNG files.

        Requests that cannot be asked, such as one whose prompt is too long, get the reason instead.
        """
        results: dict[int, list[bytes] | str] = {}
        for place, request in enumerate(requests):
            try:
                self._requests.check_images(request)
            except UserError as error:
                results[place] = str(error)
        places = [place for place in range(len(requests)) if place not in results]
        asked, number = [requests[place] for place in places], requests[0].num_images
        images = self._pipeline.generate_images(
            [request.prompt for request in asked],
            number,
            seed=self._decoding.seed,
            prompt_numbers=[request.index for request in asked],
            **self._decoding.generation,
        )
        for row, place in enumerate(places):
            results[place] = list(map(to_png, images[row * number : (row + 1) * number]))
        return [results[place] for place in range(len(requests))]


class RequestMaker:
    """Makes the requests of a run. It needs no weights, so that mistakes are reported before they are loaded."""

    def __init__(self, config: FamilyConfig, tokenizer: Tokenizer, decoding: Decoding):
        """Raises UserError for decoding options that no request could have."""
        self._decoding = decoding
        asking = with_role_strings(config, decoding.role_strings)
        self._questions, self._style = RequestReader(asking, tokenizer), STYLES[asking.prompt_style]
        self._images = RequestReader(config, tokenizer)
        self._is_flow = isinstance(config, JanusFlowConfig)
        self.text(Question(0, "", "?", (), None, ""), ())
        self.check_images(ImageRequest(0, "", "a", 1))

    def conversation(self, question: Question) -> list[Message]:
        """What the model is told."""
        prompt = self._decoding.system_prompt
        system = [] if prompt is None else [Message("system", prompt)]
        return [*system, user_message(question.prompt, len(question.images))]

    def rendered(self, question: Question) -> str:
        """The whole prompt as text, with the placeholders of images."""
        return format_conversation([*self.conversation(question), Message("assistant", "")], self._style)

    def text(self, question: Question, images: Sequence[ReadImage]) -> TextRequest:
        """Raises UserError for an unreadable image, or a prompt that the model does not take."""
        for image in images:
            if image.error:
                raise UserError(image.error)
        (request,), _ = self._questions.text(
            [self.conversation(question)],
            [[image.image for image in images]],
            max_new_tokens=self._decoding.max_new_tokens,
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            seed=self._decoding.seed,
            prompt_numbers=[question.index],
        )
        return request

    def check_images(self, request: ImageRequest) -> None:
        """Raises UserError for a prompt that the model does not take."""
        read: Callable[..., Any] = self._images.latents if self._is_flow else self._images.codes
        identity = {"seed": self._decoding.seed, "prompt_numbers": [request.index]}
        read([request.prompt], request.num_images, **self._decoding.generation, **identity)


def with_role_strings(config: FamilyConfig, role_strings: str) -> FamilyConfig:
    """The architecture with the prompt style of `Decoding.role_strings`."""
    if role_strings not in ROLE_STRINGS:
        raise UserError(f"role_strings={role_strings!r} is not one of {list(ROLE_STRINGS)}")
    if role_strings == "checkpoint":
        return config
    return dataclasses.replace(config, prompt_style=VLMEVALKIT_STYLES.get(config.prompt_style, config.prompt_style))


def to_png(image: PIL.Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """The image as a PNG file, with texts in chunks of it by their keywords."""
    buffer, chunks = io.BytesIO(), PIL.PngImagePlugin.PngInfo()
    for keyword, text in (texts or {}).items():
        chunks.add_text(keyword, text)
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def _read(reference: ImageReference) -> ReadImage:
    try:
        data = reference.read()
        return ReadImage(decode_image(data, reference.name), hashlib.sha256(data).hexdigest())
    except UserError as error:
        return ReadImage(None, "", str(error))
