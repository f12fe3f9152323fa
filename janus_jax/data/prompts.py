"""Prompt templates of the Janus family, as in `conversation.py` and `processing_vlm.py` of DeepSeek's code."""

from collections.abc import Sequence
from typing import NamedTuple

from janus_jax.errors import UserError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER = "<image_placeholder>"
BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE_MARKER = "<image>"  # Stands for an image in the text of a training record.

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Message(NamedTuple):
    role: str  # "system", "user" or "assistant"
    text: str


class PromptStyle(NamedTuple):
    """The strings a checkpoint was trained with. Wrong ones build a different prompt, and nothing reports an error."""

    user: str
    assistant: str
    system_prompt: str = SYSTEM_PROMPT  # Used for questions; prompts for images have none.


STYLES = {
    "janus": PromptStyle("User", "Assistant"),  # Janus-1.3B and JanusFlow-1.3B.
    "janus_pro": PromptStyle("<|User|>", "<|Assistant|>"),  # Janus-Pro-1B and 7B.
    "janus_pro_tiny": PromptStyle("<|User|>", "<|Assistant|>", system_prompt=""),  # The quickstart: its rows are short.
    "janus_plain": PromptStyle("User", "Assistant", system_prompt=""),  # For converted folders without a system prompt.
}


class FormattedMessage(NamedTuple):
    """A message in the prompt's format, and where its answer, with the end-of-sentence token, begins in it."""

    text: str
    answer_start: int


def format_messages(
    messages: Sequence[Message], style: PromptStyle, system_prompt: str | None = None
) -> list[FormattedMessage]:
    """One text per message, the first of them with the system prompt in front; joined, they are the conversation.

    A message is `role: text` and a separator. The separator depends on the *index* of the message: it is a blank line
    first, then the end-of-sentence token, and so on in turn. A message without text is `role:` without a space, which
    asks the model to answer. The system prompt is the text of a leading system message, otherwise the argument,
    otherwise the style's own.
    """
    if system_prompt is None:
        system_prompt = style.system_prompt
    if messages and messages[0].role == "system":
        system_prompt, messages = messages[0].text, messages[1:]
    roles = {"user": style.user, "assistant": style.assistant}
    separators = ("\n\n", EOS)
    formatted = []
    for i, message in enumerate(messages):
        if message.role not in roles:
            raise UserError(f"message {i} has the role {message.role!r}, expected one of {sorted(roles)}")
        prefix = f"{system_prompt}\n\n" if system_prompt and i == 0 else ""
        prefix += f"{roles[message.role]}:"
        text = message.text.strip()
        formatted.append(FormattedMessage(f"{prefix} {text}{separators[i % 2]}" if text else prefix, len(prefix)))
    return formatted


def format_conversation(messages: Sequence[Message], style: PromptStyle, system_prompt: str | None = None) -> str:
    """The whole conversation as one string, stripped as in DeepSeek's code; see `format_messages`."""
    return "".join(message.text for message in format_messages(messages, style, system_prompt)).strip()


def generation_prompt(caption: str, style: PromptStyle) -> str:
    """The prompt for an image: no system prompt, and `<begin_of_image>` at the end, which predicts the first code."""
    messages = [Message("user", caption), Message("assistant", "")]
    return format_conversation(messages, style, system_prompt="") + BEGIN_OF_IMAGE
