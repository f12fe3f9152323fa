"""A conversation on the terminal, for `launch.chat`."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from janus_jax.errors import UserError
from janus_jax.inference.chat_session import Conversation
from janus_jax.inference.requests import Answer


def converse(conversation: Conversation, images: Sequence[PIL.Image.Image], options: Mapping[str, Any]) -> None:
    """Reads and answers questions until the end of input. The images belong to the first question that is answered.

    A question that cannot be answered is reported, and the conversation continues as it was before.
    """
    print("Ask a question; an empty line or Ctrl-D ends the conversation.")
    while True:
        try:
            question = input("> ")
        except EOFError:
            return
        if not question.strip():
            return
        try:
            print_answer(conversation, question, () if conversation.messages else images, options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def print_answer(
    conversation: Conversation, question: str, images: Sequence[PIL.Image.Image], options: Mapping[str, Any]
) -> None:
    """Prints the answer while it is written; options and errors are those of `Conversation.ask`."""
    conversation.ask(question, images, on_text=lambda text: print(text, end="", flush=True), **options)
    print()


def print_json(answer: Answer) -> None:
    """Prints an answer as one line of JSON, with escapes if the terminal cannot show all of its characters."""
    line = json.dumps(answer._asdict(), ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(answer._asdict())
    print(line)
