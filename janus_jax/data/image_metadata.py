"""Removes metadata from encoded images, whose pixels can then be read although the metadata cannot.

Pillow (12) refuses a whole PNG for a colour profile or comment of more than 1 MB, or for one that is damaged.
"""

import zlib

MAX_METADATA_BYTES = 64 << 20  # A profile or comment that expands to more is an attack, and its image is refused.
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that decide the pixels: all that PNG calls critical, and transparency. Frames after the first are not read.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
_START_OF_SCAN = 0xDA
# Segments without pixels: comments and application data, but not JFIF and Adobe's, which name the colour space.
_JPEG_METADATA = {0xFE, *range(0xE1, 0xF0)} - {0xEE}
_SHORTEST = {0xE0: 16, 0xEE: 14}  # Sizes of whole segments of JFIF and Adobe; a shorter one is damaged.


def without_metadata(data: bytes) -> bytes | None:
    """The same pixels without comments and profiles. None if there are none of them, or they hide a bomb.

    Only PNG and JPEG are changed. A damaged file gives bytes that are as damaged, but no error.
    """
    pixels = None
    if data.startswith(_PNG):
        pixels = _png_pixels(data)
    elif data.startswith(_JPEG):
        pixels = _jpeg_pixels(data)
    return pixels if pixels is not None and len(pixels) < len(data) else None


def _png_pixels(data: bytes) -> bytes | None:
    """The chunks of a PNG in _PNG_PIXELS, and EXIF, which turns it upright; None if another one is a bomb."""
    kept, position = [_PNG], len(_PNG)
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        stop = min(position + 12 + size, len(data))
        body, checksum = data[position + 8 : stop - 4], data[stop - 4 : stop]
        if kind in _PNG_PIXELS or (kind == b"eXIf" and zlib.crc32(kind + body).to_bytes(4, "big") == checksum):
            kept.append(data[position:stop])
        elif _is_bomb(kind, body):
            return None
        position = stop
    return b"".join(kept)


def _is_bomb(kind: bytes, body: bytes) -> bool:
    """Whether the compressed part of a chunk expands to more than MAX_METADATA_BYTES. Damaged ones do not."""
    _, _, content = body.partition(b"\0")  # The name of a profile or comment.
    if kind in (b"zTXt", b"iCCP"):
        compressed = content[1:]
    elif kind == b"iTXt" and content[:1] == b"\1":
        compressed = content[2:].split(b"\0", 2)[-1]  # After the language and the translated name.
    else:
        return False
    try:
        return len(zlib.decompressobj().decompress(compressed, MAX_METADATA_BYTES + 1)) > MAX_METADATA_BYTES
    except zlib.error:
        return False


def _jpeg_pixels(data: bytes) -> bytes:
    """A JPEG without the segments of _JPEG_METADATA, and without damaged ones of _SHORTEST, before its pixels."""
    kept, position = [_JPEG], len(_JPEG)
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] not in (b"", b"\xff"):
        marker, size = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN or size < 2:
            break
        if marker not in _JPEG_METADATA and size >= _SHORTEST.get(marker, 0):
            kept.append(data[position : position + 2 + size])
        position += 2 + size
    return b"".join([*kept, data[position:]])
