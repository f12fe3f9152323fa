"""Texts and JSON values from untrusted files: every function returns a checked value or raises SampleError."""

import json
import re
from typing import Any

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.errors import UserError
from janus_jax.text import decode_text

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def decoded(data: bytes, field: str) -> str:
    """The text of bytes, by the rules of `decode_text`."""
    try:
        return decode_text(data, field)
    except UserError as error:
        raise SampleError(Reason.BAD_TEXT, str(error)) from error


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Also raises SampleError for nesting and numbers beyond Python's limits."""
    text = decoded(data, "JSON") if isinstance(data, bytes) else data
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError(Reason.BAD_JSON, f"{type(error).__name__}: {error}") from error


def as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SampleError(Reason.BAD_FIELD, f"a {type(value).__name__}, expected an object")
    return value


def as_list(value: Any, field: str) -> list[Any]:
    """A list. An object of equally long lists becomes a list of objects: so does parquet store a list of objects."""
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            lengths = {name: len(column) for name, column in value.items()}
            raise SampleError(Reason.BAD_FIELD, f"{field} has lists of the lengths {lengths}, expected equal ones")
        return [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise SampleError(Reason.BAD_FIELD, f"{field} is a {type(value).__name__}, expected a list")
    return value


def as_text(value: Any, field: str) -> str:
    """A string, also from bytes. `"\\ud800"` is valid JSON, but half of a character and cannot be encoded."""
    if isinstance(value, bytes):
        value = decoded(value, field)
    if not isinstance(value, str):
        raise SampleError(Reason.BAD_FIELD, f"{field} is a {type(value).__name__}, expected text")
    if half := _LONE_SURROGATE.search(value):
        code = f"\\u{ord(half[0]):04x}"
        raise SampleError(Reason.BAD_TEXT, f"{field} holds half of a character ({code}), expected whole ones")
    return value
