"""Small images, records and a tokenizer whose tokens are single bytes, so that samples can be written down by hand."""

import io
import re

import numpy as np
import PIL.Image

from janus_jax.data import prompts
from janus_jax.data.prompts import IMAGE_MARKER, STYLES, Message
from janus_jax.data.record_reader import StoredRecord
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import SampleBuilder
from janus_jax.data.tokenizer import SPECIAL_TOKENS, train_tokenizer

STYLE = STYLES["janus_pro_tiny"]  # no system prompt
ROLES = (STYLE.user, STYLE.assistant)
BYTE_TOKENIZER = train_tokenizer(
    ["no merges"], vocab_size=len(SPECIAL_TOKENS) + len(ROLES) + 256, extra_special_tokens=ROLES
)


def byte_ids(text):
    """The ids of a text without BOS, computed by hand: one per special token and one per other UTF-8 byte."""
    vocabulary = BYTE_TOKENIZER.backend.get_vocab()
    printable = bytes_to_unicode()
    special = [*SPECIAL_TOKENS, *ROLES]
    ids = []
    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", text):
        ids += [vocabulary[piece]] if piece in special else [vocabulary[printable[byte]] for byte in piece.encode()]
    return ids


def bytes_to_unicode():
    """GPT-2's printable stand-in for each byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def random_image(width, height, seed=0, mode="RGB"):
    """Smooth colours with noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 128, width)[None, :, None] + np.linspace(0, 64, height)[:, None, None]
    pixels = (ramp + rng.integers(0, 64, (height, width, 3))).astype(np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def flat_png(value, size=8):
    """A grey image of one value, to tell images apart after any resizing."""
    return encoded(PIL.Image.new("RGB", (size, size), (value,) * 3))


def understand(*turns, images=(), key="u"):
    """A conversation of alternating user and assistant texts."""
    return Record(task="understand", messages=alternate(turns), images=tuple(images), key=key)


def text(*turns, key="t"):
    return Record(task="text", messages=alternate(turns), key=key)


def document(content, key="d"):
    return Record(task="text", messages=(Message("assistant", content),), key=key)


def generate(caption, *images, key="g"):
    """A sample whose last image is generated; the others are condition images, with markers in the caption."""
    return Record(task="generate", messages=alternate((caption, IMAGE_MARKER)), images=images, key=key)


def alternate(turns):
    return tuple(Message(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns))


class ListSource(list):
    """Records (or raw payloads) in memory, in place of a `RecordSource`."""

    pattern = "in/memory-*"

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return StoredRecord(f"list:{index}", record.serialize() if isinstance(record, Record) else record)


def make_builder(**changes):
    settings = dict(
        tokenizer=BYTE_TOKENIZER,
        style=STYLE,
        understanding_size=16,
        understanding_tokens=4,
        generation_size=8,
        generation_tokens=4,
        num_codes=32,
        row_length=64,
        understanding_slots=2,
        generation_slots=1,
        supervision="all",
        drop_condition=0.0,
    )
    return SampleBuilder(**settings | changes)


BOS, PAD, BEGIN = BYTE_TOKENIZER.bos_id, BYTE_TOKENIZER.pad_id, BYTE_TOKENIZER.begin_of_image_id
END, EOS, PLACEHOLDER = BYTE_TOKENIZER.end_of_image_id, prompts.EOS, prompts.IMAGE_PLACEHOLDER
