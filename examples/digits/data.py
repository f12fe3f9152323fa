"""Scikit-learn's 1,797 real handwritten digits as training records, for the quickstart."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from etils import epath

from janus_jax.data.prompts import IMAGE_MARKER, STYLES, Message, format_conversation, generation_prompt
from janus_jax.data.records import TASKS, Record, write_records
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer, train_tokenizer

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = ("Which digit is this?", "What number is written here?", "Name the digit in the image.")
CAPTIONS = ("a handwritten {}", "the digit {}", "a drawing of the number {}")
IMAGE_SIZE = 16
MAX_INTENSITY = 16  # Largest intensity in the 8 x 8 originals.
JITTERED_COPIES = 4  # Number of jittered copies of each image with each question.


class Digits(NamedTuple):
    """Pixels and labels of one split."""

    intensities: np.ndarray  # [n, 8, 8], 0 .. 16
    labels: np.ndarray  # [n]


def load_digits(held_out: int = 360) -> tuple[Digits, Digits]:
    """(training, held-out) split: the last `held_out` of a fixed shuffle are never trained on."""
    from sklearn.datasets import load_digits as load  # optional dependency

    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = data.images[order], data.target[order]
    return Digits(images[:-held_out], labels[:-held_out]), Digits(images[-held_out:], labels[-held_out:])


def to_image(intensities: np.ndarray, size: int = IMAGE_SIZE) -> PIL.Image.Image:
    """[8, 8] intensities -> RGB image of `size` x `size` pixels, bicubic."""
    pixels = np.round(intensities * (255 / MAX_INTENSITY)).astype(np.uint8)
    image = PIL.Image.fromarray(pixels).resize((size, size), PIL.Image.Resampling.BICUBIC)
    return image.convert("RGB")


def jitter(image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """The same digit as another hand could write it.

    It is turned by up to 8 degrees, up to 7 % smaller or larger, and moved by up to one pixel.
    """
    angle, zoom, shift = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(0.93, 1.07), rng.uniform(-1.0, 1.0, size=2)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inverse = rotation / zoom  # maps a pixel of the result to the pixel of the input that it shows
    offset = image.width / 2 - inverse @ (image.width / 2 + shift)
    matrix = np.column_stack([inverse, offset]).ravel().tolist()
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BICUBIC)


def understanding_records(digits: Digits) -> list[Record]:
    """Every image with every question, unchanged and jittered. The answer is the digit's name."""
    rng = np.random.default_rng(0)
    records = []
    for i, (intensities, label) in enumerate(zip(digits.intensities, digits.labels, strict=True)):
        image = to_image(intensities)
        for q, question in enumerate(QUESTIONS):
            messages = (Message("user", f"{IMAGE_MARKER}\n{question}"), Message("assistant", NAMES[label]))
            for copy in range(1 + JITTERED_COPIES):
                shown = jitter(image, rng) if copy else image
                key = f"digits/{i}/question{q}/copy{copy}"
                records.append(Record(task="understand", messages=messages, images=(encode(shown),), key=key))
    return records


def generation_records(digits: Digits) -> list[Record]:
    """Every image with every caption."""
    return [
        Record(
            task="generate",
            messages=(Message("user", caption.format(NAMES[label])), Message("assistant", IMAGE_MARKER)),
            images=(encode(to_image(image)),),
            key=f"digits/{i}/caption{c}",
        )
        for i, (image, label) in enumerate(zip(digits.intensities, digits.labels, strict=True))
        for c, caption in enumerate(CAPTIONS)
    ]


def text_records() -> list[Record]:
    """Short questions about digits with their answers, without images."""
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


def all_records(digits: Digits) -> list[Record]:
    """The records of all three tasks."""
    return [*understanding_records(digits), *text_records(), *generation_records(digits)]


def held_out_records(digits: Digits, per_task: int) -> list[Record]:
    """Equally many records of each task, spread over the digits. The texts are among those of training."""
    records, of_all = [], all_records(digits)
    for task in TASKS:
        of_task = [record for record in of_all if record.task == task]
        records += of_task[:: len(of_task) // per_task][:per_task]
    return records


def build_tokenizer(records: Sequence[Record], vocab_size: int, prompt_style: str) -> Tokenizer:
    """A byte-level BPE trained on the formatted records. It is so specialised that whole words are single tokens."""
    style = STYLES[prompt_style]
    texts = {
        generation_prompt(record.messages[0].text, style)
        if record.task == "generate"
        else format_conversation(record.messages, style)
        for record in records
    }
    return train_tokenizer(sorted(texts), vocab_size, extra_special_tokens=(style.user, style.assistant))


def write_files(folder: epath.PathLike, digits: Digits, vocab_size: int, prompt_style: str) -> Tokenizer:
    """Writes TASK.array_record for each task and tokenizer.json, so that a run needs no `launch.prepare_data`."""
    folder, records = epath.Path(folder), all_records(digits)
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        write_records(folder / f"{task}.array_record", [record for record in records if record.task == task])
    tokenizer = build_tokenizer(records, vocab_size, prompt_style)
    tokenizer.save(folder / FILE_NAME)
    return tokenizer


def encode(image: PIL.Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
