"""From files of every format, damaged ones among them, through `prepare` to the rows that the hosts feed."""

import glob
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.batches import PackedBatch
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.mixture import Mixture, WeightedRecords
from janus_jax.data.packed_rows import packed_rows
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record, write_records
from janus_jax.data.stream import StreamOptions, drop_reports
from tests.helpers.source_files import tar, turns
from tests.helpers.tiny_data import document, flat_png, make_builder

RATIO = {"understand": 2, "text": 3, "generate": 5}
COUNT = 12  # good samples of each format
GARBAGE, CUT = b"no image", flat_png(1, size=64)[:90]


def write_llava(folder):
    (folder / "images").mkdir()
    for i in range(COUNT):
        (folder / "images" / f"{i}.png").write_bytes(flat_png(i))
    samples = [
        {"id": i, "image": f"{i}.png", "conversations": turns("<image>\nWhat?", f"a{i}", "Why?", f"b{i}")}
        for i in range(COUNT)
    ]
    samples.insert(3, {"id": "escape", "image": "../../etc/passwd", "conversations": turns("<image>", "x")})
    samples.insert(5, {"id": "types", "image": 7, "conversations": "none"})
    (folder / "data.json").write_text(json.dumps(samples))
    return "llava", folder / "data.json", {"image_root": (str(folder / "images"),)}, 2


def write_webdataset(folder):
    members = []
    for i in range(COUNT):
        members += [(f"{i:04}.png", flat_png(20 + i)), (f"{i:04}.txt", f"caption {i}".encode())]
    members.insert(4, ("../../x.png", flat_png(1)))
    members += [("9998.png", CUT), ("9998.txt", b"cut"), ("9999.png", flat_png(1)), ("9999.txt", b"\0\0")]
    (folder / "00000.tar").write_bytes(tar(members)[:-1500])
    return "webdataset", folder / "00000.tar", {}, None


def write_parquet(folder):
    images = [{"bytes": flat_png(40 + i), "path": None} for i in range(COUNT)]
    images[2:2] = [{"bytes": GARBAGE, "path": None}, {"bytes": None, "path": "/etc/passwd"}]
    table = pa.table({"image": images, "caption": [f"c{i}" for i in range(len(images))]})
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    (folder / "b.parquet").write_bytes(b"PAR1" + b"\0" * 50 + b"PAR1")
    return "parquet", folder, {}, 3


