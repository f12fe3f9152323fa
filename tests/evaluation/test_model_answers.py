"""A small model behind the runner: answers are those of the pipeline, and depend on nothing but their request."""

import hashlib

import pytest

from examples.digits import data as digits
from janus_jax.data.images import decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, Question
from janus_jax.evaluation.model_answers import Decoding, ModelAnswers, RequestMaker, with_role_strings
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.padding import Buckets
from tests.helpers.small_models import DECODED, SMALL, random_params
from tests.helpers.yes_no_benchmark import ColourImage

GENERATION = dict(cfg_weight=2.0, temperature=1.0, top_p=1.0, top_k=0)
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = digits.build_tokenizer(digits.text_records(), DECODED.llama.vocab_size, DECODED.prompt_style)
    return JanusPipeline(DECODED, random_params(DECODED, seed=12), tokenizer, buckets=Buckets(prompt=32, answer=16))


@pytest.fixture(scope="module")
def model(pipeline):
    return ModelAnswers(pipeline, Decoding(GENERATION, max_new_tokens=NEW_TOKENS))


def question(index, prompt, *colours):
    images = tuple(ColourImage(f"{colour}.png", colour) for colour in colours)
    return Question(index, str(index), prompt, images, "yes", "")


def test_answers_are_those_of_the_pipeline_and_mistakes_stay_with_their_question(model, pipeline):
    asked = [
        question(7, "Is it red?", "red"),
        question(3, "Is it red?", "damaged"),
        question(5, "Is it blue?", "blue"),
        question(9, "one " * 120, "blue"),
    ]
    records = model.answer(asked)
    assert [record.index for record in records] == [7, 3, 5, 9]
    images = [[decode_image(ColourImage("", colour).read(), "")] for colour in ("red", "blue")]
    expected = pipeline.chat(images, ["Is it red?", "Is it blue?"], max_new_tokens=NEW_TOKENS)
    assert [records[0].text, records[2].text] == expected
    for record in (records[0], records[2]):
        assert (record.error, record.finish) == ("", "length" if record.num_tokens == NEW_TOKENS else "stop")
    assert records[0].images == (hashlib.sha256(asked[0].images[0].read()).hexdigest(),)
    assert "damaged.png" in records[1].error and "128 tokens" in records[3].error
    assert [(record.text, record.num_tokens) for record in (records[1], records[3])] == [("", 0)] * 2


@pytest.fixture(scope="module")
def thirty(model):
    """Images of equal prompts, one each, in one batch."""
    return [made[0] for made in model.generate([ImageRequest(index, "", "the digit one", 1) for index in range(30)])]


def test_thirty_equal_prompts_give_thirty_images_and_each_is_the_same_alone(model, thirty):
    assert len(set(thirty)) == 30
    for index in (17, 4):
        assert model.generate([ImageRequest(index, "", "the digit one", 1)]) == [[thirty[index]]]


def test_a_prompt_that_cannot_be_asked_is_told_and_the_others_are_generated(model, thirty):
    requests = [ImageRequest(1, "", "one " * 200, 1), ImageRequest(2, "", "the digit one", 1)]
    bad, good = model.generate(requests)
    assert "128 tokens" in bad
    assert good == [thirty[2]]
    assert model.generate(requests[:1]) == [bad]


def test_images_are_png_files_of_the_size_of_the_model(thirty):
    assert thirty[0].startswith(b"\x89PNG")
    assert decode_image(thirty[0], "").size == (16, 16)


def test_options_that_no_request_could_have_are_refused_before_the_weights_are_needed(pipeline):
    for decoding, named in [
        (Decoding({**GENERATION, "cfg_weight": float("nan")}, max_new_tokens=NEW_TOKENS), "cfg_weight=nan"),
        (Decoding(GENERATION, max_new_tokens=0), "max_new_tokens=0"),
        (Decoding(GENERATION, max_new_tokens=1000), "1000"),
        (Decoding(GENERATION, role_strings="llava"), "role_strings='llava'"),
    ]:
        with pytest.raises(UserError, match=named):
            RequestMaker(DECODED, pipeline.tokenizer, decoding)


@pytest.mark.parametrize(
    ("system_prompt", "roles", "expected"),
    [
        (None, "checkpoint", "<|User|>: <image_placeholder>\nIs it red?\n\n<|Assistant|>:"),
        ("", "vlmevalkit", "User: <image_placeholder>\nIs it red?\n\nAssistant:"),
        ("Be brief.", "checkpoint", "Be brief.\n\n<|User|>: <image_placeholder>\nIs it red?\n\n<|Assistant|>:"),
    ],
)
def test_the_rendered_prompt_has_the_roles_and_the_system_prompt(pipeline, system_prompt, roles, expected):
    requests = RequestMaker(DECODED, pipeline.tokenizer, Decoding(GENERATION, NEW_TOKENS, system_prompt, roles))
    assert requests.rendered(question(0, "Is it red?", "red")) == expected


def test_role_strings_of_vlmevalkit_are_plain_words():
    assert with_role_strings(SMALL, "vlmevalkit").prompt_style == "janus"
    assert with_role_strings(DECODED, "vlmevalkit").prompt_style == "janus_plain"
    assert with_role_strings(SMALL, "checkpoint") is SMALL
