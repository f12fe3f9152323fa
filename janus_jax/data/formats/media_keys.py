"""Keys of a sample that speak of images, videos or sound, so that none is passed over without a word."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from janus_jax.data.dropped_samples import Note

IMAGE_KEYS = ("image", "images")
# A sample with one of these is about it: its text alone would be wrong.
CONTENT_KEYS = {*IMAGE_KEYS, "video", "videos", "audio", "audios"}
_LOOKS_LIKE_MEDIA = re.compile("image|img|picture|photo|video|audio", re.IGNORECASE)
_FILE = re.compile(
    r".*\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg|m4a)", re.IGNORECASE | re.DOTALL
)


def looks_like_media(key: str) -> bool:
    """Whether the name of a key or column begins as those of images, videos and sound do."""
    return _LOOKS_LIKE_MEDIA.match(key) is not None


def unread_keys(sample: Mapping[str, Any], read: Collection[str]) -> list[str]:
    """Names of the keys that look like media, hold something, and are not among those read; in sorted order."""
    return sorted(
        key
        for key, value in sample.items()
        if key not in read and looks_like_media(key) and value is not False and value not in (None, "", [], {}, b"")
    )


def notes(sample: Mapping[str, Any], read: Collection[str]) -> list[Note]:
    """A note on each of `unread_keys`."""
    return [Note(f"key not read: {key}") for key in unread_keys(sample, read)]


def is_content(key: str, value: Any) -> bool:
    """Whether a key says by its name or its value that the sample is about this image, video or sound."""
    return key.lower() in CONTENT_KEYS or _is_media(value)


def _is_media(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_media(entry) for entry in value)
    if isinstance(value, dict):
        return any(_is_media(value.get(name)) for name in ("bytes", "path", "url"))
    if isinstance(value, str):
        return value.startswith("data:") or _FILE.fullmatch(value.partition("?")[0]) is not None
    return isinstance(value, bytes)
