"""Sequential reading of untrusted tar archives, with bounded memory and without writing to disk.

The standard library parses the headers. Its `TarFile` is not used, because it reads extended headers of any size and
does not report which member was damaged.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats.base import MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from janus_jax.data.formats.safe_paths import check_relative, is_hidden

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 64 << 10  # Limit for a long name or an extended header.
_SKIP = 1 << 20
# Names need not be UTF-8. Other bytes are written as \xe9, so that different names stay different.
_OTHER_BYTES = "backslashreplace"
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_WITHOUT_CONTENT = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, *_DEVICES)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)


class Member(NamedTuple):
    """A file in an archive. If it cannot be used, `bad` says why and `data` is empty."""

    name: str
    data: bytes
    bad: SampleError | None


def members(stream: IO[bytes]) -> Iterator[Member]:
    """All files of an archive in order, without folders and hidden files (see `is_hidden`).

    A link, a device, or a member whose name would leave the archive is bad but does not end the reading. Where the
    archive is damaged, ends early or has no byte at all, SampleError is raised after the complete members. Errors of
    the stream pass through.
    """
    name: str | None = None
    size: int | None = None
    padding = 0  # Bytes to the next whole block; damage in them does not affect the member before.
    is_first = True
    while True:
        if len(stream.read(padding)) < padding:
            raise SampleError(Reason.CORRUPT, "the archive ends inside a member")
        block = stream.read(BLOCK)
        if is_first and not block:
            raise SampleError(Reason.CORRUPT, "0 bytes, expected an archive")
        is_first = False
        if not block.strip(b"\0"):
            if len(block) < BLOCK:  # Archives without the two closing blocks are common and complete.
                if block:
                    raise SampleError(Reason.CORRUPT, "the archive ends inside a block")
                return
            _finish(stream)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", _OTHER_BYTES)
        except (tarfile.TarError, ValueError) as error:
            raise SampleError(Reason.CORRUPT, f"damaged header ({error})") from error
        if size is not None and header.type not in _EXTENDED:
            header.size = size
        if header.size < 0:
            raise SampleError(Reason.CORRUPT, f"a member of {header.size} bytes")
        padding = -_stored(header) % BLOCK
        if header.type in _EXTENDED:
            if header.size > MAX_HEADER_BYTES:
                raise SampleError(Reason.CORRUPT, f"an extended header of {header.size} bytes")
            content = _read(stream, header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = content.rstrip(b"\0").decode("utf-8", _OTHER_BYTES)
            elif header.type in _PAX:
                values = _pax(content)
                name = values.get("path", name)
                size = int(values["size"]) if values.get("size", "").isdecimal() else size
            continue
        member = _member(stream, header, header.name if name is None else name)
        if member:
            yield member
        name, size = None, None


def _stored(header: tarfile.TarInfo) -> int:
    """Number of bytes after the header. Links, devices and folders have none, whatever size they claim."""
    return header.size if header.type not in _WITHOUT_CONTENT else 0


def _member(stream: IO[bytes], header: tarfile.TarInfo, name: str) -> Member | None:
    """Reads or skips the content of one member; None for a folder and a hidden file."""
    if header.type == tarfile.DIRTYPE:
        return None
    if is_hidden(name):
        _skip(stream, _stored(header))
        return None
    try:
        if header.type not in tarfile.REGULAR_TYPES:
            raise SampleError(Reason.PATH_ESCAPE, f"member {name!r} is a link or a device")
        check_relative(name)
        limit = MAX_TEXT_BYTES if name.lower().endswith((".txt", ".json")) else MAX_IMAGE_BYTES
        if header.size > limit:
            raise SampleError(Reason.TOO_LARGE, f"member {name!r} has {header.size} bytes, at most {limit} allowed")
    except SampleError as error:
        _skip(stream, _stored(header))
        return Member(name, b"", error)
    return Member(name, _read(stream, header.size), None)


def _finish(stream: IO[bytes]) -> None:
    """Reads to the end of the stream, where only zeros may follow. Compressed streams verify their checksum there."""
    while data := stream.read(_SKIP):
        if data.strip(b"\0"):
            raise SampleError(Reason.CORRUPT, "more data after the end of the archive")


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise SampleError(Reason.CORRUPT, "the archive ends inside a member")
    return data


def _skip(stream: IO[bytes], size: int) -> None:
    remaining = size
    while remaining:
        data = stream.read(min(remaining, _SKIP))
        if not data:
            raise SampleError(Reason.CORRUPT, "the archive ends inside a member")
        remaining -= len(data)


def _pax(content: bytes) -> dict[str, str]:
    """Parses the entries "LENGTH KEY=VALUE\\n" of an extended header."""
    values = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length[:9]) <= len(content):
            raise SampleError(Reason.CORRUPT, "damaged extended header")
        key, separator, value = content[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if not separator:
            raise SampleError(Reason.CORRUPT, "damaged extended header")
        values[key.decode("utf-8", _OTHER_BYTES)] = value.decode("utf-8", _OTHER_BYTES)
        content = content[int(length) :]
    return values
