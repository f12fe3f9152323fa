import pytest

from janus_jax.data.prompts import (
    EOS,
    STYLES,
    SYSTEM_PROMPT,
    Message,
    format_conversation,
    format_messages,
    generation_prompt,
)
from janus_jax.errors import UserError

PRO, FIRST = STYLES["janus_pro"], STYLES["janus"]
QUESTION = [Message("user", "<image_placeholder>\nWhat?"), Message("assistant", "")]
TWO_TURNS = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "")]


def test_special_strings_use_the_full_width_characters_of_the_checkpoints():
    assert EOS == "<\uff5cend\u2581of\u2581sentence\uff5c>"
    assert SYSTEM_PROMPT == (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the "
        "user provides, and assist the user with a variety of tasks using natural language."
    )


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (PRO, SYSTEM_PROMPT + "\n\n<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:"),
        (FIRST, SYSTEM_PROMPT + "\n\nUser: <image_placeholder>\nWhat?\n\nAssistant:"),
        (STYLES["janus_pro_tiny"], "<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:"),
    ],
)
def test_understanding_prompt(style, expected):
    assert format_conversation(QUESTION, style) == expected


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (PRO, "<|User|>: a cat\n\n<|Assistant|>:<begin_of_image>"),
        (FIRST, "User: a cat\n\nAssistant:<begin_of_image>"),
    ],
)
def test_generation_prompt_has_no_system_prompt_and_ends_with_begin_of_image(style, expected):
    assert generation_prompt("a cat", style) == expected
    assert generation_prompt("  a cat\n", style) == expected


def test_several_turns_alternate_the_separators():
    expected = "<|User|>: q1\n\n<|Assistant|>: a1<｜end▁of▁sentence｜><|User|>: q2\n\n<|Assistant|>:"
    assert format_conversation(TWO_TURNS, PRO, system_prompt="") == expected
    assert format_conversation(TWO_TURNS, PRO) == f"{SYSTEM_PROMPT}\n\n{expected}"


def test_separator_depends_on_the_index_not_on_the_role():
    messages = [Message("assistant", "hello"), Message("user", "hi")]
    assert format_conversation(messages, FIRST, system_prompt="") == f"Assistant: hello\n\nUser: hi{EOS}"


def test_texts_are_stripped():
    messages = [Message("user", " q \n"), Message("assistant", "\n a ")]
    assert format_conversation(messages, FIRST, system_prompt="") == f"User: q\n\nAssistant: a{EOS}"


@pytest.mark.parametrize("argument", [None, "not this one"])
def test_a_leading_system_message_overrides_argument_and_style(argument):
    messages = [Message("system", "Be brief."), *QUESTION]
    expected = "Be brief.\n\n<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:"
    assert format_conversation(messages, PRO, system_prompt=argument) == expected
    empty = [Message("system", ""), *QUESTION]
    assert format_conversation(empty, PRO).startswith("<|User|>: ")


@pytest.mark.parametrize("position", [1, 2])
def test_unknown_role_is_an_error_that_names_it(position):
    messages = TWO_TURNS[:position] + [Message("tool", "x")]
    with pytest.raises(UserError, match=rf"message {position} .*'tool'.*assistant.*user"):
        format_conversation(messages, PRO)


def test_answer_start_points_behind_the_colon_of_every_turn():
    turns = format_messages(TWO_TURNS, PRO)
    assert [turn.text[turn.answer_start :] for turn in turns] == [" q1\n\n", f" a1{EOS}", " q2\n\n", ""]
    assert "".join(turn.text for turn in turns) == format_conversation(TWO_TURNS, PRO)
