"""Conversations become the messages of a record, as in `preprocess_multimodal` of LLaVA's `train.py`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import fields
from janus_jax.data.formats.base import check_image_count
from janus_jax.data.formats.media_keys import IMAGE_KEYS, is_content, unread_keys
from janus_jax.data.formats.pictures import Pictures, listed
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_PART_SOURCES = ("image", "image_url", "source", "path", "url", "bytes")  # Fields of a part that hold its image.
# Markers of other models, such as <image_1>, <Image> and <|video|>. They would be learnt as words.
_FOREIGN_MARKER = re.compile(
    r"<\|?(image|img|video|audio)[ _-]?\d+\|?>|<\|(image|img|video|audio|vision)([ _-]?(pad|start|end))?\|>"
    r"|<img>[^<]+</img>|<image[ _]?(placeholder|here|token|soft_token|pad)>|<start_of_image>"
    r"|(?-i:(?!<image>))<\s*image\s*/?\s*>",
    re.IGNORECASE,
)
# HTML, too. In conversations they are markers at the beginning of a user's message, or alone on its last line.
_TAG = r"(?:<(?:img|video|audio|speech|sound)\s*/?>|\[(?:image|img|video|audio)\])"
_MARKER_AT_EDGE = re.compile(rf"\A\s*({_TAG})|\n\s*({_TAG})\s*\Z", re.IGNORECASE)


class _Turn(NamedTuple):
    """A message, and what is known of the image of each of its markers: None if it is listed beside the messages."""

    role: str
    text: str
    images: list[Any]


def conversation(key: str, messages: Any, images: Any, pictures: Pictures) -> Record:
    """A record of a list of messages, each {"from", "value"} or {"role", "content"}.

    Its task is "understand" if there are images, otherwise "text". Assistant messages at the beginning and a user
    message at the end are cut. A single image marker moves to the front of its message, as in LLaVA; several markers
    stay where they are.

    Args:
        messages: The messages, as a list or as its JSON text.
        images: The images in the order of their markers, in any form that `pictures` reads. Parts of a message may
            hold images of their own.

    Raises:
        SampleError: The messages or images cannot be used, or announce images that are not there.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = fields.parse_json(messages)
    turns = _alternating([_turn(value) for value in fields.as_list(messages, "conversation")])
    if not all(turn.text.strip() for turn in turns if turn.role == "assistant"):
        raise SampleError(Reason.NO_TEXT, "an answer is empty")
    images = listed(images, "image")
    check_image_count(max(len(images), sum(len(turn.images) for turn in turns)))
    named = _match([image for turn in turns for image in turn.images], images)
    for turn in turns:
        check_markers(turn.text, at_edges=turn.role == "user")
    texts = [(turn.role, _marker_first(turn.text) if len(named) == 1 else turn.text) for turn in turns]
    return Record(
        task="understand" if named else "text",
        messages=tuple(Message(role, text) for role, text in texts),
        images=tuple(pictures.read(image, "image") for image in named),
        key=key,
    )


def sample(key: str, values: Mapping[str, Any], messages_key: str, pictures: Pictures) -> Record:
    """A record of a JSON object with messages and the images in `image` or `images`. Raises SampleError."""
    given = {name: images for name in IMAGE_KEYS if (images := listed(values.get(name), name))}
    if len(given) > 1 and given["image"] != given["images"]:
        raise SampleError(Reason.BAD_FIELD, "both image and images, which differ; expected one of them")
    images = next(iter(given.values()), [])
    check_unread(values, (messages_key, *IMAGE_KEYS), bool(images))
    return conversation(key, values.get(messages_key), images, pictures)


def check_unread(values: Mapping[str, Any], read: Sequence[str], has_images: bool) -> None:
    """Raises SampleError if the sample is about media that are not read, so that its text alone would be wrong."""
    for name in unread_keys(values, read):
        beside_images = has_images and not name.lower().startswith(("video", "audio"))
        if not beside_images and is_content(name, values[name]):
            detail = f"the key {name!r} tells of an image, video or sound, and is not read"
            raise SampleError(Reason.UNREAD_MEDIA, detail)


def plain(key: str, values: Mapping[str, Any], text_key: str) -> Record:
    """A record of a JSON object with a text. Raises SampleError, also if it has images, which would not be learnt."""
    check_unread(values, (text_key,), has_images=False)
    return document(key, values.get(text_key), text_key)


