"""Compressed files, and texts in another encoding than UTF-8, as streams.

Memory is bounded however much a file expands, and a truncated file raises an error instead of just ending.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from janus_jax.data.formats.base import MAX_LINE_BYTES
from janus_jax.errors import UserError
from janus_jax.text import text_encoding

CHUNK = 1 << 20
# Zstandard expands data up to 32,000 times. The output of one call cannot be limited, only its input.
ZSTD_CHUNK = 1 << 10


def damage() -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged or truncated file raises."""
    return (EOFError, OSError, zlib.error, ValueError)


def open_stream(path: str) -> IO[bytes]:
    """Opens a file, and decompresses it if its suffix is .gz, .tgz (all members) or .zst (all frames, any window)."""
    file = epath.Path(path).open("rb")
    if path.endswith((".gz", ".tgz")):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(file), CHUNK)
    return file


def text_file_encoding(path: str) -> str:
    """The encoding of an uncompressed or compressed text. Raises one of `damage()`."""
    with open_stream(path) as stream:
        return text_encoding(stream.read(4))


def open_text(path: str) -> IO[bytes]:
    """Opens a text as UTF-8. UTF-16 and UTF-32 with a byte order mark are converted. Raises one of `damage()`."""
    encoding = text_file_encoding(path)
    stream = open_stream(path)
    return stream if encoding == "utf-8" else io.BufferedReader(_Utf8Reader(stream, encoding), CHUNK)


class _Utf8Reader(io.RawIOBase):
    """Converts a stream to UTF-8 in small pieces."""

    def __init__(self, stream: IO[bytes], encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._output = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self._output:
            data = self._stream.read(CHUNK)
            self._output = self._decoder.decode(data, final=not data).encode()
            if not data:
                break
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


class _ZstdReader(io.RawIOBase):
    """Reads all frames of a file. The library's own reader ends without an error where a file is truncated."""

    def __init__(self, file: IO[bytes]):
        try:
            import zstandard
        except ImportError as error:
            raise UserError("reading .zst needs zstandard: pip install 'janus_jax[data]'") from error
        self._library, self._file = zstandard, file
        self._frame: Any = None
        self._input, self._output = b"", b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self._output:
            if not self._input:
                self._input = self._file.read(ZSTD_CHUNK)
                if not self._input:
                    if self._frame is not None:
                        raise EOFError("the file ends inside a zstd frame")
                    return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                self._output = self._frame.decompress(self._input)
            except self._library.ZstdError as error:
                raise OSError(f"damaged zstd frame: {error}") from error
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def lines(stream: IO[bytes], offset: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of every line that is not blank; the line is None if it is longer than MAX_LINE_BYTES.

    Only a line feed ends a line; U+2028 and U+0085, which JSON strings may hold, do not. Raises one of `damage()`.
    """
    while line := stream.readline(MAX_LINE_BYTES + 1):
        start = offset
        offset += len(line)
        if len(line) > MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (line := stream.readline(CHUNK)):
                offset += len(line)
            yield start, None
        elif line.strip():
            yield start, line
