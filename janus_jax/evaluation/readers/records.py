"""Text files and records of benchmarks, checked: a mistake in them is a UserError that names the file and the field."""

import ast
import base64
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from janus_jax.data.dropped_samples import SampleError
from janus_jax.data.formats.base import MAX_IMAGE_BYTES
from janus_jax.data.formats.safe_paths import read_below
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference

MAX_FILE_BYTES = 4 << 30  # of a file of questions, answers or predictions
_MISSING = {"", "nan"}  # what an absent value looks like after pandas wrote it as text


class Item(NamedTuple):
    """A question as the benchmark has it, before a prompt is made of it."""

    id: str
    question: str
    images: tuple[ImageReference, ...]
    gold: Any
    cluster: str
    fields: Mapping[str, Any] = {}


class FileImage(NamedTuple):
    """An image that lies in a folder."""

    name: str
    root: str
    path: str  # relative to the root

    def read(self) -> bytes:
        try:
            return read_below(self.root, self.path, MAX_IMAGE_BYTES)
        except SampleError as error:
            raise UserError(f"{os.path.join(self.root, self.path)}: {error.detail}") from error

    def exists(self) -> bool:
        return file_exists(epath.Path(self.root, self.path))


def file_exists(path: epath.Path) -> bool:
    """Whether there is such a file. A name that no file can have, such as one that is too long, is no error."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def decode_base64(text: str, origin: str) -> bytes:
    """An encoded image from base64. Raises UserError naming `origin`."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"{origin} is not base64 ({error})") from error
    return checked_size(data, origin)


def checked_size(data: bytes, origin: str) -> bytes:
    """The data. Raises UserError where it is larger than an image may be."""
    if len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{origin} has {len(data)} bytes, an image at most {MAX_IMAGE_BYTES}")
    return data


class Record:
    """A row of a benchmark's file. Methods return checked values, or raise UserError naming file, row and field."""

    def __init__(self, values: Any, origin: str):
        if not isinstance(values, Mapping):
            raise UserError(f"{origin}: a {type(values).__name__}, expected an object with fields")
        self.values, self.origin = values, origin

    def error(self, key: str, expected: str) -> UserError:
        value = self.values.get(key)
        shown = "missing" if key not in self.values else f"{value!r:.60}"
        return UserError(f"{self.origin}: field {key!r} is {shown}, expected {expected}")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not _encodable(value):
            raise self.error(key, "text")
        return value

    def optional(self, key: str) -> str:
        """The text, or "" where the field is absent, null, or the text "nan" that pandas writes for null."""
        value = self.values.get(key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        text = str(value) if isinstance(value, int) else self.text(key)
        return "" if text in _MISSING else text

    def name(self, key: str) -> str:
        """An id: text as it stands, or a whole number as text."""
        value = self.values.get(key)
        if isinstance(value, float) and value.is_integer():  # an integer column with gaps
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value or not _encodable(value):
            raise self.error(key, "an id, which is text or a whole number")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and _encodable(v) for v in value):
            raise self.error(key, "a list of texts")
        return value

    def literal_list(self, key: str) -> list[Any]:
        """A list that is written as text in Python's notation, as "['red', 'blue']"."""
        text = self.text(key)
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise self.error(key, "a list in Python's notation") from error
        if not isinstance(value, list):
            raise self.error(key, "a list in Python's notation")
        return value

    def one_of(self, key: str, values: Sequence[str]) -> str:
        """One of the values, which are compared without case."""
        text = self.text(key).strip().lower()
        for value in values:
            if value.lower() == text:
                return value
        raise self.error(key, f"one of {', '.join(values)}")


def read_text(path: epath.Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        UserError: the file is missing, larger than MAX_FILE_BYTES, or not UTF-8.
    """
    try:
        if path.stat().length > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}), expected a file in UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: epath.Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file of any size up to MAX_FILE_BYTES. Raises UserError."""
    text = read_text(path)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def read_json_lines(path: epath.Path) -> Iterator[Record]:
    """The objects of a file with one JSON object per line; empty lines are skipped. Raises UserError."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would also cut at U+2028
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        yield Record(values, f"{path}: line {number}")


def records_of(path: epath.Path, values: Any, key: str = "") -> list[Record]:
    """The records of a JSON list, or of the list at `key` of a JSON object. Raises UserError."""
    if key:
        values = Record(values, str(path)).values.get(key)
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{path}: {f'field {key!r}' if key else 'content'} is no filled list, expected a list of records"
        )
    return [Record(value, f"{path}: {key or 'record'} {number}") for number, value in enumerate(values)]


def first_ten(names: Sequence[Any]) -> str:
    """Up to ten names for a message, and how many there are."""
    return f"{', '.join(map(str, names[:10]))}{', ...' if len(names) > 10 else ''} ({len(names)})"


def _encodable(text: str) -> bool:
    """Whether a text has no lone surrogates: JSON can hold them, and a tokenizer would raise an error."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
