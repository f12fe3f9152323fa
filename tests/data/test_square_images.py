"""The stream of the image tokenizer: every image of the records once an epoch, cut to a square."""

import json
from itertools import islice

import numpy as np
import pytest

from janus_jax.batches import ImageBatch
from janus_jax.data.dropped_samples import Reason
from janus_jax.data.images import CENTRE, generation_pixels
from janus_jax.data.square_images import square_images
from janus_jax.data.stream import StreamOptions, drop_reports
from tests.helpers.tiny_data import ListSource, document, encoded, flat_png, generate, random_image


@pytest.fixture
def image_stream():
    streams = []

    def open_one(records):
        options = StreamOptions(batch_size=4, num_shards=2, seed=0, max_drop_rate=0.5)
        streams.append(square_images([ListSource(records)], 8, CENTRE, options))
        return streams[-1]

    yield open_one
    for stream in streams:
        stream.close()


def test_square_images_are_the_cropped_images_of_the_records_each_once_per_epoch(image_stream):
    pictures = [random_image(9 + i, 12, seed=i) for i in range(8)]
    stream = image_stream([generate("c", encoded(picture), key=str(i)) for i, picture in enumerate(pictures)])
    batches = list(islice(stream, 4))
    assert all(isinstance(batch, ImageBatch) and batch.pixels.dtype == np.uint8 for batch in batches)
    expected = sorted(generation_pixels(picture, 8).tobytes() for picture in pictures)
    for epoch in (batches[:2], batches[2:]):
        assert sorted(image.tobytes() for batch in epoch for image in batch.pixels) == expected


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(generate("c", b"no image", key="bad"), Reason.BAD_IMAGE), (document("text only", key="bad"), Reason.NO_IMAGE)],
)
def test_square_images_drop_and_count_what_has_no_image(image_stream, bad, reason):
    good = [generate("c", flat_png(200), key=str(i)) for i in range(7)]
    stream = image_stream([*good, bad])
    for batch in list(islice(stream, 6)):
        assert batch.pixels.shape == (4, 8, 8, 3) and (batch.pixels == 200).all()
    report = drop_reports(stream.get_state())["generate/0"]
    assert set(report.reasons) == {reason} and {example.key for example in report.examples} == {"bad"}


def test_square_images_continue_after_a_restore(image_stream):
    records = [generate("c", flat_png(i), key=str(i)) for i in range(1, 12)]
    stream = image_stream(records)
    list(islice(stream, 3))
    state = json.loads(json.dumps(stream.get_state()))
    expected = list(islice(stream, 4))
    restored = image_stream(records)
    restored.set_state(state)
    for batch, other in zip(list(islice(restored, 4)), expected, strict=True):
        np.testing.assert_array_equal(batch.pixels, other.pixels)
