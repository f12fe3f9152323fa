"""Conversations become the messages of a record, as in `preprocess_multimodal` of LLaVA's `train.py`."""

from collections.abc import Sequence
from typing import Any

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import fields
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def conversation(key: str, messages_json: Any, images: Sequence[bytes]) -> Record:
    """A record of a list of messages, each {"from", "value"} or {"role", "content"}.

    Its task is "understand" if there are images, otherwise "text". Assistant messages at the beginning and a user
    message at the end are cut. A single image marker moves to the front of its message, as in LLaVA; several markers
    stay where they are. Raises SampleError.
    """
    messages = _alternating([_message(value) for value in fields.as_list(messages_json, "conversation")])
    if not all(text.strip() for role, text in messages if role == "assistant"):
        raise SampleError(Reason.NO_TEXT, "an answer is empty")
    if not images:  # Without images, a marker is ordinary text.
        return Record(task="text", messages=tuple(messages), key=key)
    markers = sum(text.count(IMAGE_MARKER) for _, text in messages)
    if markers != len(images):
        raise SampleError(Reason.IMAGE_COUNT, f"{markers} markers but {len(images)} images")
    if markers == 1:
        messages = [Message(role, _marker_first(text)) for role, text in messages]
    return Record(task="understand", messages=tuple(messages), images=tuple(images), key=key)


def document(key: str, text: Any, field: str) -> Record:
    """A record of a text that is learned as a whole. Raises SampleError if it is null or empty."""
    text = fields.as_text(text, field) if text is not None else ""
    if not text.strip():
        raise SampleError(Reason.NO_TEXT, f"{field} is empty")
    return Record(task="text", messages=(Message("assistant", text),), key=key)


def _message(value: Any) -> Message:
    value = fields.as_object(value)
    names = ("from", "value") if "from" in value else ("role", "content")
    role = fields.as_text(value.get(names[0]), names[0])
    if role not in ROLES:
        raise SampleError(Reason.BAD_ROLES, f"role {role!r}, expected one of {sorted(ROLES)}")
    return Message(ROLES[role], _content(value.get(names[1]), names[1]))


def _content(value: Any, field: str) -> str:
    """The text of a message, which is a string or a list of {"type": "text", "text"} and {"type": "image"} parts."""
    if not isinstance(value, list):
        return fields.as_text(value, field)
    texts = []
    for part in value:
        part = fields.as_object(part)
        kind = part.get("type")
        if kind not in ("image", "text"):
            raise SampleError(Reason.BAD_FIELD, f"{field} has a part of type {kind!r}, expected 'text' or 'image'")
        texts.append(IMAGE_MARKER if kind == "image" else fields.as_text(part.get("text"), "text"))
    return "\n".join(texts)


def _alternating(messages: list[Message]) -> list[Message]:
    """Cuts a conversation to an optional system message and pairs of user and assistant. Raises SampleError."""
    system = messages[:1] if messages and messages[0].role == "system" else []
    dialog = messages[len(system) :]
    while dialog and dialog[0].role == "assistant":
        dialog = dialog[1:]
    if dialog and dialog[-1].role == "user":
        dialog = dialog[:-1]
    roles = [message.role for message in dialog]
    if not dialog or roles != ["user", "assistant"] * (len(dialog) // 2):
        raise SampleError(Reason.BAD_ROLES, f"roles {[message.role for message in messages][:8]} do not alternate")
    return system + dialog


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
