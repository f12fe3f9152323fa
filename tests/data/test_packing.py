import grain
import numpy as np
import pytest

from janus_jax.data.packing import pack

ROW_LENGTH, UND_SLOTS, GEN_SLOTS = 20, 2, 1


def make_samples(count=60, seed=0):
    """Sample i has tokens of value i + 1 and images that count up; every feature tells where it comes from."""
    rng = np.random.default_rng(seed)
    images = np.arange(1, 4 * count + 1, dtype=np.uint8)[:, None, None, None]
    samples = []
    for i in range(count):
        length, und, gen = int(rng.integers(1, ROW_LENGTH + 1)), int(rng.integers(0, 3)), int(rng.integers(0, 2))
        place = np.arange(length)
        sample = {
            "tokens": np.full(length, i + 1, np.int32),
            "modality": (1 + place % 3).astype(np.int8),
            "targets": (100 * (i + 1) + place).astype(np.int32),
            "text_weights": (place % 2).astype(np.float32),
            "image_weights": (place % 5 == 0).astype(np.float32),
            "und_pixels": np.tile(images[2 * i : 2 * i + und], (1, 2, 2, 3)),
            "gen_pixels": np.tile(images[i : i + gen], (1, 4, 4, 3)),
        }
        samples.append(sample)
    return samples


@pytest.fixture(scope="module")
def samples():
    return make_samples()


@pytest.fixture(scope="module", params=[1, 4])
def rows(request, samples):
    dataset = grain.MapDataset.source(samples).to_iter_dataset()
    sizes = dict(row_length=ROW_LENGTH, und_slots=UND_SLOTS, gen_slots=GEN_SLOTS)
    return list(pack(dataset, **sizes, bins=request.param, seed=0))


def samples_of(row):
    """(index of the sample, its positions in the row) for each segment."""
    for segment in range(1, row["segment_ids"].max() + 1):
        places = np.flatnonzero(row["segment_ids"] == segment)
        yield int(row["tokens"][places[0]]) - 1, places


def test_every_sample_of_a_finite_stream_appears_exactly_once_and_whole(rows, samples):
    seen = []
    for row in rows:
        for index, places in samples_of(row):
            assert (np.diff(places) == 1).all()
            for name in ("tokens", "modality", "targets", "text_weights", "image_weights"):
                np.testing.assert_array_equal(row[name][places], samples[index][name], err_msg=name)
            seen.append(index)
    assert sorted(seen) == list(range(len(samples)))


def test_segment_ids_count_from_one_and_positions_from_zero(rows):
    for row in rows:
        used = row["segment_ids"] > 0
        ids = row["segment_ids"][used]
        assert ids[0] == 1 and set(np.diff(ids)) <= {0, 1}
        assert not used[used.sum() :].any()  # padding is at the end
        for _, places in samples_of(row):
            np.testing.assert_array_equal(row["positions"][places], np.arange(len(places)))


def test_images_stand_in_the_order_of_their_samples_and_unused_slots_are_zero(rows, samples):
    for row in rows:
        for name in ("und_pixels", "gen_pixels"):
            expected = np.concatenate([samples[index][name] for index, _ in samples_of(row)])
            np.testing.assert_array_equal(row[name][: len(expected)], expected)
            assert (row[name][len(expected) :] == 0).all()


def test_rows_have_the_fixed_shapes_and_dtypes_of_a_batch(rows):
    per_token = {"tokens": np.int32, "modality": np.int8, "targets": np.int32, "segment_ids": np.int32}
    per_token |= {"positions": np.int32, "text_weights": np.float32, "image_weights": np.float32}
    for row in rows:
        assert {name: (value.shape, value.dtype) for name, value in row.items()} == {
            **{name: ((ROW_LENGTH,), dtype) for name, dtype in per_token.items()},
            "und_pixels": ((UND_SLOTS, 2, 2, 3), np.uint8),
            "gen_pixels": ((GEN_SLOTS, 4, 4, 3), np.uint8),
        }


def test_padding_is_zero_in_every_feature(rows):
    for row in rows:
        padding = row["segment_ids"] == 0
        for name in ("tokens", "modality", "targets", "positions", "text_weights", "image_weights"):
            assert (row[name][padding] == 0).all(), name


def test_more_open_rows_waste_less(samples):
    def fill(bins):
        dataset = grain.MapDataset.source(make_samples(400)).to_iter_dataset()
        packed = pack(dataset, row_length=ROW_LENGTH, und_slots=9, gen_slots=9, bins=bins, seed=0)
        return np.mean([(row["segment_ids"] > 0).mean() for row in packed])

    assert fill(16) > fill(1) + 0.05
