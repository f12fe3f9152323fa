"""From a record to tokens, modalities and loss masks: one training sample, not yet packed.

Letters: L tokens, n understanding images, m generation images.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from janus_jax.batches import Modality
from janus_jax.data.dropped_samples import Bad, Reason
from janus_jax.data.images import CENTRE, Crop, decode_image, generation_pixels, understanding_pixels
from janus_jax.data.prompts import (
    EOS,
    IMAGE_MARKER,
    IMAGE_PLACEHOLDER,
    Message,
    PromptStyle,
    format_turns,
    generation_prompt,
)
from janus_jax.data.record_reader import Stored
from janus_jax.data.records import Record
from janus_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from janus_jax.errors import UserError

# What a sample is made of: `tokens`, `modality`, `positions`, `targets`, `text_weights`, `image_weights` [L],
# `und_pixels` [n, size, size, 3] and `gen_pixels` [m, size, size, 3], as in `PackedBatch`.
Sample = dict[str, np.ndarray]
SUPERVISION = ("all", "answers")
# Latin: before white space and anything but a small letter or a digit ("approx. 5"). Chinese: anywhere.
_END_OF_SENTENCE = re.compile(r"""[.!?]+["'”’)\]]*(?=\s+[^\s\da-zß-ÿ])|[。！？]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"""["'“‘(\[]*((Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|No|vs|etc)|([A-Z]\.)*[A-Z])\.""")
MIN_SENTENCE_WORDS = 3


class Kept(NamedTuple):
    """A sample and what its record was called."""

    sample: Sample
    key: str
    truncated: bool  # its conversation did not fit into a row and was cut


class BadSample(Exception):  # noqa: N818 - a verdict on data, not an error of the program
    """Why a record cannot become a sample."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBuilder:
    """Turns stored records into samples, or into the reason why not."""

    tokenizer: Tokenizer
    style: PromptStyle
    understanding_size: int
    understanding_tokens: int
    generation_size: int
    generation_tokens: int
    num_codes: int
    row_length: int
    understanding_slots: int
    generation_slots: int
    supervision: str  # "all" text (pre-training) or only the "answers" (supervised fine-tuning)
    # Probability of a generation prompt without its text, for guidance: pads in its place (Janus, footnote 2), in
    # JanusFlow nothing.
    drop_condition: float
    first_sentence: float = 0.0  # probability of keeping only the first sentence of a generation caption (Janus, 4.2)
    crop: Crop = CENTRE  # of generation images
    stored_codes: bool = False  # take the VQ codes that the record holds, instead of pixels to compute them from
    flow: bool = False  # rows for JanusFlow, whose images take the place of their `<begin_of_image>` too

    def __call__(self, stored: Stored, rng: np.random.Generator) -> Kept | Bad:
        """Never raises for bad data."""
        key = stored.origin
        try:
            record = open_record(stored)
            key = record.key
            sample, truncated = self.build(record, rng)
        except BadSample as bad:
            return Bad(key, bad.reason, bad.detail)
        return Kept(sample, key, truncated)

    def build(self, record: Record, rng: np.random.Generator) -> tuple[Sample, bool]:
        """The sample, and whether it was cut. Raises BadSample."""
        self._refuse_control_tokens(record)
        if record.task == "generate":
            return self._generation_sample(record, rng), False
        return self._text_sample(record)

    def _refuse_control_tokens(self, record: Record) -> None:
        """A text of a data set must not end a sentence, begin an image or take another role by naming its token."""
        roles = (role for role in (self.style.user, self.style.assistant) if role.startswith("<|"))
        for token in (*SPECIAL_TOKENS, *roles):
            if any(token in message.text for message in record.messages):
                raise BadSample(Reason.SPECIAL_TOKEN, f"the text contains a literal {token}")

    def _text_sample(self, record: Record) -> tuple[Sample, bool]:
        """Understanding and text-only conversations and documents: loss on text (Janus, 3.3)."""
        text, answers = conversation(record, self.style)
        ids, offsets = (np.array(values, np.int32) for values in self.tokenizer.encode_with_offsets(text))
        is_image = ids == self.tokenizer.image_id
        if is_image.sum() != len(record.images):
            raise BadSample(Reason.IMAGE_COUNT, f"{is_image.sum()} image tokens for {len(record.images)} images")
        supervised = np.zeros(len(ids), bool)
        for answer_start, answer_end in answers:
            supervised |= (offsets[:, 0] < answer_end) & (offsets[:, 1] > answer_start)
        kept = self._longest_prefix(is_image, offsets[:, 1], supervised, [end for _, end in answers])
        truncated = kept < len(ids)
        ids, offsets, is_image, supervised = ids[:kept], offsets[:kept], is_image[:kept], supervised[:kept]
        if self.supervision == "all":
            supervised = offsets[:, 1] > 0  # everything but BOS
        # An image is begin-of-image, its features, end-of-image; none of them is predicted.
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
        """How many ids of a conversation fit into a row.

        All; else those up to the last whole answer; else the first answer is cut. An image is never cut.

        Args:
            is_image: [n], which ids become an image.
            ends: [n], the character after each id.
            supervised: [n], which ids are part of an answer.
            answer_ends: the character after each answer.

        Raises:
            BadSample: not even the beginning of the first answer fits.
        """
        lengths = np.cumsum(np.where(is_image, self.understanding_tokens + 2, 1))
        fits = (lengths <= self.row_length) & (np.cumsum(is_image) <= self.understanding_slots)
        kept = int(fits.sum())
        if kept == len(is_image):
            return kept
        whole = [count for end in answer_ends if (count := int(np.searchsorted(ends, end, side="right"))) <= kept]
        kept = whole[-1] if whole else kept
        if not supervised[:kept].any():
            raise BadSample(
                Reason.TOO_LONG,
                f"{lengths[-1]} tokens and {is_image.sum()} images; a row holds {self.row_length} and "
                f"{self.understanding_slots}",
            )
        return kept

    def _generation_sample(self, record: Record, rng: np.random.Generator) -> Sample:
        """Caption, then the codes of the image: loss on the image only."""
        caption = next(message.text for message in record.messages if message.role == "user")
        drop, shorten = rng.random(2) < (self.drop_condition, self.first_sentence)
        if shorten:
            caption = first_sentence(caption)
        prompt = self.tokenizer.encode(generation_prompt(caption, self.style))
        if self.flow:
            return self._flow_sample(record, prompt[:-1], drop, rng)
        if drop:
            prompt = self.tokenizer.unconditional(prompt)
        length = self._drawing_length(prompt)
        codes = self._codes(record)
        modality = np.full(length, Modality.GENERATION_IMAGE, np.int8)
        modality[: len(prompt)] = Modality.TEXT
        image_weights = np.zeros(length, np.float32)
        image_weights[len(prompt) - 1 : -1] = 1  # `<begin_of_image>` predicts the first code
        tokens = np.append(np.array(prompt, np.int32), codes)
        sample = {
            "tokens": tokens,
            "modality": modality,
            "positions": np.arange(length, dtype=np.int32),
            "targets": np.append(tokens[1:], 0).astype(np.int32),
            "text_weights": np.zeros(length, np.float32),
            "image_weights": image_weights,
            "und_pixels": _stack([], self.understanding_size),
        }
        if self.stored_codes:
            return sample
        return sample | {"gen_pixels": self._drawing(record, rng)}

    def _flow_sample(self, record: Record, prompt: list[int], drop: bool, rng: np.random.Generator) -> Sample:
        """Caption, then the places of the time and of the latents (JanusFlow, 3.2).

        Of a dropped caption only BOS is left, and the image keeps the positions that it would have after all of it:
        what the sampler's unconditional half sees, which masks the caption.
        """
        positions = np.arange(self._drawing_length(prompt), dtype=np.int32)
        if drop:
            positions = np.delete(positions, slice(1, len(prompt)))
            prompt = prompt[:1]
        length = len(positions)
        tokens = np.zeros(length, np.int32)
        tokens[: len(prompt)] = prompt
        modality = np.full(length, Modality.GENERATION_IMAGE, np.int8)
        modality[: len(prompt)] = Modality.TEXT
        image_weights = np.zeros(length, np.float32)
        image_weights[len(prompt) + 1 :] = 1  # the latents, not the time
        return {
            "tokens": tokens,
            "modality": modality,
            "positions": positions,
            "targets": np.zeros(length, np.int32),
            "text_weights": np.zeros(length, np.float32),
            "image_weights": image_weights,
            "und_pixels": _stack([], self.understanding_size),
            "gen_pixels": self._drawing(record, rng),
        }

    def _drawing_length(self, prompt: list[int]) -> int:
        """Tokens of a prompt and its image. Raises BadSample when no row holds them."""
        length = len(prompt) + self.generation_tokens
        if length > self.row_length or self.generation_slots < 1:
            raise BadSample(
                Reason.TOO_LONG,
                f"{length} tokens and an image; a row holds {self.row_length} and {self.generation_slots}",
            )
        return length

    def _drawing(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """[1, size, size, 3] uint8. Raises BadSample."""
        if not record.images:
            raise BadSample(Reason.NO_IMAGE, "only stored codes, but data.stored_codes is not set")
        pixels = generation_pixels(_decode(record.images[0]), self.generation_size, self.crop, rng)
        return _stack([pixels], self.generation_size)

    def _codes(self, record: Record) -> np.ndarray:
        """[tokens per image] int32: those of the record, or zeros, to be replaced on device."""
        if not self.stored_codes:
            return np.zeros(self.generation_tokens, np.int32)
        codes = record.code_array
        if codes is None:
            raise BadSample(Reason.BAD_FIELD, "no stored codes, but data.stored_codes is set")
        if len(codes) != self.generation_tokens or codes.max() >= self.num_codes:
            expected = f"expected {self.generation_tokens} below {self.num_codes}"
            raise BadSample(Reason.BAD_FIELD, f"{len(codes)} stored codes up to {codes.max()}, {expected}")
        return codes


def conversation(record: Record, style: PromptStyle) -> tuple[str, list[tuple[int, int]]]:
    """The text of an understanding or text-only record, with a placeholder per image, and the (start, end) characters
    of its answers with their end-of-sentence."""
    if len(record.messages) == 1:  # a document
        text = record.messages[0].text.strip() + EOS
        return text, [(0, len(text))]
    messages = record.messages
    if record.task == "understand":
        messages = tuple(Message(role, text.replace(IMAGE_MARKER, IMAGE_PLACEHOLDER)) for role, text in messages)
    text, answers = "", []
    for i, turn in enumerate(format_turns(messages, style)):
        if i % 2:
            answers.append((len(text) + turn.answer_start, len(text) + len(turn.text)))
        text += turn.text
    return text, answers


def first_sentence(caption: str) -> str:
    """The caption up to its first end of a sentence; all of it where there is none.

    A full stop after an abbreviation or an initial ends none, nor does one after fewer than MIN_SENTENCE_WORDS words:
    such beginnings ("Fig.", "Vol. 2.") describe nothing. Chinese and Japanese, written without spaces, are not counted.
    """
    caption = caption.strip()
    for end in _END_OF_SENTENCE.finditer(caption):
        sentence = caption[: end.end()]
        words = sentence.split()
        if end[0][0] in "。！？" or (len(words) >= MIN_SENTENCE_WORDS and not _ABBREVIATION.fullmatch(words[-1])):
            return sentence
    return caption


def square_image(stored: Stored, rng: np.random.Generator, size: int, crop: Crop) -> Kept | Bad:
    """A training image of the VQ tokenizer: `pixels` [size, size, 3]. Never raises for bad data."""
    key = stored.origin
    try:
        record = open_record(stored)
        key = record.key
        if not record.images:
            raise BadSample(Reason.NO_IMAGE, "no image for the image tokenizer")
        image = _decode(record.images[0])
    except BadSample as bad:
        return Bad(key, bad.reason, bad.detail)
    return Kept({"pixels": generation_pixels(image, size, crop, rng)}, key, False)


def open_record(stored: Stored) -> Record:
    """Raises BadSample."""
    if stored.data is None:
        raise BadSample(Reason.CORRUPT, "its checksum is wrong")
    try:
        return Record.deserialize(stored.data)
    except UserError as error:
        raise BadSample(Reason.BAD_RECORD, str(error)) from error


def _decode(data: bytes) -> PIL.Image.Image:
    try:
        return decode_image(data, "image", training=True)
    except UserError as error:
        raise BadSample(Reason.BAD_IMAGE, str(error)) from error


def _stack(images: list[np.ndarray], size: int) -> np.ndarray:
    """[n, size, size, 3] uint8, also for n = 0."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def check_supervision(value: Any) -> str:
    if value not in SUPERVISION:
        raise UserError(f"data.supervision={value!r} is not one of {SUPERVISION}")
    return value
