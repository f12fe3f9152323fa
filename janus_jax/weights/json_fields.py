"""Fields of a JSON object from outside, checked as they are read: an error names file, field, value and expectation."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from janus_jax.errors import UserError

_MAX_BYTES = 1 << 20
_MAX_SIZE = 1 << 24  # of any dimension: a damaged number is an error, not a day of waiting
_MAX_COUNT = 1024  # of anything that is repeated
_MAX_NUMBER = 1e18
_MAX_LIST = 16
_COUNTS = ("num_hidden_layers", "depth", "num_res_blocks")


class Fields(NamedTuple):
    """An object in a JSON file, its defaults filled in. Null counts as missing, as in transformers."""

    path: epath.Path
    prefix: str  # where the object is: "vision_config.params.", empty for the whole file
    values: dict[str, Any]

    def wrong(self, field: str, expected: str) -> UserError:
        """The error to raise for a field."""
        value = f"={reprlib.repr(self.values[field])}" if field in self.values else " is missing"
        return UserError(f"{self.path}: {self.prefix}{field}{value}, expected {expected}")

    def object(self, field: str, defaults: Mapping[str, Any] | None = None) -> "Fields":
        """The object in a field; a missing one is empty, that is, all defaults."""
        found = self.values.get(field, {})
        if not isinstance(found, dict):
            raise self.wrong(field, "an object")
        return Fields(self.path, f"{self.prefix}{field}.", _without_null(found)).filled(defaults or {})

    def filled(self, defaults: Mapping[str, Any]) -> "Fields":
        """The same object with defaults for what is missing."""
        return self._replace(values={**defaults, **self.values})

    def integer(self, field: str, least: int = 1) -> int:
        value: Any = self.values.get(field)
        most = _MAX_COUNT if field in _COUNTS else _MAX_SIZE
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(field, f"a whole number from {least} to {most}")
        return value

    def integers(self, names: Mapping[str, str]) -> dict[str, int]:
        """{ours: theirs} -> {ours: value}."""
        return {ours: self.integer(theirs) for ours, theirs in names.items()}

    def integer_list(self, field: str) -> list[int]:
        value: Any = self.values.get(field)
        fits = isinstance(value, list) and 0 < len(value) <= _MAX_LIST
        if not fits or not all(type(entry) is int and 0 < entry <= _MAX_SIZE for entry in value):
            raise self.wrong(field, f"a list of 1 to {_MAX_LIST} positive whole numbers")
        return value

    def number(self, field: str) -> float:
        value: Any = self.values.get(field)
        if type(value) not in (int, float) or not 0 < value < _MAX_NUMBER:
            raise self.wrong(field, "a positive number")
        return float(value)

    def only(self, **expected: Any) -> None:
        """Refuses a field that is there with another value than the only one that our code computes."""
        for field, value in expected.items():
            if self.values.get(field, value) != value:
                raise self.wrong(field, f"{value!r}, the only value that fits here")


def read_fields(path: epath.Path) -> Fields:
    """The object of a JSON file. Raises UserError for a missing, long or damaged file."""
    try:
        if path.stat().length > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES} bytes, expected a short JSON file")
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except UserError:
        raise
    except (ValueError, RecursionError, OSError) as error:  # not UTF-8, not JSON, nested too deeply, a folder
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return Fields(path, "", _without_null(content))


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
