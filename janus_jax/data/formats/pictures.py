"""Reads the images that a sample names, in all the ways in which public data sets name them."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import fields
from janus_jax.data.formats.base import MAX_IMAGE_BYTES
from janus_jax.data.formats.media_keys import BASE64_BEGINNINGS
from janus_jax.data.formats.safe_paths import check_relative, link_targets, read_below
from janus_jax.errors import UserError

# Fields of an object that stands for an image: Hugging Face's bytes and path, OpenAI's url, Anthropic's data.
_SOURCES = ("bytes", "path", "url", "data")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST_PATH = 4096  # Characters; a path as long as an image does not exist.


class Pictures(NamedTuple):
    """Where images lie that are given by a path.

    The longest matching prefix of a path becomes its folder; other paths are in `default`.
    """

    default: str = ""
    by_prefix: Mapping[str, str] = {}
    link_targets: tuple[str, ...] | None = ()  # See `safe_paths.link_targets`.

    @classmethod
    def parse(cls, roots: Sequence[str], follow_links: str) -> "Pictures":
        """Parses roots of the form `DIR` or `PREFIX=DIR`.

        Raises:
            UserError: A folder does not exist, two have no prefix or the same one, or `follow_links` is none of
                FOLLOW_LINKS.
        """
        by_prefix: dict[str, str] = {}
        for root in roots:
            prefix, separator, folder = root.rpartition("=")
            if not separator or epath.Path(root).is_dir():
                prefix, separator, folder = "", "", root
            if not epath.Path(folder).is_dir():
                raise UserError(f"--image_root={root}: {folder!r} is not a folder")
            prefix = prefix.rstrip("/") + "/" if separator else ""
            if prefix in by_prefix:
                raise UserError(
                    f"--image_root={root}: {by_prefix[prefix]} is there already; give it a PREFIX= of its own"
                )
            by_prefix[prefix] = folder
        targets = link_targets(follow_links, tuple(by_prefix.values()))
        return cls(by_prefix.pop("", ""), by_prefix, targets)

    def read(self, value: Any, field: str) -> bytes:
        """The encoded bytes of an image.

        Args:
            value: Bytes, a path, a `data:` URL, base64, or an object that holds one of them in one of _SOURCES.
            field: Name of what holds the value, for messages.

        Raises:
            SampleError: There is no image, it cannot be read, or it is larger than MAX_IMAGE_BYTES.
        """
        if isinstance(value, dict):
            value = next((value[name] for name in _SOURCES if value.get(name) is not None), None)
        if value is None or value in ("", b""):
            raise SampleError(Reason.MISSING_IMAGE, f"{field} is empty, expected an image")
        if isinstance(value, str):
            return self._read_text(fields.as_text(value, field), field)
        if not isinstance(value, bytes):
            raise SampleError(Reason.BAD_FIELD, f"{field} is a {type(value).__name__}, expected an image")
        if len(value) > MAX_IMAGE_BYTES:
            raise SampleError(Reason.TOO_LARGE, f"an image of {len(value)} bytes, at most {MAX_IMAGE_BYTES} allowed")
        return value

    def _read_text(self, text: str, field: str) -> bytes:
        if text[:5].lower() == "data:":
            header, _, content = text.partition(",")
            if not header.lower().endswith(";base64"):
                raise SampleError(Reason.BAD_FIELD, f"{field} is {header[:80]!r}, expected a data URL in base64")
            return _from_base64(content, field)
        if text.startswith(BASE64_BEGINNINGS) and (len(text) > _LONGEST_PATH or "." not in text):
            return _from_base64(text, field)
        if _URL.match(text):
            detail = f"{field} is {text[:200]!r}; images are read from --image_root and from data URLs, not fetched"
            raise SampleError(Reason.MISSING_FILE, detail)
        return self._read_path(text)

    def _read_path(self, path: str) -> bytes:
        if not self.default and not self.by_prefix:
            raise SampleError(Reason.MISSING_FILE, f"{path[:200]!r} is a path, and --image_root is not given")
        check_relative(path)
        prefixes = [prefix for prefix in self.by_prefix if path.startswith(prefix)]
        if prefixes:
            prefix = max(prefixes, key=len)
            return read_below(self.by_prefix[prefix], path.removeprefix(prefix), MAX_IMAGE_BYTES, self.link_targets)
        if not self.default:
            detail = f"{path!r} has no PREFIX of --image_root, and no other folder is given"
            raise SampleError(Reason.MISSING_FILE, detail)
        return read_below(self.default, path, MAX_IMAGE_BYTES, self.link_targets)


def listed(value: Any, field: str) -> list[Any]:
    """The images that a field names: one value, a list, or an object of lists. Null and objects of nulls are none.

    Raises SampleError for an empty text or empty bytes: they announce an image that is not there.
    """
    if isinstance(value, dict):
        columns = {name: column for name, column in value.items() if column is not None}
        if columns and all(isinstance(column, list) for column in columns.values()):
            value = fields.as_list(columns, field)
    images = [image for image in (value if isinstance(value, list) else [value]) if not _is_null(image)]
    if any(image in ("", b"") for image in images):
        raise SampleError(Reason.MISSING_IMAGE, f"{field} is empty, expected an image")
    return images


def _is_null(image: Any) -> bool:
    return image is None or (isinstance(image, dict) and all(part is None for part in image.values()))


def _from_base64(text: str, field: str) -> bytes:
    if len(text) > MAX_IMAGE_BYTES // 3 * 4:
        raise SampleError(Reason.TOO_LARGE, f"{field} has {len(text)} characters of base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise SampleError(Reason.BAD_IMAGE, f"{field} is damaged base64 ({error})") from error
