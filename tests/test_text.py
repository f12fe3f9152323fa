"""The decoder of texts of strangers against Python's codecs."""

import codecs

import pytest

from janus_jax.errors import UserError
from janus_jax.text import decode_text, text_encoding

TEXT = "Füchse, 狐狸\r\nand 🦊\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_every_encoding_with_a_mark_gives_the_same_text(mark, encoding):
    assert decode_text(mark + TEXT.encode(encoding), "a.txt") == TEXT
    assert decode_text(mark, "a.txt") == ""


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"good\nb\xfcse\n", 2),  # Latin-1
        (b"a\n\nb\x93quoted\x94", 3),  # Windows-1252
        ("狐狸".encode("gb18030"), 1),
        ("狐狸".encode("shift_jis"), 1),
        ("a fox".encode("utf-16-le"), 1),  # without a mark: valid UTF-8 with NUL characters
        (b"\xed\xa0\x80", 1),  # a lone surrogate
        (b"cut \xe7\x8b", 1),
        (codecs.BOM_UTF16_LE + b"a", 1),
        (codecs.BOM_UTF8 + b"ok\n\xff", 2),
    ],
)
def test_anything_else_is_refused_with_its_line(data, line):
    with pytest.raises(UserError, match=f"prompts.txt: line {line} "):
        decode_text(data, "prompts.txt")


def test_padding_with_nul_at_the_end_is_no_damage():
    assert decode_text(b"a fox\0\0", "field") == "a fox\0\0"


def test_a_mark_inside_of_a_text_is_left_to_the_caller():
    assert decode_text("a\ufeffb".encode(), "a.txt") == "a\ufeffb"
    assert text_encoding(b"\xff\xfe\0\0") == "utf-32"
    assert text_encoding(b"\xff\xfea\0") == "utf-16"
