"""Scikit-learn's 1,797 real handwritten digits as training records, for the quickstart."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from janus_jax.data.prompts import IMAGE_MARKER, STYLES, Message, format_conversation, generation_prompt
from janus_jax.data.records import Record
from janus_jax.data.tokenizer import Tokenizer, train_tokenizer

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = ("Which digit is this?", "What number is written here?", "Name the digit in the image.")
CAPTIONS = ("a handwritten {}", "the digit {}", "a drawing of the number {}")
IMAGE_SIZE = 32
MAX_INTENSITY = 16  # of the 8 x 8 originals


class Digits(NamedTuple):
    """Pixels and labels of one split."""

    intensities: np.ndarray  # [n, 8, 8], 0 .. 16
    labels: np.ndarray  # [n]


def load_digits(held_out: int = 360) -> tuple[Digits, Digits]:
    """(training, held-out) split: the last `held_out` of a fixed shuffle are never trained on."""
    from sklearn.datasets import load_digits as load  # an optional dependency

    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = data.images[order], data.target[order]
    return Digits(images[:-held_out], labels[:-held_out]), Digits(images[-held_out:], labels[-held_out:])


def to_image(intensities: np.ndarray) -> PIL.Image.Image:
    """[8, 8] intensities -> RGB image of 32 x 32 pixels, bicubic."""
    pixels = np.round(intensities * (255 / MAX_INTENSITY)).astype(np.uint8)
    image = PIL.Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), PIL.Image.Resampling.BICUBIC)
    return image.convert("RGB")


def jitter(image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """Turned by up to 12 degrees and moved by up to 2 of 32 pixels: another hand's way to write the same digit."""
    angle, shift = rng.uniform(-12, 12), rng.integers(-2, 3, size=2)
    return image.rotate(angle, PIL.Image.Resampling.BICUBIC, translate=(int(shift[0]), int(shift[1])))


def understanding_records(digits: Digits) -> list[Record]:
    """Every image with every question, as it is and jittered, answered by the digit's name."""
    rng = np.random.default_rng(0)
    records = []
    for i, (intensities, label) in enumerate(zip(digits.intensities, digits.labels, strict=True)):
        image = to_image(intensities)
        for q, question in enumerate(QUESTIONS):
            messages = (Message("user", f"{IMAGE_MARKER}\n{question}"), Message("assistant", NAMES[label]))
            for kind, shown in (("real", image), ("jittered", jitter(image, rng))):
                key = f"digits/{i}/question{q}/{kind}"
                records.append(Record(task="understand", messages=messages, images=(_encode(shown),), key=key))
    return records


def generation_records(digits: Digits) -> list[Record]:
    """Every image with every caption."""
    return [
        Record(
            task="generate",
            messages=(Message("user", caption.format(NAMES[label])), Message("assistant", IMAGE_MARKER)),
            images=(_encode(to_image(image)),),
            key=f"digits/{i}/caption{c}",
        )
        for i, (image, label) in enumerate(zip(digits.intensities, digits.labels, strict=True))
        for c, caption in enumerate(CAPTIONS)
    ]


def text_records() -> list[Record]:
    """Short questions and answers on digits, without images."""
    pairs = [(f"Which digit comes after {NAMES[i]}?", NAMES[i + 1]) for i in range(9)]
    pairs += [(f"Which digit comes before {NAMES[i + 1]}?", NAMES[i]) for i in range(9)]
    pairs += [(f"Write {name} as a figure.", str(i)) for i, name in enumerate(NAMES)]
    pairs += [(f"Is {name} even or odd?", "odd" if i % 2 else "even") for i, name in enumerate(NAMES)]
    pairs += [
        (f"Which is larger, {a} or {b}?", NAMES[max(i, j)])
        for i, a in enumerate(NAMES)
        for j, b in enumerate(NAMES)
        if i != j
    ]
    return [
        Record(task="text", messages=(Message("user", question), Message("assistant", answer)), key=f"text/{i}")
        for i, (question, answer) in enumerate(pairs)
    ]


def build_tokenizer(records: Sequence[Record], vocab_size: int, prompt_style: str) -> Tokenizer:
    """A byte-level BPE trained on the formatted records, so that whole words are single tokens."""
    style = STYLES[prompt_style]
    texts = []
    for record in records:
        if record.task == "generate":
            texts.append(generation_prompt(record.messages[0].text, style))
        else:
            texts.append(format_conversation(record.messages, style))
    return train_tokenizer(texts, vocab_size, extra_special_tokens=(style.user, style.assistant))


def _encode(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
