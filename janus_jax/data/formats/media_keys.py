"""Keys of a sample that speak of images, videos or sound, so that none is passed over without a word."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from janus_jax.data.dropped_samples import Note

IMAGE_KEYS = ("image", "images")
MEDIA_KEYS = {*IMAGE_KEYS, "video", "videos", "audio", "audios"}
# How PNG, JPEG, WEBP and GIF begin in base64.
BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")
_MEDIA_WORD = "image|img|picture|photo|video|audio|frame|media|sound|speech"
_LOOKS_LIKE_MEDIA = re.compile(f"{_MEDIA_WORD}|pixel", re.IGNORECASE)
# A sample with such a key, as `images`, `img_path` or `videoUrl`, is about it: its text alone would be wrong.
_NAMES_CONTENT = re.compile(
    rf"({_MEDIA_WORD}|clip)s?([ _-]?(path|file|file[ _-]?name|name|url|uri|data|bytes|base64|b64|list))?s?",
    re.IGNORECASE,
)
_FILE = re.compile(
    r".*\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|heic|avif|mp4|m4v|avi|mov|mkv|webm|wav|mp3|flac|ogg|opus|m4a)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_NAME = 4096  # Characters of a path or URL; a longer text is none.
_SHORTEST_BASE64 = 64  # Characters; no image is smaller.
# How PNG, JPEG, GIF, WEBP and WAV, TIFF, Matroska, MP3, Ogg and FLAC begin. MP4 and AVIF have `ftyp` after 4 bytes.
_MEDIA_BYTES = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"\x1aE\xdf\xa3", b"ID3", b"OggS", b"fLaC",
)  # fmt: skip
_MAX_DEPTH = 8  # Levels of lists and objects that are searched.


def looks_like_media(key: str) -> bool:
    """Whether the name of a key or column begins as those of images, videos and sound do."""
    return _LOOKS_LIKE_MEDIA.match(key) is not None


def names_content(key: str) -> bool:
    """Whether the name of a key or column says that the sample is about this image, video or sound."""
    return _NAMES_CONTENT.fullmatch(key) is not None


def is_media_file(path: str) -> bool:
    """Whether a path or URL ends as those of images, videos and sound do."""
    return len(path) <= _LONGEST_NAME and _FILE.fullmatch(path.partition("?")[0]) is not None


def unread_keys(sample: Mapping[str, Any], read: Collection[str]) -> list[str]:
    """Names of the keys that look like media, or hold some, and are not among those read; in sorted order."""
    return sorted(
        key
        for key, value in sample.items()
        if key not in read and ((looks_like_media(key) and not _is_empty(value)) or is_content(key, value))
    )


def notes(sample: Mapping[str, Any], read: Collection[str]) -> list[Note]:
    """A note on each of `unread_keys`."""
    return [Note(f"key not read: {key}") for key in unread_keys(sample, read)]


def is_content(key: str, value: Any) -> bool:
    """Whether a key says by its name or its value that the sample is about this image, video or sound."""
    return not _is_empty(value) and (names_content(key) or _is_media(value))


def _is_media(value: Any, depth: int = 0) -> bool:
    """Whether a value names or holds an image, video or sound: a file, a `data:` URL, base64, bytes, or a list or
    object with one of them. Texts inside of objects are no file names, but for those of keys that say so.
    """
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, list):
        return any(_is_media(entry, depth + 1) for entry in value)
    if isinstance(value, dict):
        return any(
            not _is_empty(entry)
            and (names_content(key) or ((not isinstance(entry, str) or _is_place(key)) and _is_media(entry, depth + 1)))
            for key, entry in value.items()
        )
    if isinstance(value, str):
        is_base64 = value.startswith(BASE64_BEGINNINGS) and len(value) >= _SHORTEST_BASE64 and " " not in value[:256]
        return is_base64 or is_media_file(value) or value.startswith("data:")
    return isinstance(value, bytes) and (value.startswith(_MEDIA_BYTES) or value[4:8] == b"ftyp")


def _is_place(key: str) -> bool:
    return key.lower() in ("path", "file", "filename", "file_name", "url", "uri", "src", "source", "data")


def _is_empty(value: Any) -> bool:
    """Whether nothing is announced: nothing at all, False, or a list or object of such values."""
    if isinstance(value, dict):
        return all(entry is None for entry in value.values())
    return value is False or value in (None, "", [], b"")
