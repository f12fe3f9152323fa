import numpy as np
import pytest

from janus_jax.data.packing import TOKEN_FEATURES, PackedSample, Packer, assemble, block_bytes, join_blocks

ROW_LENGTH, UND_SLOTS, GEN_SLOTS = 20, 2, 1
SLOTS = {"und_pixels": UND_SLOTS, "gen_pixels": GEN_SLOTS}


def make_item(i, length, und=0, gen=0, task="text"):
    """Tokens of value i + 1 and images that count up; every feature tells where it comes from."""
    place = np.arange(length)
    images = np.arange(1, 250, dtype=np.uint8)[:, None, None, None]
    sample = {
        "tokens": np.full(length, i + 1, np.int32),
        "modality": (1 + place % 3).astype(np.int8),
        "positions": (2 * place).astype(np.int32),
        "targets": (100 * (i + 1) + place).astype(np.int32),
        "text_weights": (place % 2).astype(np.float32),
        "image_weights": (place % 5 == 0).astype(np.float32),
        "und_pixels": np.tile(images[2 * i : 2 * i + und], (1, 2, 2, 3)),
        "gen_pixels": np.tile(images[i : i + gen], (1, 4, 4, 3)),
    }
    return PackedSample(task, (length, und, gen), sample, f"key{i}", ("text/0", i))


def random_items(count=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        make_item(i, int(rng.integers(1, ROW_LENGTH + 1)), int(rng.integers(0, 3)), int(rng.integers(0, 2)))
        for i in range(count)
    ]


def pack(items, bins, capacity=(ROW_LENGTH, UND_SLOTS, GEN_SLOTS), **options):
    """(closed rows, rows still open), each a list of items."""
    packer = Packer(capacity, bins, **options)
    closed = [row for item in items if (row := packer.add(item)) is not None]
    return closed, [row.samples for row in packer.rows]


@pytest.fixture(scope="module", params=[1, 4])
def rows(request):
    closed, still_open = pack(random_items(), request.param)
    packed = closed + still_open
    blocks = [assemble(part, ROW_LENGTH, tuple(SLOTS)) for part in (packed[:3], packed[3:])]
    batch = join_blocks(blocks, SLOTS)
    return [(items, {name: batch[name][row] for name in batch}) for row, items in enumerate(packed)]


def test_every_sample_is_in_exactly_one_row_and_whole(rows):
    seen = []
    for items, row in rows:
        for segment, item in enumerate(items, start=1):
            places = np.flatnonzero(row["segment_ids"] == segment)
            assert (np.diff(places) == 1).all()
            for name in TOKEN_FEATURES:
                np.testing.assert_array_equal(row[name][places], item.sample[name], err_msg=name)
            seen.append(item.origin[1])
    assert sorted(seen) == list(range(60))


def test_images_stand_in_the_order_of_their_samples_and_unused_slots_are_zero(rows):
    for items, row in rows:
        for name in SLOTS:
            expected = np.concatenate([item.sample[name] for item in items])
            np.testing.assert_array_equal(row[name][: len(expected)], expected)
            assert (row[name][len(expected) :] == 0).all()


def test_rows_have_the_fixed_shapes_and_dtypes_of_a_batch(rows):
    per_token = TOKEN_FEATURES | {"segment_ids": np.int32}
    for _, row in rows:
        assert {name: (value.shape, value.dtype) for name, value in row.items()} == {
            **{name: ((ROW_LENGTH,), dtype) for name, dtype in per_token.items()},
            "und_pixels": ((UND_SLOTS, 2, 2, 3), np.uint8),
            "gen_pixels": ((GEN_SLOTS, 4, 4, 3), np.uint8),
        }


