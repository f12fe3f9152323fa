"""Requests are checked without weights: what a mistake is, and what room an answer has."""

import dataclasses
import re

import numpy as np
import pytest

from janus_jax.data.prompts import STYLES, Message
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.validation import DEFAULT_NEW_TOKENS, RequestReader, user_message
from tests.helpers.tiny_runs import MICRO_JANUS

ROLES = STYLES["janus_pro_tiny"][:2]
TOKENIZER = train_tokenizer(["no merges"], 300, extra_special_tokens=ROLES)
CONFIG = dataclasses.replace(MICRO_JANUS, llama=dataclasses.replace(MICRO_JANUS.llama, max_length=64))
TEXT = dict(max_new_tokens=None, temperature=0.0, top_p=0.95, top_k=0, seed=0)
IMAGE = dict(num_images=1, cfg_weight=5.0, temperature=1.0, top_p=1.0, top_k=0, seed=0, window="auto")
FLOW = dict(num_images=1, cfg_weight=2.0, num_steps=30, solver="euler", seed=0)


@pytest.fixture(scope="module")
def reader():
    return RequestReader(CONFIG, TOKENIZER)


def ask(reader, text, images=(), **changes):
    (request,), _ = reader.text([[user_message(text, len(images))]], [images], **TEXT | changes)
    return request


def test_an_answer_has_the_default_or_what_the_context_leaves(reader):
    request = ask(reader, "x" * 20)
    assert request.max_new_tokens == 64 - len(request.prompt)
    roomy = RequestReader(dataclasses.replace(CONFIG, llama=MICRO_JANUS.llama), TOKENIZER)
    assert ask(roomy, "x").max_new_tokens == MICRO_JANUS.llama.max_length - len(ask(roomy, "x").prompt)
    large = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, max_length=4096))
    assert ask(RequestReader(large, TOKENIZER), "x").max_new_tokens == DEFAULT_NEW_TOKENS
    assert ask(reader, "x", max_new_tokens=7).max_new_tokens == 7


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("x" * 64, {}, r"prompt of \d+ tokens and 1 for an answer exceed the context of 64"),
        ("x", {"max_new_tokens": 60}, r"and 60 for max_new_tokens exceed the context of 64"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(reader, text, changes, message):
    with pytest.raises(UserError, match=message):
        ask(reader, text, **changes)


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        (["x" * 60], {}, r"and 16 for the tokens of an image exceed the context of 64"),
        ([" "], {}, r"the prompt is empty"),
        (["<image_placeholder>"], {}, r"contains <image_placeholder>"),
        ("a cat", {}, r"prompts='a cat', expected a list"),
    ],
)
def test_an_image_that_cannot_be_generated_is_refused(reader, prompts, changes, message):
    with pytest.raises(UserError, match=message):
        reader.codes(prompts, **IMAGE | changes)


