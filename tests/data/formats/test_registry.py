import pytest

from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError


def test_unknown_format_and_foreign_option_are_errors():
    with pytest.raises(UserError, match=r"^--format=csv: expected one of llava, webdataset"):
        open_dataset("csv", "x", {})
    with pytest.raises(UserError, match=r"^--question=Why\? .*--format=text"):
        open_dataset("text", "x", {"question": "Why?", "text_field": None})
    with pytest.raises(UserError, match=r"^--input is empty"):
        open_dataset("text", (), {})
