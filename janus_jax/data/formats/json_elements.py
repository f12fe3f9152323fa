"""Finds the elements of a JSON list in a file that is too large to be held in memory."""

import codecs
import json
from collections.abc import Iterator
from typing import IO, NamedTuple

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import streams
from janus_jax.data.formats.base import MAX_TEXT_BYTES

_SPACE = " \t\r\n"
_BOM = codecs.BOM_UTF8.decode("latin-1")
_LONGEST_LITERAL = len("-Infinity")  # The decoder reports an error in a literal at the literal's beginning.
# Finds where an element ends. Numbers stay text, since `int` refuses huge ones.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


class Element(NamedTuple):
    """Where an element begins and its JSON text, or the place and the reason why the list cannot be read further."""

    begin: int
    data: bytes
    bad: SampleError | None


def list_elements(path: str, start: int, stop: int) -> Iterator[Element]:
    """The elements of the list that begin in [start, stop); `stop` 0 means the end of the file.

    Where the file does not continue as a list, the last element is bad, since nothing after it can be trusted. Offsets
    count bytes of the text in UTF-8; a file in another encoding can only be read from its beginning.
    """
    with streams.open_stream(path) if start else streams.open_text(path) as file:
        if start:
            file.seek(start)
        scanner = _Scanner(file, start)
        if start == 0 and not scanner.enter_list():
            detail = "not a JSON list; the name of a file with an object in each line must end with .jsonl"
            yield scanner.bad(Reason.CORRUPT, detail)
            return
        while True:
            following = scanner.skip(_SPACE + ",")
            if stop and scanner.offset >= stop:
                return
            if following == "]":
                end = scanner.offset
                if scanner.has_more_after_list():
                    detail = f"more data after the list's end at byte {end}"
                    yield Element(end, b"", SampleError(Reason.CORRUPT, detail))
                return
            if not following:
                yield scanner.bad(Reason.CORRUPT, "the list is not closed")
                return
            element = scanner.next_element()
            yield element
            if element.bad:
                return


class _Scanner:
    """Moves through a file, of which it holds at most two elements' worth of text."""

    def __init__(self, file: IO[bytes], start: int):
        self._file = file
        self._buffer = ""  # Latin-1 has a character per byte, so positions are byte offsets.
        self._position = 0
        self._base = start  # Offset in the file of the buffer's beginning.
        self._more = True  # Whether the file goes on after the buffer.

    @property
    def offset(self) -> int:
        """Offset of the next character in the file."""
        return self._base + self._position

    def bad(self, reason: Reason, detail: str) -> Element:
        return Element(self.offset, b"", SampleError(reason, detail))

    def skip(self, characters: str) -> str:
        """Moves past `characters`; returns the next character, or "" at the end of the file."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in characters:
                self._position += 1
            if self._position < len(self._buffer) or not self._more:
                return self._buffer[self._position : self._position + 1]
            self._fill()

    def enter_list(self) -> bool:
        """Moves past the bracket that opens the list; returns False if there is none."""
        self.skip("")
        if self._buffer.startswith(_BOM):
            self._position = len(_BOM)
        if self.skip(_SPACE) != "[":
            return False
        self._position += 1
        return True

    def has_more_after_list(self) -> bool:
        """Moves past the bracket that closes the list; returns whether anything but white space follows."""
        self._position += 1
        return bool(self.skip(_SPACE))

    def next_element(self) -> Element:
        """Moves past the element that begins here."""
        while True:
            try:
                end = _DECODER.raw_decode(self._buffer, self._position)[1]
                break
            except (ValueError, RecursionError) as error:
                cut_off = self._more and self._is_cut_off(error)
                if cut_off and len(self._buffer) - self._position <= MAX_TEXT_BYTES:
                    self._fill()
                    continue
                detail = f"element at byte {self.offset}: {error}; what follows is lost"
                return self.bad(Reason.TOO_LARGE if cut_off else Reason.CORRUPT, detail)
        element = Element(self.offset, self._buffer[self._position : end].encode("latin-1"), None)
        self._position = end
        return element

    def _fill(self) -> None:
        data = self._file.read(MAX_TEXT_BYTES)
        self._more = len(data) == MAX_TEXT_BYTES
        self._base = self.offset
        self._buffer = self._buffer[self._position :] + data.decode("latin-1")
        self._position = 0

    def _is_cut_off(self, error: Exception) -> bool:
        """Whether the error may come from the end of the buffer, so that reading more can cure it."""
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - _LONGEST_LITERAL
        )
