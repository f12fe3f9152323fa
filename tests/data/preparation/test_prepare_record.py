import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.images import decode_image, generation_pixels, understanding_pixels
from janus_jax.data.preparation.record import LengthSettings, RecordSettings, count_tokens, prepare_record
from janus_jax.data.prompts import Message
from janus_jax.data.records import Record
from janus_jax.errors import UserError
from tests.helpers.tiny_data import (
    BYTE_TOKENIZER,
    document,
    encoded,
    flat_png,
    generate,
    make_builder,
    random_image,
    text,
    understand,
)

LENGTHS = LengthSettings(prompt_style="janus_pro_tiny", understanding_tokens=4, generation_tokens=4)
IMAGES = [
    encoded(random_image(80, 33)),
    encoded(random_image(31, 90, seed=1), "JPEG"),
    encoded(random_image(47, 47, mode="L"), "PNG"),
    encoded(random_image(200, 10, seed=2)),
    encoded(random_image(16, 16).convert("RGBA")),
    encoded(random_image(60, 20), "WEBP"),
]


@pytest.mark.parametrize("image", IMAGES, ids=range(len(IMAGES)))
@pytest.mark.parametrize("size", [16, 47])
def test_training_sees_the_same_pixels_of_a_resized_image(image, size):
    original = decode_image(image, "x", training=True)
    settings = RecordSettings(image_size=size)
    for record, resize in (
        (understand("<image>", "a", images=[image]), understanding_pixels),
        (generate("c", image), generation_pixels),
    ):
        stored = prepare_record(record, settings, None).record.images[0]
        assert PIL.Image.open(io.BytesIO(stored)).size == (size, size)
        again = resize(decode_image(stored, "x", training=True), size)
        np.testing.assert_array_equal(again, resize(original, size))


def test_images_stay_byte_for_byte_without_a_size():
    assert prepare_record(generate("c", IMAGES[1]), RecordSettings(), None).record.images == (IMAGES[1],)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("size", [0, 8])
def test_codes_are_computed_from_what_training_would_decode(encoding, size):
    settings = RecordSettings(image_size=size, image_encoding=encoding, code_size=8)
    prepared = prepare_record(generate("c", IMAGES[0]), settings, None)
    stored = decode_image(prepared.record.images[0], "x", training=True)
    np.testing.assert_array_equal(prepared.pixels, [generation_pixels(stored, 8)])
    assert prepare_record(understand("<image>", "a", images=[IMAGES[0]]), settings, None).pixels == []


