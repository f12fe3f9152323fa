"""Requests of other harnesses: messages, options and batches, with an engine that repeats what it is asked."""

import logging
import types

import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, Message
from janus_jax.errors import UserError
from janus_jax.evaluation.harness import HarnessRequest, answer_all, cut, to_decoding, to_messages
from janus_jax.inference.requests import Answer
from janus_jax.inference.validation import RequestReader
from tests.helpers.small_models import DECODED

RED, BLUE = (PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))


class Engine:
    """Answers with the number of prompt tokens, and remembers its batches."""

    def __init__(self):
        tokenizer = digits.build_tokenizer(digits.text_records(), DECODED.llama.vocab_size, DECODED.prompt_style)
        self.reader, self.batches = RequestReader(DECODED, tokenizer), []

    def answer(self, requests, sampling):
        self.batches.append(([request.prompt_number for request in requests], sampling.temperature))
        return [Answer(f"{len(request.prompt)} tokens\n\nand more", [], request.prompt) for request in requests]


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture
def pipeline(engine):
    engine.batches.clear()
    return types.SimpleNamespace(engine=engine)


def text(words):
    return {"type": "text", "text": words}


def image(picture):
    return {"type": "image", "url": picture}


def user(*content, **options):
    return HarnessRequest("task/test/0", [{"role": "user", "content": list(content)}], options)


def test_images_keep_their_places_in_a_message():
    messages, images = to_messages(user(text("First "), image(RED), text("then "), image(BLUE), text("which?")))
    mark = IMAGE_PLACEHOLDER + "\n"
    assert messages == [Message("user", f"First {mark}then {mark}which?")]
    assert images == [RED, BLUE]


def test_a_system_prompt_is_for_requests_without_one():
    told = HarnessRequest("", [{"role": "system", "content": [text("Theirs.")]}, *user(text("Why?")).messages], {})
    assert to_messages(told, "Ours.")[0] == [Message("system", "Theirs."), Message("user", "Why?")]
    assert to_messages(user(text("Why?")), "Ours.")[0] == [Message("system", "Ours."), Message("user", "Why?")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (None, 0.0, 1.0, 0)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1}, (16, 0.0, 1.0, 0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, (None, 0.0, 1.0, 0)),
        ({"do_sample": True}, (None, 1.0, 1.0, 0)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, (None, 0.7, 0.9, 5)),
    ],
)
def test_options_mean_what_they_mean_for_transformers(options, expected):
    assert tuple(to_decoding(user(text("Why?"), **options)).values()) == expected


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (user(text("Why?"), num_beams=5), "num_beams=5"),
        (user({"type": "video", "url": "a.mp4"}, text("Why?")), "task/test/0: content of type 'video'"),
    ],
)
def test_what_no_model_of_the_family_takes_is_refused(pipeline, request_, named):
    with pytest.raises(UserError, match=named):
        answer_all(pipeline, [request_], 4)
    assert pipeline.engine.batches == []


def test_answers_come_in_order_from_batches_of_one_sampling(pipeline):
    questions = ["one", "one one one", "one", "one one", "one"]
    requests = [
        user(text(question), until=["\n\n"], temperature=0.5 * (place == 2)) for place, question in enumerate(questions)
    ]
    answers = answer_all(pipeline, requests, 2)
    assert pipeline.engine.batches == [([1, 3], None), ([0, 4], None), ([2], 0.5)]
    shortest = int(answers[0].split()[0])
    assert answers == [f"{shortest + more} tokens" for more in (0, 2, 0, 1, 0)]


def test_a_question_that_is_too_long_counts_as_wrong_and_is_said(pipeline, caplog):
    long = user(image(RED), text("one " * 200))
    with caplog.at_level(logging.WARNING):
        answers = answer_all(pipeline, [user(text("one")), long], 4)
    assert answers[1] == "" and answers[0] != ""
    assert "1 of 2 requests" in caplog.text and "task/test/0" in caplog.text


@pytest.mark.parametrize(
    ("until", "expected"), [(None, "a\n\nb."), ("\n\n", "a"), (["b", "\n\n"], "a"), ([""], "a\n\nb.")]
)
def test_an_answer_ends_before_its_stop_string(until, expected):
    assert cut("a\n\nb.", until) == expected
