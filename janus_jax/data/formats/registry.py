"""The formats by name, their options, and how to open a data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.formats.array_record_files import ArrayRecordFiles
from janus_jax.data.formats.base import DatasetFormat, FileFormat
from janus_jax.data.formats.image_folder import ImageFolder
from janus_jax.data.formats.json_list import GeneratedImages, JsonList
from janus_jax.data.formats.parquet import Parquet
from janus_jax.data.formats.text_lines import TextLines
from janus_jax.data.formats.tfds_folder import TfdsFolder
from janus_jax.data.formats.web_dataset import WebDataset
from janus_jax.errors import UserError

FORMATS: dict[str, type[FileFormat]] = {
    "llava": JsonList,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "imagenet": ImageFolder,
    "tfds": TfdsFolder,
    "text": TextLines,
    "sharegpt4o": GeneratedImages,
    "array_record": ArrayRecordFiles,
}
LIST_OPTIONS = {"image_root": "Folders of images given by their path: DIR, or PREFIX=DIR for paths with a prefix."}
# Help for the options of formats that are strings; the formats that take each one come from their fields.
TEXT_OPTIONS = {
    "question": "Question about a captioned image that its caption answers; may be empty.",
    "caption_key": "Field of the .json member that holds the caption, instead of the .txt member.",
    "image_column": "Column of images (default: image, images or jpg); none reads no images.",
    "messages_column": "Column of conversations (default: messages, conversations or conversation).",
    "text_column": "Column of captions or texts (default: caption, text, label or content).",
    "split": "Split to read, such as train (the default) or train[:10%].",
    "class_names": "Path of a file with a line per class, such as `n01440764 tench, Tinca tinca`.",
    "labels": "For one folder of images: path of a file of lines such as `ILSVRC2012_val_00000001.JPEG n01751748`.",
    "follow_links": "Where links to images may lead: inside their own root folder (default), to any of the roots, or "
    "anywhere.",
    "text_field": "Field that holds the text (default: text).",
    "messages_field": "Field that holds a conversation (default: messages).",
}


def option_names(format: str) -> set[str]:
    """Names of the options that a format takes."""
    return {field.name for field in dataclasses.fields(FORMATS[format])} - {"input"}  # type: ignore[arg-type]


def check_tasks(format: str, tasks: Sequence[str]) -> None:
    """Raises UserError if a format never gives records of any of these tasks. Without tasks, all of them are meant."""
    possible = FORMATS[format].tasks_given if format in FORMATS else ()
    if tasks and possible and not set(tasks) & set(possible):
        raise UserError(f"--task={','.join(tasks)}: --format={format} gives only {' and '.join(possible)}")


def option_help(option: str) -> str:
    """What an option is for, and which formats take it."""
    formats = [name for name in FORMATS if option in option_names(name)]
    return f"{(LIST_OPTIONS | TEXT_OPTIONS)[option]} Only for --format={' or '.join(formats)}."


def open_dataset(format: str, input: str | Sequence[str], options: Mapping[str, Any]) -> DatasetFormat:
    """A data set in one of FORMATS.

    Args:
        input: A file, folder or glob pattern, or several of them.
        options: Options of the format. A value of None or () keeps the default.

    Raises:
        UserError: The format is unknown, does not have an option, or refuses its value. Whether the files exist is
            checked later, by `units()`.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    values = {name: value for name, value in options.items() if value not in (None, ())}
    foreign = sorted(set(values) - option_names(format))
    if foreign:
        raise UserError(f"--{foreign[0]}={values[foreign[0]]} is not an option of --format={format}")
    patterns = (input,) if isinstance(input, str) else tuple(input)
    if not patterns:
        raise UserError("--input is empty, expected files, folders or glob patterns")
    return FORMATS[format](input=patterns, **values)
