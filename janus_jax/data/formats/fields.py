"""Texts and JSON values from untrusted files: every function returns a checked value or raises SampleError."""

import json
import re
from typing import Any

from janus_jax.data.dropped_samples import Reason, SampleError

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Also raises SampleError for nesting and numbers beyond Python's limits."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(Reason.BAD_JSON, f"{type(error).__name__}: {error}") from error


def as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SampleError(Reason.BAD_FIELD, f"a {type(value).__name__}, expected an object")
    return value


def as_list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise SampleError(Reason.BAD_FIELD, f"{field} is a {type(value).__name__}, expected a list")
    return value


def as_text(value: Any, field: str) -> str:
    """A string that can be encoded as UTF-8. `"\\ud800"` is valid JSON, but would raise an error in the tokenizer."""
    if not isinstance(value, str):
        raise SampleError(Reason.BAD_FIELD, f"{field} is a {type(value).__name__}, expected text")
    return _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", value)
