"""The formats by name, and opening one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.formats.base import Source
from janus_jax.data.formats.image_folder import ImageFolder
from janus_jax.data.formats.json_list import JsonList
from janus_jax.data.formats.parquet import Parquet
from janus_jax.data.formats.shards import Shards
from janus_jax.data.formats.text_lines import TextLines
from janus_jax.data.formats.tfds_folder import TfdsFolder
from janus_jax.data.formats.web_dataset import WebDataset
from janus_jax.errors import UserError

FORMATS: dict[str, Callable[..., Source]] = {
    "llava": JsonList,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "imagenet": ImageFolder,
    "tfds": TfdsFolder,
    "text": TextLines,
    "array_record": Shards,
}


def option_names(format: str) -> set[str]:
    """Options that a format takes."""
    return {field.name for field in dataclasses.fields(FORMATS[format])} - {"input"}  # type: ignore[arg-type]


def open_source(format: str, input: str | Sequence[str], options: Mapping[str, Any]) -> Source:
    """A source of one of FORMATS.

    Args:
        input: a file, folder or glob pattern, or several.
        options: the format's own; one that is None or () keeps its default.

    Raises:
        UserError: an unknown format, an option that the format does not have, or an option's bad value. Files are
            looked for by `units()`.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    given = {name: value for name, value in options.items() if value not in (None, ())}
    foreign = sorted(set(given) - option_names(format))
    if foreign:
        raise UserError(f"--{foreign[0]}={given[foreign[0]]} is no option of --format={format}")
    patterns = (input,) if isinstance(input, str) else tuple(input)
    if not patterns:
        raise UserError("--input is empty, expected files, folders or glob patterns")
    return FORMATS[format](input=patterns, **given)
