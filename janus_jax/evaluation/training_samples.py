"""Samples while training: what a run answers and generates with its own parameters, every `sample.every_steps` steps.

The prompts, questions and random keys are the same each time, so that the samples of two steps can be compared. They
are computed on the mesh of the run from its own arrays: there is no second copy of the weights.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from janus_jax.data.images import decode_image, grid, to_images
from janus_jax.data.prompts import IMAGE_MARKER, IMAGE_PLACEHOLDER, Message
from janus_jax.data.records import Record
from janus_jax.errors import UserError
from janus_jax.evaluation.fixed_inputs import first_square_images, understanding_records
from janus_jax.inference.engine import Engine
from janus_jax.inference.janus import JanusEngine
from janus_jax.inference.janusflow import JanusFlowEngine
from janus_jax.inference.requests import TextRequest
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import CodeModelConfig, ImageTokenizerConfig, JanusFlowConfig, SemanticTokenizerConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, abstract_params, bind, build
from janus_jax.ops.pixels import normalize
from janus_jax.training.actions import Action, ActionFactory, Moment, every
from janus_jax.training.sample_log import SampleLog
from janus_jax.training.start import Run

NUM_QUESTIONS = 4
MAX_NEW_TOKENS = 64


def sample_actions(config: ConfigDict) -> Sequence[ActionFactory]:
    """The factories for `training.loop.train`: none when `sample.every_steps` is 0, so that a run pays nothing."""
    return [make_sample_action] if config.sample.every_steps else []


def make_sample_action(run: Run, log: SampleLog) -> Action:
    """The action that fits the model of the run.

    Raises:
        UserError: A caption of `sample.prompts` is empty or too long, or an image tokenizer has no image to show.
    """
    if isinstance(run.plan.architecture, ImageTokenizerConfig):
        return ReconstructImages(run, log)
    return AnswerAndGenerate(run, log)


class AnswerAndGenerate:
    """Answers the first held-out questions greedily, and generates images of `sample.prompts`.

    Where `data.held_out` is 0, the questions are the first ones that the run is trained on. A run that keeps a moving
    average of its parameters samples with the average.
    """

    def __init__(self, run: Run, log: SampleLog):
        self._config, self._log = run.config, log
        self._engine = engine_of_run(run)
        self._records, self._questions = self._first_questions()
        self._captions = list(run.config.sample.prompts)
        reader = self._engine.reader
        number, seed = run.config.sample.num_images, run.config.seed
        read = reader.latents if isinstance(self._engine, JanusFlowEngine) else reader.codes
        self._prompts, self._options = read(self._captions, number, seed=seed)

    def is_due(self, moment: Moment) -> bool:
        return every(self._config.sample.every_steps, moment)

    def __call__(self, moment: Moment) -> None:
        engine = self._engine.with_params(moment.params(ema=moment.state.ema is not None))
        with little_memory_ends_no_run("samples", moment.step):
            if self._questions:
                self._answer(engine, moment)
            for i, caption in enumerate(self._captions):
                if moment.stop_requested():  # a signal leaves little time
                    return
                self._generate(engine, moment, i, caption)

    def close(self) -> None:
        pass

    def _first_questions(self) -> tuple[list[Record], list[TextRequest]]:
        """The first records with a question that can be asked. One that cannot be asked ends no run, as in training."""
        records: list[Record] = []
        requests: list[TextRequest] = []
        options: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": self._config.seed}
        for record in understanding_records(self._config, NUM_QUESTIONS):
            question = _question(record)
            try:
                images = [_images(record, question)]
                (request,), _ = self._engine.reader.text([question], images, max_new_tokens=None, **options)
            except UserError:  # a damaged image, a control token in the text, or a question longer than the context
                continue
            records.append(record)
            requests.append(request._replace(max_new_tokens=min(MAX_NEW_TOKENS, request.max_new_tokens)))
            if len(records) == NUM_QUESTIONS:
                break
        return records, requests

    def _answer(self, engine: Engine, moment: Moment) -> None:
        answers = engine.answer(self._questions, Sampling())
        for i, (record, answer) in enumerate(zip(self._records, answers, strict=True)):
            question, expected = (message.text for message in _first_turn(record))
            text = f"question: {question}\n\nanswer: {answer.text}\n\nexpected: {expected}"
            self._log.text(moment.step, f"answer-{i:02}", text)
        moment.keep_alive()

    def _generate(self, engine: Engine, moment: Moment, i: int, caption: str) -> None:
        number = self._config.sample.num_images
        samples = engine.generate(self._prompts[i : i + 1], number, **self._options)[0]
        self._log.image(moment.step, f"image-{i:02}", grid(engine.decode(samples), columns=number))
        self._log.text(moment.step, f"image-{i:02}", caption)
        moment.keep_alive()


class ReconstructImages:
    """Sends images through the tokenizer that is trained: a row of originals above the row of reconstructions.

    The images are the first held-out ones or, where `data.held_out` is 0, the first ones that the run is trained on.
    """

    def __init__(self, run: Run, log: SampleLog):
        config = run.plan.architecture
        assert isinstance(config, ImageTokenizerConfig)
        self._every_steps, self._log = run.config.sample.every_steps, log
        size = run.config.data.image_size or config.image_size
        self._pixels = first_square_images(run.config, size, run.config.sample.num_images)
        dtype = run.plan.execution.dtype
        semantic = isinstance(config, SemanticTokenizerConfig)
        model = build(config.vq if isinstance(config, SemanticTokenizerConfig) else config, Execution(dtype=dtype))

        def reconstruct(params: Params, pixels: jax.Array) -> jax.Array:
            params = params["vq"] if semantic else params
            return bind(model, params)(normalize(pixels, dtype)).reconstruction.astype(jnp.float32)

        self._reconstruct = jax.jit(reconstruct, out_shardings=NamedSharding(run.plan.mesh, PartitionSpec()))

    def is_due(self, moment: Moment) -> bool:
        return every(self._every_steps, moment)

    def __call__(self, moment: Moment) -> None:
        params = moment.params(ema=moment.state.ema is not None)
        images = [PIL.Image.fromarray(pixels) for pixels in self._pixels]
        images += to_images(np.asarray(self._reconstruct(params, self._pixels)))
        self._log.image(moment.step, "reconstructions", grid(images, columns=len(self._pixels)))

    def close(self) -> None:
        pass


@contextlib.contextmanager
def little_memory_ends_no_run(what: str, step: int) -> Iterator[None]:
    """Logs that there are no samples or figures (`what`) when the memory is not enough; the training goes on.

    With several processes, only what the check of the memory found beforehand is passed over, since all of them find
    it; where one process alone meets an error later, the others wait for it.
    """
    try:
        yield
    except UserError as error:
        logging.error("no %s after step %d: %s", what, step, error)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logging.error("no %s after step %d: %s", what, step, str(error).splitlines()[0])


def engine_of_run(run: Run) -> JanusEngine | JanusFlowEngine:
    """An engine without parameters, whose programs take those of the training state (`Engine.with_params`)."""
    config, tokenizer = run.plan.architecture, run.tokenizer
    assert tokenizer is not None
    options: dict[str, Any] = {"dtype": run.plan.execution.dtype, "mesh": run.plan.mesh, "scan_layers": True}
    params = abstract_params(config, run.plan.lora)
    if isinstance(config, JanusFlowConfig):
        return JanusFlowEngine(config, params, tokenizer, vae=run.vae, **options)
    assert isinstance(config, CodeModelConfig)
    return JanusEngine(config, params, tokenizer, **options)


def _first_turn(record: Record) -> tuple[Message, Message]:
    """The first question and its answer."""
    dialog = record.messages[1:] if record.messages[0].role == "system" else record.messages
    return dialog[0], dialog[1]


def _question(record: Record) -> list[Message]:
    """The messages up to the first question, with the placeholders that prompts have for images."""
    question = _first_turn(record)[0]
    messages = record.messages[: record.messages.index(question) + 1]
    return [Message(role, text.replace(IMAGE_MARKER, IMAGE_PLACEHOLDER)) for role, text in messages]


def _images(record: Record, question: Sequence[Message]) -> list[PIL.Image.Image]:
    """The images that the messages of a question refer to."""
    count = sum(message.text.count(IMAGE_PLACEHOLDER) for message in question)
    return [decode_image(data, record.key, training=True) for data in record.images[:count]]
