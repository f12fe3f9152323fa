import json
import time

import numpy as np
import pytest

from janus_jax.batches import Modality, PackedBatch
from janus_jax.data import stream as stream_module
from janus_jax.data.dropped_samples import Reason
from janus_jax.data.mixture import Mixture, WeightedRecords
from janus_jax.data.packed_rows import packed_rows
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import write_records
from janus_jax.data.stream import StreamOptions, drop_metrics, drop_reports, format_reports
from janus_jax.errors import UserError
from tests.helpers.tiny_data import (
    BOS,
    PAD,
    ListSource,
    byte_ids,
    document,
    flat_png,
    generate,
    make_builder,
    text,
    understand,
)

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
    return {task: f"{folder}/{task}-*.array_record" for task in makers}


@pytest.fixture
def open_stream(patterns):
    """Opens streams and closes them after the test."""
    streams = []

    def open_one(
        ratio=RATIO, sources=None, builder=None, weights=None, ratio_unit="samples", packing_bins=4, **changes
    ):
        sources = sources or {task: [open_records(patterns[task], task)] for task in ratio}
        weighted = {
            task: [WeightedRecords(source, weights and weights[task][i]) for i, source in enumerate(of_task)]
            for task, of_task in sources.items()
        }
        mixture = Mixture(sources=weighted, ratio=ratio, ratio_unit=ratio_unit)
        options = dict(batch_size=4, num_shards=2, seed=0, max_drop_rate=0.5) | changes
        stream = packed_rows(mixture, make_builder(**builder or {}), packing_bins, StreamOptions(**options))
        streams.append(stream)
        return stream

    yield open_one
    for stream in streams:
        stream.close()


def joined(shares):
    """Batches of all processes as one."""
    steps = zip(*shares, strict=True)
    return [PackedBatch(*(np.concatenate(parts) for parts in zip(*step, strict=True))) for step in steps]


def in_memory(records, task="text"):
    return {task: [ListSource(records)]}


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
    while sum(counts.values()) < 1200:
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
    original = open_stream(builder={"drop_condition": 0.5})
    take(original, 5)
    state = original.get_state()
    if through_json:
        state = json.loads(json.dumps(state))
    expected = take(original, 6)
    restored = open_stream(builder={"drop_condition": 0.5})
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
    first, again, other = (take(open_stream(seed=seed, builder={"drop_condition": 0.5}), 4) for seed in (0, 0, 1))
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
    stream = open_stream({"text": 1}, in_memory(documents), batch_size=3, num_shards=3, packing_bins=1)
    letters = [batch.tokens[:, 1].tolist() for batch in take(stream, 8)]
    expected = sorted(byte_ids("abcdefghijkl"))
    assert sorted(sum(letters[:4], [])) == sorted(sum(letters[4:], [])) == expected
    assert letters[:4] != letters[4:]  # another order in the second epoch
    assert (next(stream).tokens[:, 0] == BOS).all()


def test_another_seed_gives_another_order_and_other_random_choices(open_stream):
    sources = in_memory([generate(letter * 30, flat_png(1), key=letter) for letter in "abcdefghijkl"], "generate")
    settings = dict(batch_size=1, num_shards=1, ratio={"generate": 1}, packing_bins=1, sources=sources)
    orders, choices = [], []
    for seed in (0, 1):
        orders.append([int(batch.tokens[0, 4]) for batch in take(open_stream(seed=seed, **settings), 12)])
        stream = open_stream(seed=seed, builder={"drop_condition": 0.5}, **settings)
        choices.append([PAD in batch.tokens[0] for batch in take(stream, 24)])
    assert sorted(orders[0]) == sorted(orders[1]) == byte_ids("abcdefghijkl")
    assert orders[0] != orders[1] and choices[0] != choices[1]


def test_random_choices_differ_between_epochs(open_stream):
    sources = in_memory([generate("c" * 30, flat_png(1), key=str(i)) for i in range(4)], "generate")
    settings = dict(batch_size=1, num_shards=1, ratio={"generate": 1}, packing_bins=1, sources=sources)
    stream = open_stream(builder={"drop_condition": 0.5}, **settings)
    dropped = [PAD in batch.tokens[0] for batch in take(stream, 40)]
    epochs = {tuple(dropped[i : i + 4]) for i in range(0, 40, 4)}
    assert len(epochs) > 3


def test_random_choices_differ_between_shards(open_stream):
    sources = in_memory([generate("c" * 30, flat_png(1), key=str(i)) for i in range(100)], "generate")
    settings = dict(batch_size=2, num_shards=2, ratio={"generate": 1}, packing_bins=1, sources=sources)
    batches = take(open_stream(builder={"drop_condition": 0.5}, **settings), 40)
    dropped = np.array([[PAD in row for row in batch.tokens] for batch in batches])
    assert 0.2 < (dropped[:, 0] == dropped[:, 1]).mean() < 0.8


