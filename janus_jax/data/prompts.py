"""Prompt templates of the family (`conversation.py` and `processing_vlm.py` of the reference)."""

from collections.abc import Sequence
from typing import NamedTuple

from janus_jax.errors import UserError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER = "<image_placeholder>"
BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE_MARKER = "<image>"  # where an image stands in the text of a training record

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Message(NamedTuple):
    role: str  # "system", "user" or "assistant"
    text: str


class PromptStyle(NamedTuple):
    """What a checkpoint was trained with; the wrong role strings silently build another prompt."""

    user: str
    assistant: str
    system_prompt: str = SYSTEM_PROMPT  # of questions; drawings have none


STYLES = {
    "janus": PromptStyle("User", "Assistant"),  # Janus-1.3B, JanusFlow-1.3B
    "janus_pro": PromptStyle("<|User|>", "<|Assistant|>"),  # Janus-Pro-1B, 7B
    "janus_pro_tiny": PromptStyle("<|User|>", "<|Assistant|>", system_prompt=""),  # the quickstart: short rows
    "janus_plain": PromptStyle("User", "Assistant", system_prompt=""),  # a converted folder may ask for it
}


class Turn(NamedTuple):
    """A formatted message and where its supervised part (the answer and its end-of-sentence) stands in it."""

    text: str
    answer_start: int


def format_turns(messages: Sequence[Message], style: PromptStyle, system_prompt: str | None = None) -> list[Turn]:
    """One piece of text per message, the first with the system prompt in front; joined they are the conversation.

    `role: text` + separator, where the separator depends on the *index* of the message (blank line, then
    end-of-sentence), and `role:` without a space for an empty text, which asks the model to answer. The system prompt
    is that of a leading system message, else the argument, else the style's.
    """
    if system_prompt is None:
        system_prompt = style.system_prompt
    if messages and messages[0].role == "system":
        system_prompt, messages = messages[0].text, messages[1:]
    roles = {"user": style.user, "assistant": style.assistant}
    separators = ("\n\n", EOS)
    turns = []
    for i, message in enumerate(messages):
        if message.role not in roles:
            raise UserError(f"role {message.role!r} of message {i} is not one of {sorted(roles)}")
        prefix = f"{system_prompt}\n\n" if system_prompt and i == 0 else ""
        prefix += f"{roles[message.role]}:"
        text = message.text.strip()
        turns.append(Turn(f"{prefix} {text}{separators[i % 2]}" if text else prefix, len(prefix)))
    return turns


def format_conversation(messages: Sequence[Message], style: PromptStyle, system_prompt: str | None = None) -> str:
    """The whole conversation as one string, stripped at the end as the reference does; see `format_turns`."""
    return "".join(turn.text for turn in format_turns(messages, style, system_prompt)).strip()


def generation_prompt(caption: str, style: PromptStyle) -> str:
    """No system prompt; the last token is `<begin_of_image>`, whose hidden state predicts the first code."""
    messages = [Message("user", caption), Message("assistant", "")]
    return format_conversation(messages, style, system_prompt="") + BEGIN_OF_IMAGE