RECORDS = [
    understand("<image>\nWhat? é", "A cat 猫.", images=[flat_png(1)]),
    understand("<image> or <image>?", "first", "sure?", "yes", images=[flat_png(1), flat_png(2)]),
    text("q", "a"),
    text("what does <image> mean?", "a marker"),
    document("  Once upon a time. "),
    generate("a dog", flat_png(3)),
    Record(task="text", messages=(Message("system", "Be brief."), *text("q", "a").messages), key="e"),
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_length_is_that_of_the_training_sample(record):
    sample, _ = make_builder(row_length=1000).build(record, np.random.default_rng(0))
    assert count_tokens(record, BYTE_TOKENIZER, LENGTHS) == len(sample["tokens"])
    prepared = prepare_record(record, RecordSettings(lengths=LENGTHS), BYTE_TOKENIZER).record
    assert prepared.tokens == len(sample["tokens"])


def gif(frames):
    pictures = [random_image(8, 8, seed=i) for i in range(frames)]
    return encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


def test_animations_are_counted_and_give_their_first_frame():
    assert prepare_record(generate("c", gif(3)), RecordSettings(image_size=8), None).animated
    assert not prepare_record(generate("c", gif(1)), RecordSettings(), None).animated


PNG = encoded(random_image(40, 30))
JPEG = encoded(random_image(40, 30), "JPEG")
TIFF = encoded(random_image(9, 9), "TIFF")


def png_of_size(width, height):
    """A PNG whose header claims another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def png_text_bomb():
    """A compressed comment of 200 MB."""
    body = b"zTXt" + b"k\0\0" + zlib.compress(bytes(200 << 20), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return PNG[:33] + chunk + PNG[33:]


def chunk(kind, body, damaged=False):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damaged)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


NOISE = np.random.default_rng(0).bytes(3 << 20)
UPRIGHT = PIL.Image.Exif()
UPRIGHT[0x0112] = 6
EXIF = UPRIGHT.tobytes()
# EXIF whose orientation is whole, beside a tag whose value lies far outside.
HALF_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHIII", 0x0112, 3, 1, 6, 0x829A, 5, 9, 2**30, 0)
PROFILE = chunk(b"iCCP", b"n\0\0" + zlib.compress(NOISE))
# Metadata that Pillow refuses the image for, or warns about: chunks of a PNG, segments of a JPEG.
PNG_METADATA = {
    "3 MB of profile": PROFILE,
    "3 MB of zTXt": chunk(b"zTXt", b"n\0\0" + zlib.compress(NOISE)),
    "3 MB of iTXt": chunk(b"iTXt", b"n\0\1\0en\0n\0" + zlib.compress(b"x" * (3 << 20))),
    "20 MB of XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * (20 << 20))),
    "checksum of a comment": chunk(b"tEXt", b"n\0x", damaged=True),
    "checksum of EXIF": chunk(b"eXIf", EXIF[6:], damaged=True),
    "short gamma": chunk(b"gAMA", b""),
    "short resolution": chunk(b"pHYs", b"1"),
}
JPEG_METADATA = {
    "profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "3 MB of profile": b"".join(segment(0xE2, b"ICC_PROFILE\0\1\x32" + NOISE[:60_000]) for _ in range(50)),
    "EXIF of noise": segment(0xE1, b"Exif\0\0" + NOISE[:300]),
    "EXIF cut": segment(0xE1, EXIF[:20]),
    "Adobe cut": segment(0xEE, b"Adobe"),
}


@pytest.mark.parametrize("metadata", PNG_METADATA.values(), ids=PNG_METADATA.keys())
def test_metadata_of_a_png_never_decides_over_its_pixels(metadata):
    image, expected = PNG[:33] + metadata + PNG[33:], decode_image(PNG, "x")
    np.testing.assert_array_equal(decode_image(image, "x"), expected)
    prepared = prepare_record(generate("c", image), RecordSettings(), None)
    np.testing.assert_array_equal(decode_image(prepared.record.images[0], "x", training=True), expected)
    assert prepared.metadata_ignored
    assert not prepare_record(generate("c", PNG), RecordSettings(), None).metadata_ignored
    np.testing.assert_array_equal(decode_image(PNG[:-12] + metadata + PNG[-12:], "x"), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("metadata", JPEG_METADATA.values(), ids=JPEG_METADATA.keys())
@pytest.mark.parametrize("training", [True, False])
def test_metadata_of_a_jpeg_never_decides_over_its_pixels(metadata, training):
    image, expected = JPEG[:2] + metadata + JPEG[2:], decode_image(JPEG, "x")
    np.testing.assert_array_equal(decode_image(image, "x", training), expected)
    assert not isinstance(prepare_record(generate("c", image), RecordSettings(), None), DroppedSample)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "image",
    [
        PNG[:33] + chunk(b"eXIf", EXIF[6:]) + PROFILE + PNG[33:],
        JPEG[:2] + segment(0xE1, HALF_EXIF) + JPEG[2:],
    ],
    ids=["beside a large profile", "beside a damaged tag"],
)
def test_orientation_is_kept_beside_other_damage(image):
    expected = decode_image(PNG if image.startswith(PNG[:8]) else JPEG, "x").transpose(PIL.Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(decode_image(image, "x", training=True), expected)


def test_damaged_pixels_beside_large_metadata_are_still_damaged():
    image = PNG[:33] + PROFILE + PNG[33 : len(PNG) // 2]
    assert prepare_record(generate("c", image), RecordSettings(), None).reason is Reason.BAD_IMAGE


DAMAGED = {
    "empty": b"",
    "HTML": b"<html><body>404 Not Found</body></html>",
    "JSON": b'{"error": "not found"}',
    "text": b"hello " * 1000,
    "NUL bytes": bytes(5000),
    "random": np.random.default_rng(0).bytes(5000),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) (w) file\nshowpage\n",
    "zip": b"PK\x03\x04" + bytes(200),
    "PDF": b"%PDF-1.4\n" + bytes(200),
    "PNG signature": PNG[:8],
    "PNG header": PNG[:33],
    "PNG half": PNG[: len(PNG) // 2],
    "PNG without its end": PNG[:-40],
    "PNG flipped": PNG[:60] + bytes(byte ^ 0xFF for byte in PNG[60:90]) + PNG[90:],
    "PNG of another size": png_of_size(41, 30000),
    "PNG bomb": png_of_size(60000, 60000),
    "PNG bomb below Pillow's limit": png_of_size(12000, 12000),
    "PNG of no width": png_of_size(0, 10),
    "PNG of a huge width": png_of_size(2**31 - 1, 1),
    "PNG text bomb": png_text_bomb(),
    "JPEG start": JPEG[:2],
    "JPEG half": JPEG[: len(JPEG) // 2],
    "JPEG without its end": JPEG[:-200],
    "JPEG header": JPEG[:20],
    "GIF header": gif(2)[:13],
    "GIF half": gif(1)[: len(gif(1)) // 2],
    "WEBP half": encoded(random_image(40, 30), "WEBP")[:60],
    "WEBP header": encoded(random_image(40, 30), "WEBP")[:16],
    "BMP header": encoded(random_image(40, 30), "BMP")[:54],
    "TIFF half": TIFF[: len(TIFF) // 2],
    "TIFF of a loop": TIFF[:4] + b"\x04\0\0\0" + TIFF[8:],
    "TIFF flipped": TIFF[:4] + b"\xff\xff\xff\xff" + TIFF[8:],
    "float": encoded(PIL.Image.new("F", (8, 8)), "TIFF"),
    "32 bit": encoded(PIL.Image.new("I", (8, 8)), "TIFF"),
    "a line": encoded(PIL.Image.new("RGB", (400, 1))),
    "a pillar": encoded(PIL.Image.new("RGB", (3, 999)), "JPEG"),
}
BOMBS = {"PNG bomb", "PNG bomb below Pillow's limit", "PNG of another size", "PNG of a huge width"}
SHAPES = BOMBS | {"a line", "a pillar"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("size", [0, 16])
def test_every_damaged_image_is_counted(name, size):
    bad = prepare_record(generate("c", DAMAGED[name], key="k"), RecordSettings(image_size=size), None)
    assert (bad.key, bad.reason) == ("k", Reason.IMAGE_SHAPE if name in SHAPES else Reason.BAD_IMAGE)
    assert " at 0x" not in bad.detail  # the report of a rerun must be the same


def test_codes_without_an_image_cannot_be_computed_again():
    record = Record(task="generate", messages=generate("c", PNG).messages, key="k").with_codes(np.arange(4))
    assert prepare_record(record, RecordSettings(), None).record == record
    assert prepare_record(record, RecordSettings(code_size=8), None).reason is Reason.NO_IMAGE
    with_image = generate("c", PNG).with_codes(np.arange(4))
    assert prepare_record(with_image, RecordSettings(), None).record.codes == with_image.codes
    assert prepare_record(with_image, RecordSettings(image_size=8), None).record.codes == b""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(image_encoding="gif"), r"^--image_encoding=gif: expected one of png, jpeg"),
        (dict(image_size=-1), r"^--image_size=-1: expected a side"),
        (dict(image_size=16, code_size=8), r"^--image_size=16: the checkpoint encodes images of 8 pixels"),
        (dict(max_aspect=0.5), r"^--max_aspect=0\.5"),
        (dict(max_aspect=float("nan")), r"^--max_aspect=nan"),
        (dict(code_batch=0), r"^--code_batch=0"),
        (dict(keep_images=False), r"^--keep_images=false"),
    ],
)
def test_impossible_settings_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        RecordSettings(**settings)