@pytest.mark.parametrize(("processes", "workers", "shared"), [(2, 0, True), (4, 0, True), (2, 1, True), (1, 2, False)])
def test_rows_depend_neither_on_processes_nor_on_workers(open_stream, processes, workers, shared):
    settings = {"num_shards": 4, "batch_size": 8}
    expected = take(open_stream(**settings), 4)
    settings |= {"process_count": processes, "workers": workers, "shared_memory": shared}
    shares = [take(open_stream(process_index=i, **settings), 4) for i in range(processes)]
    assert same(joined(shares), expected)


@pytest.mark.parametrize(("slots", "workers"), [(1, 1), (stream_module.RING_SLOTS, 2)])
def test_memory_that_is_written_again_never_changes_rows(open_stream, monkeypatch, slots, workers):
    """The reader falls behind and catches up; with one slot most blocks find it in use."""
    expected = take(open_stream(), 24)
    monkeypatch.setattr(stream_module, "RING_SLOTS", slots)
    stream = open_stream(workers=workers)
    batches = take(stream, 2)
    time.sleep(0.5)
    assert same(batches + take(stream, 22), expected)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (2, 4)])
def test_a_stream_goes_on_with_other_processes(open_stream, before, after):
    """test_formats_to_rows.py has the same with worker processes."""
    settings = dict(num_shards=4, batch_size=8, builder={"drop_condition": 0.5})
    expected = take(open_stream(**settings), 7)[3:]

    def streams(processes):
        return [open_stream(process_index=i, process_count=processes, **settings) for i in range(processes)]

    state = {"settings": {}, "shards": {}}
    for stream in streams(before):
        take(stream, 3)
        state["shards"] |= json.loads(json.dumps(stream.get_state()))["shards"]
    shares = []
    for stream in streams(after):
        stream.set_state(state)
        shares.append(take(stream, 4))
    assert same(joined(shares), expected)


def test_no_sample_is_lost_or_repeated_within_an_epoch(open_stream):
    """Counts the keys of all rows of 3 epochs. Samples in rows that are still open are missing from the last epoch."""
    records = [document("x" * (1 + 7 * i % 60), key=str(i)) for i in range(101)]
    stream = open_stream({"text": 1}, in_memory(records), num_shards=4, packing_bins=3)
    keys = []
    while len(keys) < 3 * 101:
        keys += [key for row in stream.next_with_keys()[1] for key in row]
    counts = [keys.count(str(i)) for i in range(101)]
    assert min(counts) >= 2 and max(counts) <= 4 and sum(counts) == len(keys)
    assert {count for count in counts if count < 3} <= {2}


def test_settings_that_differ_from_the_checkpoints_are_refused_by_name_with_both_values(open_stream):
    settings = {"data.row_length": 64, "seed": 0, "data.x": (1, 2)}
    state = json.loads(json.dumps(open_stream(settings=settings).get_state()))
    open_stream(settings=settings).set_state(state)
    with pytest.raises(UserError, match=r"data\.row_length=96 \(was 64\); seed=1 \(was 0\)$"):
        open_stream(settings=settings | {"data.row_length": 96, "seed": 1}).set_state(state)


def test_sources_of_a_task_are_mixed_by_their_weights_and_by_their_records_without(open_stream):
    sources = {
        "text": [ListSource([document(letter * 62, key=letter)] * count) for letter, count in (("a", 10), ("b", 30))]
    }
    for weights, share in (({"text": [1.0, 1.0]}, 0.5), ({"text": [3.0, 1.0]}, 0.75), (None, 0.25)):
        stream = open_stream({"text": 1}, sources, weights=weights, packing_bins=1)
        keys = [key for _ in range(20) for row in stream.next_with_keys()[1] for key in row]
        assert keys.count("a") == pytest.approx(share * len(keys), abs=2)


def test_a_source_enters_and_leaves_at_its_step(open_stream):
    """ImageNet until step 5, other images from then on (Janus, 4.2)."""
    sources = {"text": [ListSource([document(letter * 62, key=letter)] * 30) for letter in "ab"]}
    weights = {"text": [((0, 1.0), (5, 0.0)), ((5, 1.0),)]}
    stream = open_stream({"text": 1}, sources, weights=weights, packing_bins=1)
    keys = [{key for row in stream.next_with_keys()[1] for key in row} for _ in range(12)]
    assert keys[:5] == [{"a"}] * 5 and keys[6:] == [{"b"}] * 6  # one row per shard was open at the change


@pytest.mark.parametrize("unit", ["tokens", "rows"])
def test_ratio_may_count_tokens_or_rows(open_stream, unit):
    stream = open_stream({"understand": 1, "generate": 3}, ratio_unit=unit, batch_size=8)
    batches = take(stream, 40)
    modality = np.concatenate([batch.modality for batch in batches])
    segments = np.concatenate([batch.segment_ids for batch in batches])
    amounts = np.zeros(2)
    for row, ids in zip(modality, segments, strict=True):
        tasks = [int(Modality.GENERATION_IMAGE in row[ids == segment]) for segment in range(1, ids.max() + 1)]
        if unit == "rows":
            assert len(set(tasks)) == 1
            amounts[tasks[0]] += 1
        else:
            for segment, task in enumerate(tasks, start=1):
                amounts[task] += (ids == segment).sum()
    assert amounts[1] / amounts.sum() == pytest.approx(0.75, abs=0.01)


