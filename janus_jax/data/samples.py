"""From a record to tokens, modalities and loss masks: one training sample, not yet packed.

Letters: L tokens, n understanding images, m generation images.
"""

import collections
import dataclasses
import threading
from typing import Any

import numpy as np

from janus_jax.batch import Modality
from janus_jax.data.images import decode_image, generation_pixels, understanding_pixels
from janus_jax.data.prompts import (
    EOS,
    IMAGE_MARKER,
    IMAGE_PLACEHOLDER,
    Message,
    PromptStyle,
    format_turns,
    generation_prompt,
)
from janus_jax.data.records import Record
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError

# What a sample is made of: `tokens`, `modality`, `targets`, `text_weights`, `image_weights` [L], `und_pixels`
# [n, size, size, 3] and `gen_pixels` [m, size, size, 3], as in `PackedBatch`.
Sample = dict[str, np.ndarray]
SUPERVISION = ("all", "answers")


class DropCounter:
    """Counts samples seen and dropped, by reason; shared by the threads of a stream."""

    def __init__(self, max_drop_rate: float):
        self.max_drop_rate = max_drop_rate
        self.seen = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def keep(self) -> None:
        with self._lock:
            self.seen += 1

    def drop(self, reason: str) -> None:
        """Counts a bad sample. Raises UserError when the stream is mostly bad, since it would never fill a row."""
        with self._lock:
            self.seen += 1
            self.reasons[reason] += 1
            dropped = self.reasons.total()
        if dropped >= 100 and dropped > self.max_drop_rate * self.seen:
            raise UserError(
                f"data.max_drop_rate={self.max_drop_rate}: {dropped} of {self.seen} samples dropped, the last: {reason}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBuilder:
    """Turns serialized records into samples; bad ones become None (which Grain removes) and are counted."""

    tokenizer: Tokenizer
    style: PromptStyle
    understanding_size: int
    understanding_tokens: int
    generation_size: int
    generation_tokens: int
    row_length: int
    understanding_slots: int
    generation_slots: int
    supervision: str  # "all" text (pre-training) or only the "answers" (supervised fine-tuning)
    drop_condition: float  # probability of replacing a generation prompt by pads, for guidance (Janus, footnote 2)
    drops: DropCounter

    def __call__(self, data: bytes, rng: np.random.Generator) -> Sample | None:
        try:
            sample = self.build(Record.deserialize(data), rng)
        except UserError as error:  # an exception here would silently end the mixture
            self.drops.drop(str(error))
            return None
        self.drops.keep()
        return sample

    def build(self, record: Record, rng: np.random.Generator) -> Sample:
        """Raises UserError with the reason when the record cannot become a sample."""
        sample = self._generation_sample(record, rng) if record.task == "generate" else self._text_sample(record)
        if len(sample["tokens"]) > self.row_length:
            raise UserError(f"{record.key}: {len(sample['tokens'])} tokens are longer than a row of {self.row_length}")
        slots = {"und_pixels": self.understanding_slots, "gen_pixels": self.generation_slots}
        for name, limit in slots.items():
            if len(sample[name]) > limit:
                raise UserError(f"{record.key}: {len(sample[name])} images are more than the {limit} {name} of a row")
        return sample

    def _text_sample(self, record: Record) -> Sample:
        """Understanding and text-only conversations and documents: loss on text (Janus, 3.3)."""
        text, answers = self._conversation(record)
        ids, offsets = (np.array(values, np.int32) for values in self.tokenizer.encode_with_offsets(text))
        is_image = ids == self.tokenizer.image_id
        if is_image.sum() != len(record.images):
            raise UserError(f"{record.key}: the text contains a literal {IMAGE_PLACEHOLDER}")
        supervised = np.zeros(len(ids), bool)
        for answer_start, answer_end in answers:
            supervised |= (offsets[:, 0] < answer_end) & (offsets[:, 1] > answer_start)
        if self.supervision == "all":
            supervised = offsets[:, 1] > 0  # everything but BOS
        # An image is begin-of-image, its features, end-of-image; none of them is predicted.
        source = np.repeat(np.arange(len(ids)), np.where(is_image, self.understanding_tokens + 2, 1))
        tokens = self.tokenizer.expand_images(ids, self.understanding_tokens)
        is_feature = tokens == self.tokenizer.image_id
        supervised = (supervised & ~is_image)[source]
        images = [decode_image(image, record.key, training=True) for image in record.images]
        pixels = [understanding_pixels(image, self.understanding_size) for image in images]
        return {
            "tokens": np.where(is_feature, 0, tokens),
            "modality": np.where(is_feature, Modality.UNDERSTANDING_IMAGE, Modality.TEXT).astype(np.int8),
            "targets": np.append(tokens[1:], 0).astype(np.int32),
            "text_weights": np.append(supervised[1:], False).astype(np.float32),
            "image_weights": np.zeros(len(tokens), np.float32),
            "und_pixels": _stack(pixels, self.understanding_size),
            "gen_pixels": _stack([], self.generation_size),
        }

    def _conversation(self, record: Record) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the (start, end) characters of the answers with their end-of-sentence."""
        if len(record.messages) == 1:  # a document
            text = record.messages[0].text.strip() + EOS
            return text, [(0, len(text))]
        messages = record.messages
        if record.task == "understand":
            messages = tuple(Message(role, text.replace(IMAGE_MARKER, IMAGE_PLACEHOLDER)) for role, text in messages)
        text, answers = "", []
        for i, turn in enumerate(format_turns(messages, self.style)):
            if i % 2:
                answers.append((len(text) + turn.answer_start, len(text) + len(turn.text)))
            text += turn.text
        return text, answers

    def _generation_sample(self, record: Record, rng: np.random.Generator) -> Sample:
        """Caption, then the codes of the image: loss on the image only. The codes are computed on device."""
        caption = next(message.text for message in record.messages if message.role == "user")
        prompt = self.tokenizer.encode(generation_prompt(caption, self.style))
        if rng.random() < self.drop_condition:
            prompt = self.tokenizer.unconditional(prompt)
        length = len(prompt) + self.generation_tokens
        modality = np.full(length, Modality.GENERATION_IMAGE, np.int8)
        modality[: len(prompt)] = Modality.TEXT
        image_weights = np.zeros(length, np.float32)
        image_weights[len(prompt) - 1 : -1] = 1  # `<begin_of_image>` predicts the first code
        image = decode_image(record.images[0], record.key, training=True)
        return {
            "tokens": np.array(prompt + [0] * self.generation_tokens, np.int32),
            "modality": modality,
            "targets": np.array(prompt[1:] + [0] * (self.generation_tokens + 1), np.int32),
            "text_weights": np.zeros(length, np.float32),
            "image_weights": image_weights,
            "und_pixels": _stack([], self.understanding_size),
            "gen_pixels": _stack([generation_pixels(image, self.generation_size)], self.generation_size),
        }


def _stack(images: list[np.ndarray], size: int) -> np.ndarray:
    """[n, size, size, 3] uint8, also for n = 0: the packer needs the rank."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def check_supervision(value: Any) -> str:
    if value not in SUPERVISION:
        raise UserError(f"data.supervision={value!r} is not one of {SUPERVISION}")
    return value
