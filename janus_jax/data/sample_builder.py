"""Turns a record into tokens, modalities and loss weights: one training sample, not yet packed.

Letters: L tokens, n understanding images, m generation images.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from janus_jax.batches import Modality
from janus_jax.data.condition_images import code_positions, conditioned_prompt
from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.first_sentence import first_sentence
from janus_jax.data.images import CENTRE, Crop, decode_image, generation_pixels, understanding_pixels
from janus_jax.data.prompts import (
    EOS,
    IMAGE_MARKER,
    IMAGE_PLACEHOLDER,
    Message,
    PromptStyle,
    format_messages,
    generation_prompt,
)
from janus_jax.data.record_reader import StoredRecord
from janus_jax.data.records import Record
from janus_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from janus_jax.errors import UserError

# The arrays of a sample: `tokens`, `modality`, `positions`, `targets`, `text_weights`, `image_weights` [L],
# `und_pixels` [n, size, size, 3] and `gen_pixels` [m, size, size, 3], as in `PackedBatch`.
Sample = dict[str, np.ndarray]
SUPERVISION = ("all", "answers")


class BuiltSample(NamedTuple):
    """A sample and the key of its record."""

    sample: Sample
    key: str
    truncated: bool  # Whether its conversation was cut because it did not fit into a row.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBuilder:
    """Turns stored records into samples, or into the reason why a record cannot be used."""

    tokenizer: Tokenizer
    style: PromptStyle
    understanding_size: int  # Side of the understanding images, in pixels.
    understanding_tokens: int  # Number of tokens of an understanding image.
    generation_size: int
    generation_tokens: int
    num_codes: int  # Size of the image tokenizer's codebook.
    row_length: int
    understanding_slots: int  # Number of understanding images that a row holds.
    generation_slots: int
    supervision: str  # Which text carries loss: "all" (pre-training) or "answers" (supervised fine-tuning).
    # Probability of removing the caption from a generation prompt, for guidance. Janus puts padding tokens in its place
    # (footnote 2 of the paper), JanusFlow nothing.
    drop_condition: float
    first_sentence: float = 0.0  # Probability of shortening a generation caption to its first sentence (Janus, 4.2).
    crop: Crop = CENTRE  # How generation images are cropped.
    condition_images: bool = False  # Whether generation samples may have condition images (Janus-4o).
    drop_condition_codes: float = 0.0  # Probability that a condition image has features only, and no codes.
    stored_codes: bool = False  # Whether to use the VQ codes that records hold, instead of pixels to encode.
    flow: bool = False  # Whether rows are for JanusFlow, whose images also take the place of `<begin_of_image>`.

    def __call__(self, stored: StoredRecord, rng: np.random.Generator) -> BuiltSample | DroppedSample:
        """The sample of a record, or why there is none; bad data never raise."""
        key = stored.origin
        try:
            record = open_record(stored)
            key = record.key
            sample, truncated = self.build(record, rng)
        except SampleError as error:
            return DroppedSample(key, error.reason, error.detail)
        return BuiltSample(sample, key, truncated)

    def build(self, record: Record, rng: np.random.Generator) -> tuple[Sample, bool]:
        """The sample, and whether its conversation was cut. Raises SampleError."""
        self._refuse_control_tokens(record)
        if record.task == "generate":
            return self._generation_sample(record, rng), False
        return self._text_sample(record)

    def _refuse_control_tokens(self, record: Record) -> None:
        """Raises SampleError if a text names a token that ends a sentence, begins an image or switches the role."""
        roles = (role for role in (self.style.user, self.style.assistant) if role.startswith("<|"))
        for token in (*SPECIAL_TOKENS, *roles):
            if any(token in message.text for message in record.messages):
                raise SampleError(Reason.SPECIAL_TOKEN, f"the text contains a literal {token}")

    def _text_sample(self, record: Record) -> tuple[Sample, bool]:
        """Conversations with or without images, and documents: the loss is on text (Janus, 3.3)."""
        text, answers = conversation(record, self.style)
        ids, offsets = (np.array(values, np.int32) for values in self.tokenizer.encode_with_offsets(text))
        is_image = ids == self.tokenizer.image_id
        if is_image.sum() != len(record.images):
            raise SampleError(Reason.IMAGE_COUNT, f"{is_image.sum()} image tokens for {len(record.images)} images")
        supervised = np.zeros(len(ids), bool)
        for answer_start, answer_end in answers:
            supervised |= (offsets[:, 0] < answer_end) & (offsets[:, 1] > answer_start)
        kept = self._longest_prefix(is_image, offsets[:, 1], supervised, [end for _, end in answers])
        truncated = kept < len(ids)
        ids, offsets, is_image, supervised = ids[:kept], offsets[:kept], is_image[:kept], supervised[:kept]
        if self.supervision == "all":
            supervised = offsets[:, 1] > 0  # Everything but BOS.
        # An image becomes begin-of-image, its features, end-of-image; none of these tokens carries loss.
        source = np.repeat(np.arange(len(ids)), np.where(is_image, self.understanding_tokens + 2, 1))
        tokens = self.tokenizer.expand_images(ids, self.understanding_tokens)
        is_feature = tokens == self.tokenizer.image_id
        if self.flow:
            is_feature |= tokens == self.tokenizer.begin_of_image_id
        supervised = (supervised & ~is_image)[source]
        images = [_decode(image) for image in record.images[: int(is_image.sum())]]
        pixels = [understanding_pixels(image, self.understanding_size) for image in images]
        sample = {
            "tokens": np.where(is_feature, 0, tokens),
            "modality": np.where(is_feature, Modality.UNDERSTANDING_IMAGE, Modality.TEXT).astype(np.int8),
            "positions": np.arange(len(tokens), dtype=np.int32),
            "targets": np.append(tokens[1:], 0).astype(np.int32),
            "text_weights": np.append(supervised[1:], False).astype(np.float32),
            "image_weights": np.zeros(len(tokens), np.float32),
            "und_pixels": _stack(pixels, self.understanding_size),
            "gen_pixels": _stack([], self.generation_size),
        }
        return sample, truncated

    def _longest_prefix(
        self, is_image: np.ndarray, ends: np.ndarray, supervised: np.ndarray, answer_ends: list[int]
    ) -> int:
        """Number of ids of a conversation that a row takes.

        These are all ids if they fit. Otherwise the conversation ends with the last answer that fits as a whole. If no
        answer does, the first one is cut. An image is never cut.

        Args:
            is_image: [n], which ids become an image.
            ends: [n], the position of the character after each id.
            supervised: [n], which ids are part of an answer.
            answer_ends: Position of the character after each answer.

        Raises:
            SampleError: Not even the beginning of the first answer fits.
        """
        lengths = np.cumsum(np.where(is_image, self.understanding_tokens + 2, 1))
        fits = (lengths <= self.row_length) & (np.cumsum(is_image) <= self.understanding_slots)
        kept = int(fits.sum())
        if kept == len(is_image):
            return kept
        whole = [count for end in answer_ends if (count := int(np.searchsorted(ends, end, side="right"))) <= kept]
        kept = whole[-1] if whole else kept
        if not supervised[:kept].any():
            raise SampleError(
                Reason.TOO_LONG,
                f"{lengths[-1]} tokens and {is_image.sum()} images; a row holds {self.row_length} and "
                f"{self.understanding_slots}",
            )
        return kept

    def _generation_sample(self, record: Record, rng: np.random.Generator) -> Sample:
        """A caption and then the codes of the image; the loss is on the image only."""
        if record.num_conditions:
            return self._conditioned_sample(record, rng)
        caption = next(message.text for message in record.messages if message.role == "user")
        drop, shorten = rng.random(2) < (self.drop_condition, self.first_sentence)
        if shorten:
            caption = first_sentence(caption)
        prompt = self.tokenizer.encode(generation_prompt(caption, self.style))
        if self.flow:
            return self._flow_sample(record, prompt[:-1], drop, rng)
        if drop:
            prompt = self.tokenizer.unconditional(prompt)
        self._check_generation_length(len(prompt))
        modality = np.full(len(prompt), Modality.TEXT, np.int8)
        sample = self._image_sample(np.array(prompt, np.int32), modality, self._codes(record)[0], [])
        if self.stored_codes:
            return sample
        return sample | {"gen_pixels": self._generation_image(record, rng)}

    def _conditioned_sample(self, record: Record, rng: np.random.Generator) -> Sample:
        """Condition images and a caption, and then the codes of the image; the loss is on the latter only (Janus-4o).

        The caption is never dropped.
        """
        if not self.condition_images:
            raise SampleError(Reason.BAD_FIELD, "has condition images, but data.condition_images is False")
        number, features, codes = record.num_conditions, self.understanding_tokens, self.generation_tokens
        prompt = conditioned_prompt(record.messages[0].text, self.tokenizer, self.style, features, codes)
        self._check_generation_length(len(prompt), number)
        stored = self._codes(record)
        seen = rng.random(number) >= self.drop_condition_codes
        at_codes = code_positions(prompt, self.tokenizer.image_id, features, codes)[seen]
        at_features = prompt == self.tokenizer.image_id
        modality = np.full(len(prompt), Modality.TEXT, np.int8)
        modality[at_features], prompt[at_features] = Modality.UNDERSTANDING_IMAGE, 0
        modality[at_codes], prompt[at_codes] = Modality.GENERATION_IMAGE, stored[:-1][seen]
        images = [_decode(image) for image in record.images[:number]]
        sample = self._image_sample(prompt, modality, stored[-1], images)
        if self.stored_codes:
            return sample
        shown = [understanding_pixels(image, self.generation_size) for image in itertools.compress(images, seen)]
        generated = self._generation_image(record, rng)
        return sample | {"gen_pixels": np.concatenate([_stack(shown, self.generation_size), generated])}

    def _image_sample(
        self, prompt: np.ndarray, modality: np.ndarray, codes: np.ndarray, conditions: Sequence[PIL.Image.Image]
    ) -> Sample:
        """A sample but for its generation pixels: a prompt [P] with its modality, then the codes of the image."""
        tokens = np.concatenate([prompt, codes])
        image_weights = np.zeros(len(tokens), np.float32)
        image_weights[len(prompt) - 1 : -1] = 1  # `<begin_of_image>` predicts the first code.
        pixels = [understanding_pixels(image, self.understanding_size) for image in conditions]
        return {
            "tokens": tokens,
            "modality": np.append(modality, np.full(len(codes), Modality.GENERATION_IMAGE, np.int8)),
            "positions": np.arange(len(tokens), dtype=np.int32),
            "targets": np.append(tokens[1:], 0).astype(np.int32),
            "text_weights": np.zeros(len(tokens), np.float32),
            "image_weights": image_weights,
            "und_pixels": _stack(pixels, self.understanding_size),
        }

    def _flow_sample(self, record: Record, prompt: list[int], drop: bool, rng: np.random.Generator) -> Sample:
        """A caption, then one place for the time and the places of the latents (JanusFlow, 3.2).

        If the caption is dropped, only BOS is left of it, but the image keeps the positions that it would have after
        the caption. The sampler's unconditional half sees the same, since it masks the caption.
        """
        self._check_generation_length(len(prompt))
        positions = np.arange(len(prompt) + self.generation_tokens, dtype=np.int32)
        if drop:
            positions = np.delete(positions, slice(1, len(prompt)))
            prompt = prompt[:1]
        length = len(positions)
        tokens = np.zeros(length, np.int32)
        tokens[: len(prompt)] = prompt
        modality = np.full(length, Modality.GENERATION_IMAGE, np.int8)
        modality[: len(prompt)] = Modality.TEXT
        image_weights = np.zeros(length, np.float32)
        image_weights[len(prompt) + 1 :] = 1  # The latents, not the time.
        return {
            "tokens": tokens,
            "modality": modality,
            "positions": positions,
            "targets": np.zeros(length, np.int32),
            "text_weights": np.zeros(length, np.float32),
            "image_weights": image_weights,
            "und_pixels": _stack([], self.understanding_size),
            "gen_pixels": self._generation_image(record, rng),
        }

    def _check_generation_length(self, prompt: int, conditions: int = 0) -> None:
        """Raises SampleError when a row cannot hold a prompt of so many tokens and its image."""
        length = prompt + self.generation_tokens
        slots = min(self.understanding_slots + 1, self.generation_slots) if conditions else self.generation_slots
        if length > self.row_length or slots < 1 + conditions:
            images = f"{1 + conditions} images" if conditions else "an image"
            raise SampleError(
                Reason.TOO_LONG, f"{length} tokens and {images}; a row holds {self.row_length} and {slots}"
            )

    def _generation_image(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """The image to generate: [1, size, size, 3] uint8. Raises SampleError."""
        if len(record.images) == record.num_conditions:
            raise SampleError(Reason.NO_IMAGE, "the record holds codes but no image, and data.stored_codes is False")
        pixels = _cropped(_decode(record.images[-1]), self.generation_size, self.crop, rng)
        return _stack([pixels], self.generation_size)

    def _codes(self, record: Record) -> np.ndarray:
        """VQ codes of the record's images, [images, tokens per image] int32.

        The last ones are those of the image to generate. Without stored codes they are zeros, which the training step
        replaces.
        """
        shape = (record.num_conditions + 1, self.generation_tokens)
        if not self.stored_codes:
            return np.zeros(shape, np.int32)
        codes = record.code_array
        if codes is None:
            raise SampleError(Reason.BAD_FIELD, "the record holds no codes, but data.stored_codes is True")
        if codes.size != math.prod(shape) or codes.max() >= self.num_codes:
            expected = f"expected {math.prod(shape)} below {self.num_codes}"
            raise SampleError(Reason.BAD_FIELD, f"{len(codes)} stored codes up to {codes.max()}, {expected}")
        return codes.reshape(shape)


def conversation(record: Record, style: PromptStyle) -> tuple[str, list[tuple[int, int]]]:
    """The text of an understanding or text-only record, and the (start, end) characters of its answers.

    Each image is a placeholder in the text, and an answer includes its end-of-sentence token.
    """
    if len(record.messages) == 1:  # A document.
        text = record.messages[0].text.strip() + EOS
        return text, [(0, len(text))]
    messages = record.messages
    if record.task == "understand":
        messages = tuple(Message(role, text.replace(IMAGE_MARKER, IMAGE_PLACEHOLDER)) for role, text in messages)
    text, answers = "", []
    for i, message in enumerate(format_messages(messages, style)):
        if i % 2:
            answers.append((len(text) + message.answer_start, len(text) + len(message.text)))
        text += message.text
    return text, answers


def square_image(stored: StoredRecord, rng: np.random.Generator, size: int, crop: Crop) -> BuiltSample | DroppedSample:
    """A training image of the VQ tokenizer: `pixels` [size, size, 3], or why there is none; bad data never raise."""
    key = stored.origin
    try:
        record = open_record(stored)
        key = record.key
        if not record.images:
            raise SampleError(Reason.NO_IMAGE, "no image for the image tokenizer")
        pixels = _cropped(_decode(record.images[0]), size, crop, rng)
    except SampleError as error:
        return DroppedSample(key, error.reason, error.detail)
    return BuiltSample({"pixels": pixels}, key, False)


def open_record(stored: StoredRecord) -> Record:
    """The record of stored bytes. Raises SampleError."""
    if stored.data is None:
        raise SampleError(Reason.CORRUPT, "its checksum is wrong")
    try:
        return Record.deserialize(stored.data)
    except UserError as error:
        raise SampleError(Reason.BAD_RECORD, str(error)) from error


def _decode(data: bytes) -> PIL.Image.Image:
    try:
        return decode_image(data, "image", training=True)
    except UserError as error:
        raise SampleError(Reason.BAD_IMAGE, str(error)) from error


def _cropped(image: PIL.Image.Image, size: int, crop: Crop, rng: np.random.Generator) -> np.ndarray:
    try:
        return generation_pixels(image, size, crop, rng)
    except UserError as error:
        raise SampleError(Reason.IMAGE_SHAPE, str(error)) from error


def _stack(images: list[np.ndarray], size: int) -> np.ndarray:
    """Images as one array [n, size, size, 3] uint8, also when n is 0."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def check_supervision(value: Any) -> str:
    """The value itself. Raises UserError unless it is one of SUPERVISION."""
    if value not in SUPERVISION:
        raise UserError(f"data.supervision={value!r} is not one of {SUPERVISION}")
    return value
