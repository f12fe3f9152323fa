"""A conversation on the terminal goes on after a question that cannot be answered, whatever its bytes are."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from janus_jax.errors import UserError
from janus_jax.inference.requests import Answer
from janus_jax.inference.validation import user_message
from launch.cli.terminal import accept_any_text
from launch.cli.terminal_chat import converse, print_json


def test_a_mistake_is_said_and_the_images_wait_for_the_first_answer(monkeypatch, capsys):
    lines = iter(["too long", "first", "no such image", "second"])

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    conversation, asked = SimpleNamespace(messages=[]), []

    def ask(question, images, *, on_text, seed):
        asked.append((question, tuple(images), seed))
        if question in ("too long", "no such image"):
            raise UserError(f"a question that is {question}")
        on_text(f"{question} ")
        on_text("answer")
        conversation.messages += [question, "answer"]

    conversation.ask = ask
    monkeypatch.setattr("builtins.input", read)
    converse(conversation, ["image"], {"seed": 3})
    images = [("image",), ("image",), (), ()]
    assert asked == list(zip(["too long", "first", "no such image", "second"], images, [3] * 4, strict=True))
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["first answer", "second answer"]
    assert err.splitlines() == ["error: a question that is too long", "error: a question that is no such image"]


@pytest.fixture
def streams(monkeypatch):
    """Puts files in the place of the terminal; returns a function that gives what was written."""

    def replace(data, encoding):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        accept_any_text()

        def written():
            sys.stdout.flush()
            return out.getvalue().decode(encoding)

        return written

    return replace


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "中 é"), ("ascii", "\\u4e2d \\xe9")])
def test_bytes_that_are_no_text_and_characters_that_cannot_be_shown_end_nothing(streams, capsys, encoding, shown):
    def ask(question, images, *, on_text):
        on_text("中 é" if user_message(question, 0).text == "hello" else "?")

    written = streams(b"a\xff\n\xed\xa0\xbd\nhello\n", encoding)
    converse(SimpleNamespace(messages=[], ask=ask), [], {})
    assert written().splitlines()[1] == f"> > > {shown}"
    assert capsys.readouterr().err.count("error: the prompt is no Unicode text: character") == 2


@pytest.mark.parametrize(("encoding", "is_escaped"), [("utf-8", False), ("ascii", True), ("latin-1", True)])
def test_json_stays_json_where_it_cannot_be_shown(streams, encoding, is_escaped):
    written = streams(b"", encoding)
    print_json(Answer("😀 é", [1], [2]))
    assert json.loads(written())["text"] == "😀 é"
    assert ("\\u" in written()) == is_escaped
