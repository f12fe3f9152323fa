"""Mosaics of 2 x 2 real digits, with questions that need more than one of them, and captions that name all four.

An image has 32 x 32 pixels, so each digit covers 2 x 2 of the 4 x 4 tokens of an image.
"""

import io
from typing import NamedTuple

import numpy as np
import PIL.Image

from examples.digits.data import MAX_INTENSITY, NAMES, Digits
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

SIDE = 16  # of a digit, in pixels
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("place", "count", "larger")  # kinds of questions
REPEATED = 0.5  # share of mosaics with digits of two classes only, so that counts above one are not rare


class Mosaic(NamedTuple):
    """One image of four digits."""

    image: PIL.Image.Image  # RGB, 32 x 32
    labels: tuple[int, ...]  # digit at each of PLACES


class Question(NamedTuple):
    """A question about a mosaic with its only right answer."""

    kind: str
    text: str
    answer: str


def make_mosaics(digits: Digits, number: int, seed: int) -> list[Mosaic]:
    """`number` mosaics of the given digits only."""
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(digits.labels == label) for label in range(len(NAMES))]
    mosaics = []
    for _ in range(number):
        classes = rng.choice(len(NAMES), 2, replace=False) if rng.random() < REPEATED else np.arange(len(NAMES))
        labels = tuple(int(label) for label in rng.choice(classes, len(PLACES)))
        chosen = [digits.intensities[rng.choice(of_class[label])] for label in labels]
        mosaics.append(Mosaic(_paste(chosen), labels))
    return mosaics


def ask(mosaic: Mosaic, kind: str, rng: np.random.Generator) -> Question:
    """A random question of a kind."""
    labels = mosaic.labels
    if kind == "place":
        place = int(rng.integers(len(PLACES)))
        return Question(kind, f"Which digit is {PLACES[place]}?", NAMES[labels[place]])
    if kind == "count":
        # Mostly a digit that is there; otherwise nearly every answer would be zero.
        digit = int(rng.choice(labels)) if rng.random() < 0.75 else int(rng.integers(len(NAMES)))
        return Question(kind, f"How many times is {NAMES[digit]} there?", NAMES[labels.count(digit)])
    first, second = (int(place) for place in rng.choice(len(PLACES), 2, replace=False))
    larger = NAMES[max(labels[first], labels[second])]
    return Question(kind, f"Which digit is larger, {PLACES[first]} or {PLACES[second]}?", larger)


def caption(labels: tuple[int, ...]) -> str:
    """Names the digits row by row."""
    return " ".join(NAMES[label] for label in labels)


def understanding_records(mosaics: list[Mosaic], seed: int) -> list[Record]:
    """One question about each mosaic, the kinds in turn."""
    rng = np.random.default_rng(seed)
    records = []
    for i, mosaic in enumerate(mosaics):
        question = ask(mosaic, KINDS[i % len(KINDS)], rng)
        messages = (Message("user", f"{IMAGE_MARKER}\n{question.text}"), Message("assistant", question.answer))
        image = _encode(mosaic.image)
        records.append(Record(task="understand", messages=messages, images=(image,), key=f"mosaic/{i}/{question.kind}"))
    return records


def generation_records(mosaics: list[Mosaic]) -> list[Record]:
    """Each mosaic with its caption."""
    return [
        Record(
            task="generate",
            messages=(Message("user", caption(mosaic.labels)), Message("assistant", IMAGE_MARKER)),
            images=(_encode(mosaic.image),),
            key=f"mosaic/{i}/caption",
        )
        for i, mosaic in enumerate(mosaics)
    ]


def pixels(mosaics: list[Mosaic]) -> np.ndarray:
    """[n, 32, 32, 3] uint8."""
    return np.stack([np.asarray(mosaic.image) for mosaic in mosaics])


def quadrants(images: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """The four parts of each image, in the order of PLACES."""
    return [
        image.crop((left, top, left + SIDE, top + SIDE)) for image in images for top in (0, SIDE) for left in (0, SIDE)
    ]


def _paste(digits: list[np.ndarray]) -> PIL.Image.Image:
    image = PIL.Image.new("L", (2 * SIDE, 2 * SIDE))
    for i, intensities in enumerate(digits):
        scan = PIL.Image.fromarray(np.round(intensities * (255 / MAX_INTENSITY)).astype(np.uint8))
        image.paste(scan.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC), (i % 2 * SIDE, i // 2 * SIDE))
    return image.convert("RGB")


def _encode(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