def write_imagenet(folder):
    for synset in ("n01", "n02"):
        (folder / "train" / synset).mkdir(parents=True)
        for i in range(COUNT // 2):
            (folder / "train" / synset / f"{synset}_{i}.JPEG").write_bytes(flat_png(60 + i))
    (folder / "train" / "n01" / "broken.JPEG").write_bytes(GARBAGE)
    (folder / "names.txt").write_text("n01 tench\nn02 crane\n")
    return "imagenet", folder / "train", {"class_names": str(folder / "names.txt")}, 1


def write_tfds(folder):
    import tensorflow_datasets as tfds

    class Drawings(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["n01", "n02"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            examples = [{"image": io.BytesIO(flat_png(80 + i)), "label": i % 2} for i in range(COUNT)]
            return {"train": iter(enumerate([*examples, {"image": io.BytesIO(CUT), "label": 0}]))}

        def _generate_examples(self):
            raise NotImplementedError

    Drawings(data_dir=folder, file_format="array_record").download_and_prepare()
    return "tfds", folder / "drawings" / "1.0.0", {}, 1


def write_text(folder):
    lines = [json.dumps({"text": f"document {i} " + "x" * (3 * i)}) for i in range(COUNT)]
    lines[4:4] = ['{"text": 5}', '{"text": "cut', "[]"]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return "text", folder / "a.jsonl.gz", {}, 3


def write_array_record(folder):
    write_records(folder / "a.array_record", [document(f"record {i}", key=str(i)) for i in range(COUNT)])
    (folder / "b.array_record").write_bytes(b"\1" * 100)
    return "array_record", folder / "*.array_record", {}, 1


WRITERS = (write_llava, write_webdataset, write_parquet, write_imagenet, write_tfds, write_text, write_array_record)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Writer -> (manifest, number of bad samples that its files hold or None, folder)."""
    results = {}
    for writer in WRITERS:
        folder = tmp_path_factory.mktemp(writer.__name__)
        name, path, options, bad = writer(folder)
        output = folder / "out"
        job = make_job(
            open_dataset(name, str(path), options), output, RecordSettings(), num_output_files=3, max_drop_rate=0.6
        )
        results[writer] = prepare(job), bad, output
    return results


def open_stream(prepared, ratio=None, sources=None, **changes):
    """All formats in one mixture, a source each."""
    if sources is None:
        sources = {task: [] for task in RATIO}
        for manifest, _, output in prepared.values():
            for task, counts in manifest["tasks"].items():
                if counts["records"]:
                    sources[task].append(open_records(f"{output}/{task}-*.array_record", task))
    weighted = {task: [WeightedRecords(source) for source in of_task] for task, of_task in sources.items()}
    options = StreamOptions(**dict(batch_size=4, num_shards=4, seed=0, max_drop_rate=0.5) | changes)
    return packed_rows(Mixture(sources=weighted, ratio=ratio or RATIO), make_builder(), 3, options)


def read(streams, steps):
    """Batches of all processes joined, and the keys of their rows; closes the streams."""
    batches, keys = [], []
    for _ in range(steps):
        parts = [stream.next_with_keys() for stream in streams]
        batches.append(PackedBatch(*(np.concatenate(arrays) for arrays in zip(*(b for b, _ in parts), strict=True))))
        keys.append([row for _, rows in parts for row in rows])
    for stream in streams:
        stream.close()
    return batches, keys


def same(left, right):
    return left[1] == right[1] and all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for one, other in zip(left[0], right[0], strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_all_good_samples_arrive_and_all_bad_ones_are_counted(prepared, writer):
    manifest, bad, _ = prepared[writer]
    records = sum(counts["records"] for counts in manifest["tasks"].values())
    drops = manifest["drops"]
    assert records == COUNT and drops["seen"] == records + sum(drops["reasons"].values())
    assert sum(drops["reasons"].values()) == bad if bad is not None else drops["reasons"]


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_of_all_formats_are_equal_on_any_number_of_processes(prepared, processes):
    shares = [open_stream(prepared, process_index=i, process_count=processes) for i in range(processes)]
    assert same(read(shares, 8), read([open_stream(prepared)], 8))


def test_rows_of_all_formats_are_equal_with_workers_and_go_on_on_other_processes(prepared):
    batches, keys = read([open_stream(prepared)], 8)
    stream = open_stream(prepared, workers=2)
    first = [stream.next_with_keys() for _ in range(3)]
    state = json.loads(json.dumps(stream.get_state()))
    assert same(([batch for batch, _ in first], [rows for _, rows in first]), (batches[:3], keys[:3]))
    assert same(read([stream], 5), (batches[3:], keys[3:]))
    shares = [open_stream(prepared, process_index=i, process_count=2) for i in range(2)]
    for share in shares:
        share.set_state(state)
    assert same(read(shares, 5), (batches[3:], keys[3:]))


def test_every_image_of_all_formats_comes_once_an_epoch(prepared):
    """Counts the keys of three epochs. Samples in rows that are still open are missing from the last epoch."""
    paths = [f"{output}/generate-*.array_record" for _, _, output in prepared.values()]
    sources = [open_records(path, path) for path in paths if glob.glob(path)]
    keys = [Record.deserialize(source[i].data).key for source in sources for i in range(len(source))]
    stream = open_stream(prepared, ratio={"generate": 1}, sources={"generate": sources})
    seen: list[str] = []
    while len(seen) < 3 * len(keys):
        seen += [key for row in stream.next_with_keys()[1] for key in row]
    reports = drop_reports(stream.get_state())
    stream.close()
    assert len(sources) == 4 and len(keys) == 4 * COUNT and not any(report.dropped for report in reports.values())
    counts = {key: seen.count(key) / keys.count(key) for key in keys}
    assert set(seen) == set(keys) and min(counts.values()) >= 2 and max(counts.values()) <= 4
