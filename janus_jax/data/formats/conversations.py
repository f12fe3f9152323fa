"""Conversations of any data set -> messages of a record (LLaVA's `train.py`, `preprocess_multimodal`)."""

from collections.abc import Sequence
from typing import Any

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import fields
from janus_jax.data.formats.base import Drop
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def conversation(key: str, turns: Any, images: Sequence[bytes]) -> Record:
    """A record of a list of turns, {"from", "value"} or {"role", "content"}; "understand" if there are images.

    Leading assistant turns and a trailing user turn are cut. With one image its marker moves to the front of its turn,
    as LLaVA does; with several they stay. Raises Drop.
    """
    messages = _alternating([_message(turn) for turn in fields.as_list(turns, "conversation")])
    if not all(text.strip() for role, text in messages if role == "assistant"):
        raise Drop(Reason.NO_TEXT, "an answer is empty")
    if not images:  # a literal marker is just text there
        return Record(task="text", messages=tuple(messages), key=key)
    markers = sum(text.count(IMAGE_MARKER) for _, text in messages)
    if markers != len(images):
        raise Drop(Reason.IMAGE_COUNT, f"{markers} markers but {len(images)} images")
    if markers == 1:
        messages = [Message(role, _marker_first(text)) for role, text in messages]
    return Record(task="understand", messages=tuple(messages), images=tuple(images), key=key)


def document(key: str, text: Any, field: str) -> Record:
    """A text that is learnt as a whole; null or empty is dropped."""
    text = fields.as_text(text, field) if text is not None else ""
    if not text.strip():
        raise Drop(Reason.NO_TEXT, f"{field} is empty")
    return Record(task="text", messages=(Message("assistant", text),), key=key)


def _message(turn: Any) -> Message:
    turn = fields.as_object(turn)
    names = ("from", "value") if "from" in turn else ("role", "content")
    role = fields.as_text(turn.get(names[0]), names[0])
    if role not in ROLES:
        raise Drop(Reason.BAD_ROLES, f"role {role!r}, expected one of {sorted(ROLES)}")
    return Message(ROLES[role], _content(turn.get(names[1]), names[1]))


def _content(value: Any, field: str) -> str:
    """Text, or a list of {"type": "text", "text"} and {"type": "image"} parts."""
    if not isinstance(value, list):
        return fields.as_text(value, field)
    texts = []
    for part in value:
        part = fields.as_object(part)
        kind = part.get("type")
        if kind not in ("image", "text"):
            raise Drop(Reason.BAD_FIELD, f"{field} has a part of type {kind!r}, expected 'text' or 'image'")
        texts.append(IMAGE_MARKER if kind == "image" else fields.as_text(part.get("text"), "text"))
    return "\n".join(texts)


def _alternating(messages: list[Message]) -> list[Message]:
    """An optional system message, then pairs of user and assistant."""
    system = messages[:1] if messages and messages[0].role == "system" else []
    turns = messages[len(system) :]
    while turns and turns[0].role == "assistant":
        turns = turns[1:]
    if turns and turns[-1].role == "user":
        turns = turns[:-1]
    roles = [turn.role for turn in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise Drop(Reason.BAD_ROLES, f"roles {[message.role for message in messages][:8]} do not alternate")
    return system + turns


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
