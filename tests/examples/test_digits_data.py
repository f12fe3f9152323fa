"""The digits of the quickstart: splits, records, tokenizer."""

import io

import numpy as np
import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.records import Record


@pytest.fixture(scope="module")
def splits():
    return digits.load_digits()


def test_splits_are_fixed_disjoint_and_cover_all_digits(splits):
    from sklearn.datasets import load_digits

    training, held_out = splits
    assert (len(training.labels), len(held_out.labels)) == (1437, 360)
    together = np.concatenate([training.intensities, held_out.intensities]).reshape(1797, -1)
    everything = load_digits().data
    assert sorted(map(tuple, together)) == sorted(map(tuple, everything))
    assert len(np.unique(everything, axis=0)) == 1797  # no scan occurs twice, so the splits share none
    again = digits.load_digits()
    np.testing.assert_array_equal(again[0].intensities, training.intensities)
    assert sorted(set(held_out.labels.tolist())) == list(range(10))


def test_records_hold_images_of_their_split_only(splits):
    training, held_out = splits
    seen = {record.images[0] for record in digits.generation_records(training)}
    assert not seen & {record.images[0] for record in digits.generation_records(held_out)}


def test_labels_stay_with_their_images(splits):
    from sklearn.datasets import load_digits

    data = load_digits()
    known = {tuple(image.reshape(-1)): target for image, target in zip(data.images, data.target, strict=True)}
    for split in splits:
        assert [known[tuple(image.reshape(-1))] for image in split.intensities] == split.labels.tolist()


def test_images_are_scaled_to_the_full_range():
    flat = np.full((8, 8), 16.0)
    assert digits.to_image(flat).size == (16, 16)
    assert (np.asarray(digits.to_image(flat)) == 255).all()
    assert (np.asarray(digits.to_image(flat / 2)) == 128).all()


def test_records_are_valid_and_tell_the_right_digit(splits):
    few = digits.Digits(splits[0].intensities[:20], splits[0].labels[:20])
    reading, generation, text = digits.understanding_records(few), digits.generation_records(few), digits.text_records()
    keys = [record.key for record in (*reading, *generation, *text)]
    assert len(set(keys)) == len(keys)
    for record in (*reading, *generation, *text):
        assert Record.deserialize(record.serialize()) == record
    for record in reading:
        assert record.messages[1].text == digits.NAMES[few.labels[int(record.key.split("/")[1])]]
    for record in generation:
        index = int(record.key.split("/")[1])
        assert record.messages[0].text.endswith(digits.NAMES[few.labels[index]])
        shown = PIL.Image.open(io.BytesIO(record.images[0]))
        np.testing.assert_array_equal(shown, digits.to_image(few.intensities[index]))


def test_text_answers_are_right():
    answers = {record.messages[0].text: record.messages[1].text for record in digits.text_records()}
    assert answers["Which digit comes after three?"] == "four"
    assert answers["Which digit comes before nine?"] == "eight"
    assert answers["Write seven as a figure."] == "7"
    assert [answers[f"Is {name} even or odd?"] for name in ("zero", "five")] == ["even", "odd"]
    assert answers["Which is larger, two or six?"] == answers["Which is larger, six or two?"] == "six"


def test_digit_names_are_single_tokens(splits):
    few = digits.Digits(splits[0].intensities[:100], splits[0].labels[:100])
    records = [*digits.understanding_records(few), *digits.generation_records(few), *digits.text_records()]
    tokenizer = digits.build_tokenizer(records, 512, "janus_pro_tiny")
    for name in digits.NAMES:
        assert len(tokenizer.encode(f" {name}")) == 2, name  # with BOS


def test_jitter_keeps_size_and_ink(splits):
    image = digits.to_image(splits[0].intensities[0])
    jittered = digits.jitter(image, np.random.default_rng(0))
    assert jittered.size == image.size
    assert np.asarray(jittered).mean() == pytest.approx(np.asarray(image).mean(), rel=0.15)
    assert np.asarray(jittered).tobytes() != np.asarray(image).tobytes()
