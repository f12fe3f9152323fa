"""Requests are checked without weights: what a mistake is, and what room an answer has."""

import dataclasses

import pytest
from tiny_runs import MICRO_JANUS

from janus_jax.data.prompts import STYLES, Message
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.request import DEFAULT_NEW_TOKENS, RequestReader, user_message

ROLES = STYLES["janus_pro_tiny"][:2]
TOKENIZER = train_tokenizer(["no merges"], 300, extra_special_tokens=ROLES)
CONFIG = dataclasses.replace(MICRO_JANUS, llama=dataclasses.replace(MICRO_JANUS.llama, max_length=64))
TEXT = dict(max_new_tokens=None, temperature=0.0, top_p=0.95, top_k=0, seed=0)
IMAGE = dict(cfg_weight=5.0, temperature=1.0, top_p=1.0, top_k=0, seed=0)


@pytest.fixture(scope="module")
def reader():
    return RequestReader(CONFIG, TOKENIZER)


def ask(reader, text, images=(), **changes):
    return reader.text([[user_message(text, len(images))]], [images], **TEXT | changes)


def test_an_answer_has_the_default_or_what_the_context_leaves(reader):
    request = ask(reader, "x" * 20)
    assert request.max_new_tokens == [64 - len(request.prompts[0])]
    roomy = RequestReader(dataclasses.replace(CONFIG, llama=MICRO_JANUS.llama), TOKENIZER)
    assert ask(roomy, "x").max_new_tokens == [MICRO_JANUS.llama.max_length - len(ask(roomy, "x").prompts[0])]
    large = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, max_length=4096))
    assert ask(RequestReader(large, TOKENIZER), "x").max_new_tokens == [DEFAULT_NEW_TOKENS]
    assert ask(reader, "x", max_new_tokens=7).max_new_tokens == [7]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("x" * 64, {}, r"prompt of \d+ tokens and 1 for an answer exceed the context of 64"),
        ("x", {"max_new_tokens": 60}, r"and 60 for max_new_tokens exceed the context of 64"),
        ("x", {"max_new_tokens": 0}, r"max_new_tokens=0"),
        ("x", {"temperature": float("nan")}, r"temperature=nan"),
        ("x", {"temperature": -1.0}, r"temperature=-1"),
        ("x", {"temperature": float("inf")}, r"temperature=inf"),
        ("x", {"top_p": 0.0}, r"top_p=0"),
        ("x", {"top_p": float("nan")}, r"top_p=nan"),
        ("x", {"top_k": -1}, r"top_k=-1"),
        ("x", {"seed": 2**32}, r"seed=4294967296"),
        ("x", {"seed": -1}, r"seed=-1"),
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
        (["x"], {"cfg_weight": float("nan")}, r"cfg_weight=nan"),
        (["x"], {"temperature": float("nan")}, r"temperature=nan"),
    ],
)
def test_a_drawing_that_cannot_be_made_is_refused(reader, prompts, changes, message):
    with pytest.raises(UserError, match=message):
        reader.images(prompts, 1, **IMAGE | changes)


def test_images_and_placeholders_are_counted_and_the_user_has_the_last_word(reader):
    with pytest.raises(UserError, match=r"0 <image_placeholder> in the prompt, 1 images"):
        reader.text([[Message("user", "x")]], [["image"]], **TEXT)
    with pytest.raises(UserError, match=r"does not end with a message of the user"):
        reader.text([[Message("user", "x"), Message("assistant", "y")]], [[]], **TEXT)
    with pytest.raises(UserError, match=r"2 conversations but 1 lists of images"):
        reader.text([[Message("user", "x")]] * 2, [[]], **TEXT)


def test_a_tokenizer_without_the_role_tokens_is_refused():
    plain = train_tokenizer(["no roles"], 300)
    with pytest.raises(UserError, match=r"role token\(s\) of the prompts missing: <\|User\|>, <\|Assistant\|>"):
        RequestReader(CONFIG, plain)
    RequestReader(dataclasses.replace(CONFIG, prompt_style="janus"), plain)  # its roles are plain words
