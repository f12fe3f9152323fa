import contextlib

import pytest

from janus_jax.data.formats.registry import FORMATS, LIST_OPTIONS, TEXT_OPTIONS, check_tasks, open_dataset, option_names
from janus_jax.errors import UserError


def test_unknown_format_and_foreign_option_are_errors():
    with pytest.raises(UserError, match=r"^--format=csv: expected one of llava, webdataset"):
        open_dataset("csv", "x", {})
    with pytest.raises(UserError, match=r"^--question=Why\? .*--format=text"):
        open_dataset("text", "x", {"question": "Why?", "text_field": None})
    with pytest.raises(UserError, match=r"^--input is empty"):
        open_dataset("text", (), {})


def test_every_option_has_help_and_is_taken_by_a_format():
    taken = set().union(*(option_names(name) for name in FORMATS)) - {"tasks"}  # --task is not a format's own option
    assert taken == LIST_OPTIONS.keys() | TEXT_OPTIONS.keys()


@pytest.mark.parametrize(
    ("format", "tasks", "possible"),
    [
        ("llava", ("generate",), False),
        ("text", ("generate",), False),
        ("webdataset", ("text",), False),
        ("llava", ("text", "generate"), True),
        ("llava", (), True),
        ("parquet", ("text",), True),
        ("array_record", ("generate",), True),
    ],
)
def test_tasks_that_a_format_never_gives_are_refused(format, tasks, possible):
    with contextlib.nullcontext() if possible else pytest.raises(UserError, match=rf"^--task=.*--format={format}"):
        check_tasks(format, tasks)