def test_no_block_is_larger_than_told():
    """Rows with all their slots in use."""
    items = [[make_item(i, ROW_LENGTH, UND_SLOTS, GEN_SLOTS)] for i in range(7)]
    sizes = {name: (number, {"und_pixels": 2, "gen_pixels": 4}[name]) for name, number in SLOTS.items()}
    largest = block_bytes(7, ROW_LENGTH, sizes)
    size = sum(array.nbytes for array in assemble(items, ROW_LENGTH, tuple(SLOTS)).values())
    assert size + 64 * 16 <= largest < size + 4096


def test_padding_is_at_the_end_and_zero_in_every_feature(rows):
    for items, row in rows:
        used = sum(item.lengths[0] for item in items)
        for name in (*TOKEN_FEATURES, "segment_ids"):
            assert (row[name][used:] == 0).all(), name


def test_best_fit_by_hand():
    """Capacity 10, two open rows: 5 opens one, 6 another; 3 goes to the fuller, 4 to the other; 9 closes the oldest."""
    closed, still_open = pack([make_item(i, length) for i, length in enumerate([5, 6, 3, 4, 9])], 2, (10, 9, 9))
    assert [[item.lengths[0] for item in row] for row in closed] == [[5, 4]]
    assert [[item.lengths[0] for item in row] for row in still_open] == [[6, 3], [9]]


def test_a_row_never_holds_more_images_than_it_has_slots():
    items = [make_item(i, 1, und=1) for i in range(9)]
    closed, still_open = pack(items, 2)
    assert [len(row) for row in closed + still_open] == [2, 2, 2, 2, 1]


def test_rows_of_one_task_only():
    tasks = ["text", "generate", "text", "text", "generate"] * 4
    items = [make_item(i, 7, task=task) for i, task in enumerate(tasks)]
    closed, still_open = pack(items, 3, one_task=True)
    assert all(len({item.task for item in row}) == 1 for row in closed + still_open)
    assert sum(map(len, closed + still_open)) == 20


def fill(items, bins):
    closed, _ = pack(items, bins, (4096, 7, 7))
    return sum(item.lengths[0] for row in closed for item in row) / (4096 * len(closed))


def realistic_lengths(count, seed=0):
    """2 : 3 : 5 as in stage II: captions of an image, text of a few to thousands of tokens, image and its prompt."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind = "uttgg"[i % 5] if i % 2 else "utggg"[i % 5]
        if kind == "u":
            yield 578 + int(np.clip(rng.lognormal(4.5, 0.8), 10, 3000)), 1, 0
        elif kind == "g":
            yield 576 + int(np.clip(rng.lognormal(4.0, 0.7), 10, 400)), 0, 1
        else:
            yield int(np.clip(rng.lognormal(6.0, 1.2), 20, 4096)), 0, 0


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_4096_are_filled_to_97_percent_at_the_default_number_of_open_rows(seed):
    from configs.base import base_config

    bins = base_config("any", "any").data.packing_bins
    empty = make_item(0, 0).sample
    items = [
        PackedSample("text", lengths, empty, "k", ("t", i)) for i, lengths in enumerate(realistic_lengths(6000, seed))
    ]
    assert fill(items, bins) >= 0.97
    assert fill(items, 1) < fill(items, 2) < fill(items, 4) < fill(items, bins)


def test_tasks_leave_in_the_ratio_in_which_they_come():
    """2,000 samples of eight logical shards, short texts among long images."""
    from configs.base import base_config

    data = base_config("any", "any").data
    left, num_shards = {"u": 0, "t": 0, "g": 0}, 8
    for shard in range(num_shards):
        packer, closed = Packer((4096, 7, 7), data.packing_bins), 0
        for i, lengths in enumerate(realistic_lengths(10_000, shard)):
            task = "u" if lengths[1] else "g" if lengths[2] else "t"
            row = packer.add(PackedSample(task, lengths, {}, "k", ("t", i)))
            for item in row or ():
                left[item.task] += 1
                closed += 1
            if closed >= 2000 // num_shards:
                break
    total = sum(left.values())
    assert {task: count / total for task, count in left.items()} == pytest.approx(
        {"u": 0.2, "t": 0.3, "g": 0.5}, abs=0.01
    )
