"""Samples with condition images, written by hand in the layout of Janus-4o, and their way into a batch with codes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.condition_images import conditioned_prompt
from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.images import generation_pixels, understanding_pixels
from janus_jax.data.packing import PackedSample, assemble, join_blocks
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import LengthSettings, RecordSettings, count_tokens
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import SampleError
from janus_jax.training.objectives.janus import with_codes
from tests.helpers.tiny_data import (
    BEGIN,
    BOS,
    BYTE_TOKENIZER,
    END,
    PAD,
    STYLE,
    byte_ids,
    encoded,
    flat_png,
    generate,
    make_builder,
    random_image,
)

TEXT, FEATURE, CODE = (int(kind) for kind in (Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE))
IMAGES = [random_image(20, 10, seed) for seed in range(3)]
EDIT = generate("<image><image>turn", *map(encoded, IMAGES))
BEFORE, AFTER = [BOS, *byte_ids("<|User|>: ")], [*byte_ids("turn\n\n<|Assistant|>:"), BEGIN]
SIZES = dict(generation_size=16, understanding_tokens=3, row_length=128, generation_slots=3, condition_images=True)


def build(record, seed=0, **settings):
    return make_builder(**SIZES | settings).build(record, np.random.default_rng(seed))[0]


def expected_rows(seen):
    """Tokens and modality with `C` codes of images that are seen and pads in place of the others."""
    tokens, modality = list(BEFORE), [TEXT] * len(BEFORE)
    for is_seen in seen:
        tokens += [BEGIN, 0, 0, 0, END, BEGIN, *([0] if is_seen else [PAD]) * 4, END]
        modality += [TEXT, *[FEATURE] * 3, TEXT, TEXT, *[CODE if is_seen else TEXT] * 4, TEXT]
    return [*tokens, *AFTER, 0, 0, 0, 0], [*modality, *[TEXT] * len(AFTER), *[CODE] * 4]


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_a_sample_written_by_hand(drop):
    sample = build(EDIT, drop_condition_codes=drop, drop_condition=1.0)  # the caption is never dropped
    tokens, modality = expected_rows([not drop] * 2)
    assert sample["tokens"].tolist() == tokens and sample["modality"].tolist() == modality
    assert sample["image_weights"].tolist() == [0.0] * (len(tokens) - 5) + [1.0] * 4 + [0.0]
    assert sample["targets"].tolist() == [*tokens[1:], 0] and not sample["text_weights"].any()
    assert sample["positions"].tolist() == list(range(len(tokens)))
    np.testing.assert_array_equal(sample["und_pixels"], [understanding_pixels(image, 16) for image in IMAGES[:2]])
    shown = [] if drop else [understanding_pixels(image, 16) for image in IMAGES[:2]]
    np.testing.assert_array_equal(sample["gen_pixels"], [*shown, generation_pixels(IMAGES[2], 16)])


def test_codes_of_each_image_are_dropped_on_their_own_as_often_as_asked():
    counts = np.zeros((2, 2), int)
    for seed in range(400):
        sample = build(EDIT, seed, drop_condition_codes=0.3)
        at = [len(BEFORE) + 6, len(BEFORE) + 6 + 11]
        counts[tuple(int(sample["tokens"][place] == PAD) for place in at)] += 1
        seen = [place for place in at if sample["tokens"][place] != PAD]
        assert len(sample["gen_pixels"]) == len(seen) + 1
    expected = 400 * np.outer([0.7, 0.3], [0.7, 0.3])
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))


def test_codes_of_the_training_step_go_to_their_places_and_only_the_last_are_learned():
    plain = generate("a cat", flat_png(9))
    samples = [build(EDIT, drop_condition_codes=0.5), build(plain)]
    assert len(samples[0]["gen_pixels"]) == 2  # one of the two images is seen
    packed = [[PackedSample("generate", (), sample, "k", ("s", 0)) for sample in samples]]
    slots = {"und_pixels": 2, "gen_pixels": 4}
    batch = PackedBatch(**join_blocks([assemble(packed, 128, tuple(slots))], slots))
    batch = jax.tree.map(jnp.asarray, batch)

    def encode(pixels):  # codes that tell the image and the place
        first = jnp.round((pixels[:, 0, 0, 0] + 1) * 127.5).astype(jnp.int32)
        return first[:, None] * 10 + jnp.arange(4)

    coded = with_codes(batch, encode)
    tokens, modality = np.asarray(coded.tokens[0]), np.asarray(batch.modality[0])
    images = [*samples[0]["gen_pixels"], *samples[1]["gen_pixels"]]
    codes = [int(image[0, 0, 0]) * 10 + np.arange(4) for image in images]
    assert tokens[modality == CODE].tolist() == np.concatenate(codes).tolist()
    learned = np.flatnonzero(batch.image_weights[0])
    assert np.asarray(coded.targets[0])[learned].tolist() == np.concatenate(codes[1:]).tolist()
    pads = (tokens == PAD).sum()
    assert pads == 4  # the image that is not seen


def test_stored_codes_are_those_of_the_same_samples():
    codes = np.arange(12) % 7
    sample = build(EDIT.with_codes(codes), stored_codes=True)
    tokens, modality = expected_rows([True, True])
    places = np.flatnonzero(np.array(modality) == CODE)
    np.testing.assert_array_equal(sample["tokens"][places], codes)
    assert np.delete(sample["tokens"], places).tolist() == np.delete(tokens, places).tolist()
    assert "gen_pixels" not in sample


WRONG = {
    "no condition images": (EDIT, dict(condition_images=False), Reason.BAD_FIELD),
    "no slot for features": (EDIT, dict(understanding_slots=1), Reason.TOO_LONG),
    "no slot for codes": (EDIT, dict(generation_slots=2), Reason.TOO_LONG),
    "no room for tokens": (EDIT, dict(row_length=38), Reason.TOO_LONG),
    "codes of one image": (EDIT.with_codes(np.arange(4)), dict(stored_codes=True), Reason.BAD_FIELD),
    "damaged condition": (generate("<image>x", b"no image", flat_png(1)), {}, Reason.BAD_IMAGE),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sample_that_does_not_fit_is_dropped_with_its_reason(name):
    record, settings, reason = WRONG[name]
    with pytest.raises(SampleError) as error:
        build(record, **settings)
    assert error.value.reason == reason


def test_the_length_is_that_of_the_sample():
    lengths = LengthSettings(prompt_style="janus_pro_tiny", understanding_tokens=3, generation_tokens=4)
    assert count_tokens(EDIT, BYTE_TOKENIZER, lengths) == len(build(EDIT)["tokens"])


def test_a_caption_without_conditions_has_the_prompt_that_it_always_had():
    ids = conditioned_prompt("turn", BYTE_TOKENIZER, STYLE, 3, 4)
    assert ids.tolist() == BEFORE + AFTER


def test_files_of_sharegpt4o_become_records_with_codes(tmp_path):
    """Codes come from the padded condition and the cropped image, in chunks of one size; no other image is kept."""
    for i, image in enumerate(IMAGES):
        image.save(tmp_path / f"{i}.png")
    samples = [
        {"input_prompt": "turn", "input_image": ["0.png", "1.png"], "output_image": "2.png"},
        {"input_prompt": "a cat", "output_image": "1.png"},
        {"input_prompt": "a <image> here", "input_image": "0.png", "output_image": "2.png"},
        {"input_prompt": "two <image><image>", "input_image": ["0.png"], "output_image": "2.png"},
        {"input_prompt": "no output", "input_image": ["0.png"]},
        {"input_prompt": " ", "output_image": "2.png"},
        {"input_prompt": "a <image_1>", "input_image": ["0.png"], "output_image": "2.png"},
    ]
    (tmp_path / "data.json").write_text(json.dumps(samples))
    dataset = open_dataset("sharegpt4o", str(tmp_path / "data.json"), {"image_root": (str(tmp_path),)})
    items = [item for unit in dataset.units() for item in dataset.read(unit)]
    reasons = [item.reason for item in items if isinstance(item, DroppedSample)]
    assert reasons == [Reason.BAD_RECORD, Reason.MISSING_IMAGE, Reason.NO_TEXT, Reason.MISSING_IMAGE]
    captions = [item.messages[0].text for item in items if isinstance(item, Record)]
    assert captions == ["<image><image>turn", "a cat", "a <image> here"]
    shapes = []

    def encode(pixels):
        shapes.append(pixels.shape)
        return pixels.reshape(len(pixels), -1)[:, :4].astype(np.int32)

    settings = RecordSettings(code_size=16, code_batch=2, keep_images=False)
    job = make_job(dataset, tmp_path / "out", settings, num_output_files=1, max_drop_rate=0.9, image_tokenizer="x")
    prepare(job, encode)
    stored = open_records(str(tmp_path / "out" / "generate-*"), "x", 0, False)
    records = [Record.deserialize(stored[i].data) for i in range(len(stored))]
    assert [len(record.images) for record in records] == [2, 0, 1] and set(shapes) == {(2, 16, 16, 3)}
    codes = [*(understanding_pixels(image, 16) for image in IMAGES[:2]), generation_pixels(IMAGES[2], 16)]
    np.testing.assert_array_equal(records[0].code_array, np.concatenate([image.ravel()[:4] for image in codes]))
    sample = build(records[0], stored_codes=True, num_codes=256)
    np.testing.assert_array_equal(sample["tokens"][-4:], codes[2].ravel()[:4])
