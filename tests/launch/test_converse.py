"""A conversation on the terminal goes on after a question that cannot be answered."""

from types import SimpleNamespace

from janus_jax.errors import UserError
from launch.cli.terminal_chat import converse


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