# What internals would round, or say something else about.
BAD_OPTIONS = {
    "temperature": (float("nan"), float("inf"), -0.5, 1e-40, None, "0.5", True),
    "top_p": (0, -0.1, 1.5, float("nan"), None, [0.9]),
    "top_k": (-1, 2.0, float("nan"), None, "5", True),
    "seed": (-1, 2**32, 1.0, None, "1", np.float32(1)),
    "max_new_tokens": (0, -3, 2.5, float("nan"), "7", True),
    "num_images": (0, -1, 1_000_001, 10**12, 1.5, float("inf"), None, "2", True),
    "cfg_weight": (float("nan"), float("-inf"), 1e7, None, "5", 1j),
    "num_steps": (0, 1.5, 10**5, None, "30"),
    "window": (0, -1, 1025, 1.5, None, "8", True),
    "solver": ("dopri", None, ["euler"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_of_another_type_or_out_of_range_are_refused_by_name(reader, name):
    calls = [
        (TEXT, lambda options: reader.text([[user_message("x", 0)]], [[]], **options)),
        (IMAGE, lambda options: reader.codes(["x"], **options)),
        (FLOW, lambda options: reader.latents(["x"], **options)),
    ]
    having = [(options, call) for options, call in calls if name in options]
    assert having
    for options, call in having:
        for value in BAD_OPTIONS[name]:
            with pytest.raises(UserError, match=re.escape(f"{name}={value!r}")):
                call(options | {name: value})


def test_numbers_of_numpy_are_taken_as_they_are(reader):
    options = dict(max_new_tokens=np.int32(3), temperature=np.float32(0.5), top_k=np.int64(2), seed=np.uint32(1))
    requests, sampling = reader.text([[user_message("x", 0)]], [[]], **TEXT | options)
    assert requests == [ask(reader, "x", images=[], max_new_tokens=3, seed=1)]
    assert sampling == Sampling.of(0.5, 0.95, 2)


def test_each_prompt_has_its_seed_and_number(reader):
    def identities(**changes):
        requests, _ = reader.codes(["x"] * 3, **IMAGE | changes)
        return [(request.seed, request.prompt_number) for request in requests]

    assert identities(seed=5) == [(5, 0), (5, 1), (5, 2)]
    assert identities(seed=[5, 6, 5], prompt_numbers=(9, 9, 0)) == [(5, 9), (6, 9), (5, 0)]
    assert identities(seed=np.arange(3), prompt_numbers=range(3)) == [(0, 0), (1, 1), (2, 2)]
    for changes, message in (
        ({"seed": [1, 2]}, "seed has 2 numbers.* 3 prompts"),
        ({"seed": np.array(1)}, r"seed=array\(1\)"),
        ({"prompt_numbers": [0]}, "prompt_numbers has 1 numbers"),
        ({"prompt_numbers": 4}, "prompt_numbers=4, .*3 prompts"),
        ({"prompt_numbers": "123"}, "prompt_numbers='123'"),
        ({"prompt_numbers": [0, -1, 2]}, "prompt_numbers=-1"),
        ({"seed": [1, 2, 2**32]}, "seed=4294967296"),
    ):
        with pytest.raises(UserError, match=message):
            identities(**changes)


def test_what_is_no_text_is_refused(reader):
    with pytest.raises(UserError, match="a prompt of type int, expected a description of the image"):
        reader.codes([3], **IMAGE)
    with pytest.raises(UserError, match="a prompt of type NoneType, expected a question"):
        user_message(None, 0)


@pytest.mark.parametrize("text", ["a\udcff", "\ud83d", "\ude00\ud83d", "seven \udcc3\udca9"])
def test_text_that_is_no_unicode_is_refused_with_the_character(reader, text):
    """From bytes of a command line that are not UTF-8, from escapes of JSON, and from a character cut in half."""
    place = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    said = re.escape(f"character {place + 1} is '\\u{ord(text[place]):04x}'")
    with pytest.raises(UserError, match=said):
        reader.codes([text], **IMAGE)
    with pytest.raises(UserError, match=said):
        user_message(text, 0)
    with pytest.raises(UserError, match=said):
        reader.text([[Message("user", "x"), Message("assistant", text), Message("user", "y")]], [[]], **TEXT)
    with pytest.raises(UserError, match=said):
        reader.text([[Message("system", text), Message("user", "y")]], [[]], **TEXT)


def test_images_of_many_prompts_are_counted_together(reader):
    with pytest.raises(UserError, match="num_images=1000 of each of 1001 prompts are 1001000 images, .* 1000000"):
        reader.codes(["x"] * 1001, **IMAGE | {"num_images": 1000})


def test_a_message_without_text_is_refused(reader):
    with pytest.raises(UserError, match="not a list of Message"):
        reader.text([[Message("user", None)]], [[]], **TEXT)


def test_images_and_placeholders_are_counted_and_the_user_has_the_last_word(reader):
    with pytest.raises(UserError, match=r"0 <image_placeholder> in the prompt, 1 images"):
        reader.text([[Message("user", "x")]], [["image"]], **TEXT)
    with pytest.raises(UserError, match=r"does not end with a message of the user"):
        reader.text([[Message("user", "x"), Message("assistant", "y")]], [[]], **TEXT)
    with pytest.raises(UserError, match=r"2 conversations but 1 lists of images"):
        reader.text([[Message("user", "x")]] * 2, [[]], **TEXT)


def test_a_tokenizer_without_the_role_tokens_is_refused():
    plain = train_tokenizer(["no roles"], 300)
    with pytest.raises(UserError, match=r"<\|User\|>, <\|Assistant\|>"):
        RequestReader(CONFIG, plain)
    RequestReader(dataclasses.replace(CONFIG, prompt_style="janus"), plain)  # its roles are plain words
