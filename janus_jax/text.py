"""The one decoder for texts of strangers: it is strict, so that damaged text is never taken for what was written."""

import codecs

from janus_jax.errors import UserError

# The mark of UTF-16 begins the mark of UTF-32, so UTF-32 comes first. The codecs of UTF-16 and UTF-32 remove the mark.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_encoding(beginning: bytes) -> str:
    """The encoding of a text that begins with these bytes, of which it needs four: UTF-8 without another one's mark."""
    return next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), "utf-8")


def decode_text(data: bytes, origin: str) -> str:
    """Decodes UTF-8, or UTF-16 and UTF-32 that begin with a byte order mark. The mark of any of them is removed.

    Args:
        origin: File, field or flag that the text comes from, for the message.

    Raises:
        UserError: The bytes are not such a text, or a quarter of it is NUL characters, which is how UTF-16 without a
            mark looks. The message names `origin` and the line.
    """
    encoding = text_encoding(data[:4])
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding).count("\n") + 1
        found = data[error.start :][:4].hex(" ")
        raise UserError(
            f"{origin}: line {line} is not {encoding.upper()} ({error.reason}: {found}); expected text in UTF-8"
        ) from error
    content = text.rstrip("\0")  # Some programs fill a field of fixed length with NUL characters.
    if 4 * content.count("\0") > len(content):
        line = content.count("\n", 0, content.index("\0")) + 1
        raise UserError(f"{origin}: line {line} is full of NUL characters; expected text in UTF-8")
    return text