def test_stored_codes_leave_out_the_pixels(open_stream):
    stream = open_stream({"text": 1}, in_memory([document("x")] * 9), builder={"stored_codes": True})
    assert next(stream).gen_pixels is None


@pytest.mark.parametrize(("batch_size", "num_shards"), [(4, 3), (2, 4), (4, 0), (4, -2)])
def test_batch_size_that_is_no_multiple_of_the_shards_is_refused(open_stream, batch_size, num_shards):
    message = rf"train\.batch_size={batch_size} must be a multiple of data\.num_shards={num_shards}"
    with pytest.raises(UserError, match=message):
        open_stream(batch_size=batch_size, num_shards=num_shards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_shards": 64, "batch_size": 64},
            rf"data\.num_shards=64 is more than the {NUM_RECORDS} records of source understand/0",
        ),
        ({"process_count": 3}, r"data\.num_shards=2 must be a multiple of the 3 processes"),
        ({"workers": 4}, r"data\.workers=4 must divide the 2 logical shards"),
        ({"ratio_unit": "bytes"}, r"data\.ratio_unit='bytes' is not one of"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(open_stream, changes, message):
    with pytest.raises(UserError, match=message):
        open_stream(**changes)


def test_bad_records_are_left_out_counted_per_source_and_told(open_stream):
    records = [document(f"good{i}", key=str(i)) for i in range(10)] + [text("x" * 99, "a", key="long"), b"\xc1"]
    stream = open_stream({"text": 1}, in_memory(records))
    take(stream, 12)
    state = stream.get_state()
    report = drop_reports(state)["text/0"]
    assert set(report.reasons) == {Reason.TOO_LONG, Reason.BAD_RECORD}
    assert report.rate == pytest.approx(2 / 12, abs=0.03)
    assert {sample.key for sample in report.examples} == {"long", "list:11"}
    line = f"data text/0 (in/memory-*): {report.seen:,} samples, {report.dropped} dropped (bad_record"
    metrics = drop_metrics(state)
    assert metrics.pop("dropped/text/0") == report.rate == pytest.approx(sum(metrics.values()))
    assert metrics.keys() == {"dropped/text/0/too_long", "dropped/text/0/bad_record"}
    lines = format_reports(state, stream.patterns).splitlines()
    assert lines[0].startswith(line) and len(lines) == 2
    assert lines[1].startswith(f"data text/0 (in/memory-*) lost {report.rate:.1%}: {report.dropped} of {report.seen} ")


def test_counts_go_on_after_a_resume(open_stream):
    records = [document("x" * (40 + i), key=str(i)) for i in range(40)] + [b"\xc1"] * 3
    straight, stopped, resumed = (open_stream({"text": 1}, in_memory(records)) for _ in range(3))
    take(straight, 20)
    take(stopped, 8)
    resumed.set_state(json.loads(json.dumps(stopped.get_state())))
    take(resumed, 12)
    assert resumed.get_state() == straight.get_state()
    assert sum(shard["truncated"]["text/0"] for shard in straight.get_state()["shards"].values()) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_of_bad_records_only_aborts_instead_of_waiting_forever(open_stream, workers):
    stream = open_stream({"text": 1}, in_memory([b"\xc1"] * 8), workers=workers)
    with pytest.raises(
        UserError,
        match=r"data\.max_drop_rate \(text/0, in/memory-\*, 8 records, read 25\.0 times\)=0\.5: 100 of 100 .*list:",
    ):
        next(stream)


class HundredMillion:
    """A source without files, to resume deep inside it."""

    pattern = "nowhere"

    def __len__(self):
        return 100_000_000

    def __getitem__(self, index):
        return ListSource([document(f"document number {index}", key=str(index))])[0]


def test_a_resume_deep_inside_a_huge_source_reads_only_its_open_rows(open_stream):
    settings = dict(sources={"text": [HundredMillion()]}, num_shards=2, packing_bins=4)
    stream = open_stream({"text": 1}, **settings)
    take(stream, 2)
    state = json.loads(json.dumps(stream.get_state()))
    for shard in state["shards"].values():
        shift = 5_000_000 - shard["cursors"]["text/0"]
        shard["cursors"]["text/0"] += shift
        shard["open"] = [[[name, place + shift] for name, place in row] for row in shard["open"]]
    deep = open_stream({"text": 1}, **settings)
    deep.set_state(state)
    keys = [key for row in deep.next_with_keys()[1] for key in row]
    assert len(set(keys)) == len(keys) > 4
    assert all(shard["cursors"]["text/0"] < 5_000_100 for shard in deep.get_state()["shards"].values())
