"""Fields of a JSON object from outside, checked as they are read.

An error names the file, the field, its value and what was expected. Numbers have upper limits, so that a damaged one
is an error and not a day of waiting.
"""

import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import read_json

CONFIG_FILE = "config.json"  # in the folders of Hugging Face, DeepSeek and diffusers
_MAX_SIZE = 1 << 24  # largest size of a dimension
_MAX_COUNT = 1024  # largest number of layers, or of anything else that is repeated
_MAX_NUMBER = 1e18
_MAX_LIST = 16
_COUNTS = frozenset(
    {
        "num_hidden_layers",
        "depth",
        "encoder_depth",
        "decoder_depth",
        "num_res_blocks",
        "aligner_depth",
        "gen_aligner_depth",
        "layer",
    }
)


class Fields(NamedTuple):
    """An object in a JSON file. A field with the value null counts as missing, as in transformers."""

    path: epath.Path
    prefix: str  # where in the file the object is, e.g. "vision_config.params."; empty for the whole file
    values: dict[str, Any]

    def wrong(self, field: str, expected: str) -> UserError:
        """The error to raise for a field."""
        value = f"={reprlib.repr(self.values[field])}" if field in self.values else " is missing"
        return UserError(f"{self.path}: {self.prefix}{field}{value}, expected {expected}")

    def object(self, field: str, defaults: Mapping[str, Any] | None = None) -> "Fields":
        """The object in a field, with defaults for what it lacks. A missing field counts as an empty object."""
        found = self.values.get(field, {})
        if not isinstance(found, dict):
            raise self.wrong(field, "an object")
        return Fields(self.path, f"{self.prefix}{field}.", _without_null(found)).filled(defaults or {})

    def filled(self, defaults: Mapping[str, Any]) -> "Fields":
        """The same object with defaults for what it lacks."""
        return self._replace(values={**defaults, **self.values})

    def integer(self, field: str, least: int = 1) -> int:
        value: Any = self.values.get(field)
        most = _MAX_COUNT if field in _COUNTS else _MAX_SIZE
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(field, f"a whole number from {least} to {most}")
        return value

    def integers(self, names: Mapping[str, str]) -> dict[str, int]:
        """Several whole numbers: {our name: name of the field} -> {our name: value}."""
        return {ours: self.integer(theirs) for ours, theirs in names.items()}

    def integer_list(self, field: str) -> list[int]:
        value: Any = self.values.get(field)
        fits = isinstance(value, list) and 0 < len(value) <= _MAX_LIST
        if not fits or not all(type(entry) is int and 0 < entry <= _MAX_SIZE for entry in value):
            raise self.wrong(field, f"a list of 1 to {_MAX_LIST} positive whole numbers")
        return value

    def number(self, field: str, zero_is_valid: bool = False) -> float:
        value: Any = self.values.get(field)
        is_number = type(value) in (int, float) and 0 <= value < _MAX_NUMBER
        if not is_number or (value == 0 and not zero_is_valid):
            raise self.wrong(field, "a number from 0" if zero_is_valid else "a positive number")
        return float(value)

    def boolean(self, field: str) -> bool:
        value: Any = self.values.get(field)
        if type(value) is not bool:
            raise self.wrong(field, "true or false")
        return value

    def choice(self, field: str, known: Collection[str]) -> str:
        value: Any = self.values.get(field)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(field, f"one of {', '.join(known)}")
        return value

    def only(self, **expected: Any) -> None:
        """Refuses a field that is there with another value than the given one, which is all that our code computes."""
        for field, value in expected.items():
            if self.values.get(field, value) != value:
                raise self.wrong(field, f"{value!r}, the only value that fits here")


def read_fields(path: epath.Path) -> Fields:
    """The object of a JSON file. Raises UserError for a missing, long or damaged file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return Fields(path, "", _without_null(content))


def read_optional_fields(path: epath.Path) -> Fields:
    """The object of a JSON file that a folder may lack, which then counts as empty."""
    return read_fields(path) if path.exists() else Fields(path, "", {})


@contextmanager
def checked_sizes(path: epath.Path) -> Iterator[None]:
    """Puts the name of the file in front of a ValueError of our config classes: sizes that do not go together."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
