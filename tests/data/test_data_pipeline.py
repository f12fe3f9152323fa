import json

import numpy as np
import pytest
from tiny_data import (
    BOS,
    PAD,
    byte_ids,
    document,
    encoded,
    flat_png,
    generate,
    make_builder,
    random_image,
    text,
    understand,
)

from janus_jax.batch import ImageBatch, Modality, PackedBatch
from janus_jax.data.images import generation_pixels
from janus_jax.data.pipeline import packed_rows, square_images, task_sources
from janus_jax.data.records import write_records
from janus_jax.data.samples import DropCounter
from janus_jax.errors import UserError

RATIO = {"understand": 5, "text": 1, "generate": 4}
NUM_RECORDS = 40


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Two files per task."""
    folder = tmp_path_factory.mktemp("records")
    makers = {
        "understand": lambda i: understand(f"<image>{'?' * (i % 7)}", f"a{i}", images=[flat_png(i)], key=f"u/{i}"),
        "text": lambda i: text("q" * (i % 5), f"b{i}", key=f"t/{i}"),
        "generate": lambda i: generate(f"c{i}", flat_png(100 + i), key=f"g/{i}"),
    }
    for task, make in makers.items():
        records = [make(i) for i in range(1, NUM_RECORDS + 1)]
        write_records(folder / f"{task}-0.array_record", records[:25])
        write_records(folder / f"{task}-1.array_record", records[25:])
    return {task: [f"{folder}/{task}-*.array_record"] for task in makers}


@pytest.fixture
def open_stream(patterns):
    """Opens streams and closes them after the test."""
    streams = []

    def open_one(batch_size=4, num_shards=2, seed=0, ratio=RATIO, bins=4, sources=None, **builder):
        sources = sources or task_sources(patterns, ratio)
        stream = packed_rows(
            sources,
            ratio,
            make_builder(**builder),
            batch_size=batch_size,
            num_shards=num_shards,
            packing_bins=bins,
            seed=seed,
        )
        streams.append(stream)
        return stream

    yield open_one
    for stream in streams:
        stream.close()


def take(stream, count):
    return [next(stream) for _ in range(count)]


def same(left, right):
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def segments(batch):
    """(row, segment id) -> set of modalities."""
    for row_ids, row_modality in zip(batch.segment_ids, batch.modality, strict=True):
        for segment in range(1, row_ids.max() + 1):
            yield set(row_modality[row_ids == segment].tolist())


def test_realised_ratio_of_tasks_is_the_configured_one(open_stream):
    stream = open_stream(batch_size=8)
    counts = dict.fromkeys(RATIO, 0)
    while sum(counts.values()) < 2000:
        for kinds in segments(next(stream)):
            image = kinds - {int(Modality.TEXT)}
            task = {(): "text", (2,): "understand", (3,): "generate"}[tuple(image)]
            counts[task] += 1
    total = sum(counts.values())
    for task, weight in RATIO.items():
        assert counts[task] / total == pytest.approx(weight / 10, abs=0.01), counts


def test_batches_are_packed_batches_of_the_given_shapes(open_stream):
    batch = next(open_stream())
    assert isinstance(batch, PackedBatch)
    for name in ("tokens", "modality", "segment_ids", "positions", "targets", "text_weights", "image_weights"):
        assert getattr(batch, name).shape == (4, 64), name
    assert batch.und_pixels.shape == (4, 2, 16, 16, 3) and batch.gen_pixels.shape == (4, 1, 8, 8, 3)
    features = (batch.modality == Modality.UNDERSTANDING_IMAGE).sum(1)
    images = (batch.und_pixels.max(axis=(2, 3, 4)) > 0).sum(1)
    np.testing.assert_array_equal(features, 4 * images)  # as many images as there are places for them


@pytest.mark.parametrize("through_json", [False, True])
@pytest.mark.parametrize("advanced", [0, 3])
def test_restored_stream_continues_byte_for_byte(open_stream, through_json, advanced):
    original = open_stream(drop_condition=0.5)
    take(original, 5)
    state = original.get_state()
    if through_json:
        state = json.loads(json.dumps(state))
    expected = take(original, 6)
    restored = open_stream(drop_condition=0.5)
    take(restored, advanced)
    restored.set_state(state)
    assert same(take(restored, 6), expected)


def test_state_before_the_first_batch_is_the_beginning(open_stream):
    stream = open_stream()
    state = stream.get_state()
    expected = take(stream, 3)
    stream.set_state(state)
    assert same(take(stream, 3), expected)


def test_the_stream_is_a_function_of_files_and_seed(open_stream):
    first, again, other = (take(open_stream(seed=seed, drop_condition=0.5), 4) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_rows_of_a_logical_shard_do_not_depend_on_the_batch_size(open_stream):
    """Rows [s * B / S, (s + 1) * B / S) of a batch come from shard s."""
    small, large = take(open_stream(batch_size=2), 6), take(open_stream(batch_size=6), 2)
    for shard in range(2):
        of_small = np.concatenate([batch.tokens[shard : shard + 1] for batch in small])
        of_large = np.concatenate([batch.tokens[3 * shard : 3 * shard + 3] for batch in large])
        np.testing.assert_array_equal(of_small, of_large)
    assert not np.array_equal(small[0].tokens[0], small[0].tokens[1])


def test_shards_share_every_epoch_without_overlap(open_stream):
    """Documents as long as a row: row k of a shard is its k-th sample."""
    documents = [document(letter * 62, key=letter) for letter in "abcdefghijkl"]
    sources = {"text": [record.serialize() for record in documents]}
    stream = open_stream(batch_size=3, num_shards=3, ratio={"text": 1}, bins=1, sources=sources)
    letters = [batch.tokens[:, 1].tolist() for batch in take(stream, 8)]
    expected = sorted(byte_ids("abcdefghijkl"))
    assert sorted(sum(letters[:4], [])) == sorted(sum(letters[4:], [])) == expected
    assert letters[:4] != letters[4:]  # another order in the second epoch
    assert (next(stream).tokens[:, 0] == BOS).all()


def test_another_seed_gives_another_order_and_other_random_choices(open_stream):
    sources = {"generate": [generate(letter * 30, flat_png(1), key=letter).serialize() for letter in "abcdefghijkl"]}
    settings = dict(batch_size=1, num_shards=1, ratio={"generate": 1}, bins=1, sources=sources)
    orders, choices = [], []
    for seed in (0, 1):
        orders.append([int(batch.tokens[0, 4]) for batch in take(open_stream(seed=seed, **settings), 12)])
        stream = open_stream(seed=seed, drop_condition=0.5, **settings)
        choices.append([PAD in batch.tokens[0] for batch in take(stream, 24)])
    assert sorted(orders[0]) == sorted(orders[1]) == byte_ids("abcdefghijkl")
    assert orders[0] != orders[1] and choices[0] != choices[1]


def test_random_choices_differ_between_epochs(open_stream):
    sources = {"generate": [generate("c" * 30, flat_png(1), key=str(i)).serialize() for i in range(4)]}
    settings = dict(batch_size=1, num_shards=1, ratio={"generate": 1}, bins=1, sources=sources, drop_condition=0.5)
    stream = open_stream(**settings)
    dropped = [PAD in batch.tokens[0] for batch in take(stream, 40)]
    epochs = {tuple(dropped[i : i + 4]) for i in range(0, 40, 4)}
    assert len(epochs) > 3


def test_random_choices_differ_between_shards(open_stream):
    sources = {"generate": [generate("c" * 30, flat_png(1), key=str(i)).serialize() for i in range(100)]}
    settings = dict(batch_size=2, num_shards=2, ratio={"generate": 1}, bins=1, sources=sources, drop_condition=0.5)
    batches = take(open_stream(**settings), 40)
    dropped = np.array([[PAD in row for row in batch.tokens] for batch in batches])
    assert 0.2 < (dropped[:, 0] == dropped[:, 1]).mean() < 0.8


def test_state_of_another_number_of_shards_is_refused(open_stream):
    state = open_stream(num_shards=2).get_state()
    with pytest.raises(UserError, match=r"data\.num_shards=4, but the checkpoint's stream had 2"):
        open_stream(num_shards=4).set_state(state)


@pytest.mark.parametrize(("batch_size", "num_shards"), [(4, 3), (2, 4), (4, 0), (4, -2)])
def test_batch_size_that_is_no_multiple_of_the_shards_is_refused(open_stream, batch_size, num_shards):
    message = rf"train\.batch_size={batch_size} must be a multiple of data\.num_shards={num_shards}"
    with pytest.raises(UserError, match=message):
        open_stream(batch_size=batch_size, num_shards=num_shards)


def test_more_shards_than_records_are_refused(open_stream):
    with pytest.raises(UserError, match=rf"data\.num_shards=64 is more than the {NUM_RECORDS} records"):
        open_stream(batch_size=64, num_shards=64)


def test_tasks_of_ratio_zero_need_no_files(patterns):
    sources = task_sources({"text": patterns["text"]}, {"text": 1, "generate": 0, "understand": 0})
    assert list(sources) == ["text"] and len(sources["text"]) == NUM_RECORDS
    with pytest.raises(UserError, match=r"data\.sources\.text"):
        task_sources({"text": ["/nowhere/*.array_record"]}, {"text": 1})


def test_bad_records_are_left_out_and_counted(open_stream):
    records = [document("good" + str(i), key=str(i)) for i in range(10)] + [document("x" * 99, key="long")]
    stream = open_stream(ratio={"text": 1}, sources={"text": [record.serialize() for record in records] + [b"\xc1"]})
    take(stream, 10)
    assert {reason.split(":")[0] for reason in stream.drops.reasons} >= {"long"}
    assert stream.drops.reasons.total() / stream.drops.seen == pytest.approx(2 / 12, abs=0.05)


def test_stream_of_bad_records_only_aborts_instead_of_waiting_forever(open_stream):
    stream = open_stream(ratio={"text": 1}, sources={"text": [b"\xc1"] * 8})
    with pytest.raises(UserError, match=r"data\.max_drop_rate=0\.5: 100 of 100 samples dropped"):
        next(stream)


@pytest.fixture
def image_stream():
    streams = []

    def open_one(records, batch_size=4, num_shards=2, drops=None):
        source = [record.serialize() for record in records]
        drops = drops or DropCounter(0.5)
        streams.append(square_images(source, size=8, batch_size=batch_size, num_shards=num_shards, seed=0, drops=drops))
        return streams[-1]

    yield open_one
    for stream in streams:
        stream.close()


def test_square_images_are_the_cropped_images_of_the_records_each_once_per_epoch(image_stream):
    pictures = [random_image(9 + i, 12, seed=i) for i in range(8)]
    stream = image_stream([generate("c", encoded(picture), key=str(i)) for i, picture in enumerate(pictures)])
    batches = take(stream, 4)
    assert all(isinstance(batch, ImageBatch) and batch.pixels.dtype == np.uint8 for batch in batches)
    expected = sorted(generation_pixels(picture, 8).tobytes() for picture in pictures)
    for epoch in (batches[:2], batches[2:]):
        assert sorted(image.tobytes() for batch in epoch for image in batch.pixels) == expected


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (generate("c", b"no image", key="bad"), "bad: not a readable image"),
        (document("text only", key="bad"), "bad: "),
    ],
)
def test_square_images_drop_and_count_what_has_no_image(image_stream, bad, reason):
    good = [generate("c", flat_png(200), key=str(i)) for i in range(7)]
    stream = image_stream([*good, bad])
    for batch in take(stream, 6):
        assert batch.pixels.shape == (4, 8, 8, 3) and (batch.pixels == 200).all()
    assert [key for key in stream.drops.reasons if key.startswith(reason)]


def test_square_images_continue_after_a_restore(image_stream):
    records = [generate("c", flat_png(i), key=str(i)) for i in range(1, 12)]
    stream = image_stream(records)
    take(stream, 3)
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 4)
    restored = image_stream(records)
    restored.set_state(state)
    assert same(take(restored, 4), expected)