def document(key: str, text: Any, field: str) -> Record:
    """A record of a text that is learned as a whole. Raises SampleError if it is null, empty or has an image marker."""
    text = fields.as_text(text, field) if text is not None else ""
    if not text.strip():
        raise SampleError(Reason.NO_TEXT, f"{field} is empty")
    if IMAGE_MARKER in text:
        raise SampleError(Reason.MISSING_IMAGE, f"{field} holds {IMAGE_MARKER}, but a document has no images")
    check_markers(text)
    return Record(task="text", messages=(Message("assistant", text),), key=key)


def check_markers(text: str, at_edges: bool = False) -> None:
    """Raises SampleError for a marker of another model.

    Args:
        at_edges: Whether HTML tags at the beginning and the end of the text are markers.
    """
    found = _FOREIGN_MARKER.search(text) or (_MARKER_AT_EDGE.search(text) if at_edges else None)
    if found:
        marker = found[0].strip()
        is_image = re.search("video|audio|speech|sound", marker, re.IGNORECASE) is None
        reason = Reason.MISSING_IMAGE if is_image else Reason.UNREAD_MEDIA
        raise SampleError(reason, f"the marker {marker}, expected {IMAGE_MARKER}")


def _match(places: Sequence[Any], images: Sequence[Any]) -> list[Any]:
    """The image of each marker: its own one, or the next of `images`. Raises SampleError if the numbers differ."""
    missing = sum(place is None for place in places)
    if missing and not images:
        raise SampleError(Reason.MISSING_IMAGE, f"{missing} {IMAGE_MARKER} markers, but no image is given")
    if missing != len(images):
        raise SampleError(Reason.IMAGE_COUNT, f"{missing} markers but {len(images)} images")
    following = iter(images)
    return [next(following) if place is None else place for place in places]


def _turn(value: Any) -> _Turn:
    value = fields.as_object(value)
    names = ("from", "value") if "from" in value else ("role", "content")
    role = fields.as_text(value.get(names[0]), names[0])
    if role not in ROLES:
        raise SampleError(Reason.BAD_ROLES, f"role {role!r}, expected one of {sorted(ROLES)}")
    check_unread(value, names, has_images=False)
    texts, images = [], []
    for text, image in _parts(value.get(names[1]), names[1]):
        texts.append(text)
        images += [image] * text.count(IMAGE_MARKER)
    return _Turn(ROLES[role], "\n".join(texts), images)


def _parts(content: Any, field: str) -> list[tuple[str, Any]]:
    """(text, image of its marker) of each part of a message, which is a text or a list of typed parts.

    A part of type text has the field `text`. A part of type image or image_url may hold its image; otherwise it stands
    for the next image beside the messages.
    """
    if not isinstance(content, list | dict):
        return [(fields.as_text(content, field), None)]
    parts: list[tuple[str, Any]] = []
    for part in fields.as_list(content, field):
        part = {"type": "text", "text": part} if isinstance(part, str) else fields.as_object(part)
        kind = part.get("type")
        if kind in _TEXT_PARTS:
            parts.append((fields.as_text(part.get("text"), "text"), None))
        elif kind in _IMAGE_PARTS:
            images = (listed(part.get(name), name) for name in _PART_SOURCES)
            parts.append((IMAGE_MARKER, next((image[0] for image in images if image), None)))
        elif isinstance(kind, str) and ("video" in kind or "audio" in kind):
            raise SampleError(Reason.UNREAD_MEDIA, f"{field} has a part of type {kind!r}, which is not read")
        else:
            raise SampleError(Reason.BAD_FIELD, f"{field} has a part of type {kind!r}, expected 'text' or 'image'")
    return parts


def _alternating(turns: list[_Turn]) -> list[_Turn]:
    """Cuts a conversation to an optional system message and pairs of user and assistant. Raises SampleError."""
    system = turns[:1] if turns and turns[0].role == "system" else []
    dialog = turns[len(system) :]
    while dialog and dialog[0].role == "assistant":
        dialog = dialog[1:]
    if dialog and dialog[-1].role == "user":
        dialog = dialog[:-1]
    roles = [turn.role for turn in dialog]
    if not dialog or roles != ["user", "assistant"] * (len(dialog) // 2):
        raise SampleError(Reason.BAD_ROLES, f"roles {[turn.role for turn in turns][:8]} do not alternate")
    return system + dialog


def _marker_first(text: str) -> str:
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()
