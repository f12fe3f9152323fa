import io
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import array_record_files, tfds_folder
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.prompts import Message
from janus_jax.data.records import Record, write_records
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all

PNG, BLUE = image(), image(colour=(0, 0, 255))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])


def read(tmp_path, columns, row_group_size=2, metadata=None, **options):
    """`columns`: name -> (type, values)."""
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    if metadata:
        schema = schema.with_metadata({"huggingface": json.dumps(metadata)})
    table = pa.table({name: values for name, (_, values) in columns.items()}, schema=schema)
    pq.write_table(table, tmp_path / "train-00000.parquet", row_group_size=row_group_size)
    return read_all(open_dataset("parquet", str(tmp_path), options))


def image_of(data, path=None):
    return {"bytes": data, "path": path}


def test_image_and_caption(tmp_path):
    images = [image_of(PNG, "a.png"), image_of(BLUE), None, image_of(None, "../x.png"), image_of(PNG)]
    columns = {"image": (IMAGE, images), "text": (pa.string(), ["a &amp; b", "c", "d", "e", None])}
    records, bad = read(tmp_path, columns)
    assert [(r.key, r.task, r.messages[0].text, r.images[0]) for r in records] == [
        ("train-00000.parquet/0/0", "generate", "a & b", PNG),
        ("train-00000.parquet/0/1", "generate", "c", BLUE),
    ]
    assert [(item.key[-3:], item.reason) for item in bad] == [
        ("1/0", Reason.NO_IMAGE),
        ("1/1", Reason.MISSING_FILE),
        ("2/0", Reason.NO_TEXT),
    ]


def test_image_given_by_its_path(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    paths = ["a.png", "../secret.png", "gone.png", str(tmp_path / "secret.png")]
    columns = {
        "image": (IMAGE, [image_of(None, path) for path in paths]),
        "caption": (pa.string(), ["c"] * 4),
    }
    records, bad = read(tmp_path, columns, image_root=(str(tmp_path / "images"),))
    assert [record.images for record in records] == [(PNG,)]
    assert [item.reason for item in bad] == [Reason.PATH_ESCAPE, Reason.MISSING_FILE, Reason.PATH_ESCAPE]


def test_class_labels_become_their_first_names(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["tench, Tinca", "crane"]}}
    columns = {"image": (IMAGE, [image_of(PNG)] * 3), "label": (pa.int64(), [1, 0, 7])}
    records, bad = read(tmp_path, columns, metadata={"info": {"features": features}})
    assert [record.messages[0].text for record in records] == ["crane", "tench"]
    assert [item.reason for item in bad] == [Reason.BAD_FIELD]
    records, bad = read(tmp_path, columns)  # without names a number is no caption
    assert records == [] and [item.reason for item in bad] == [Reason.BAD_FIELD] * 3


def test_messages_with_a_list_of_images(tmp_path):
    turns = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "first"}]
    text_only = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    columns = {
        "images": (pa.list_(IMAGE), [[image_of(PNG), image_of(BLUE)], [], None, [image_of(PNG)]]),
        "messages": (pa.list_(TURN), [turns, text_only, text_only, turns]),
    }
    records, bad = read(tmp_path, columns, tasks=("understand", "text"))
    assert [(record.task, record.images) for record in records] == [
        ("understand", (PNG, BLUE)),
        ("text", ()),
        ("text", ()),
    ]
    assert [item.reason for item in bad] == [Reason.IMAGE_COUNT]


def test_messages_in_parts(tmp_path):
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    turn = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    question = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    video = {"role": "user", "content": [{"type": "video", "text": None}]}
    columns = {
        "image": (IMAGE, [image_of(PNG)] * 2),
        "messages": (pa.list_(turn), [[question, answer], [video, answer]]),
    }
    records, bad = read(tmp_path, columns)
    assert records[0].messages == (Message("user", "<image>\nWhat?"), Message("assistant", "A cat."))
    assert [item.reason for item in bad] == [Reason.BAD_FIELD]


def test_text_and_chosen_columns(tmp_path):
    columns = {"text": (pa.string(), ["one", None, " "]), "body": (pa.string(), ["two", "three", "four"])}
    records, bad = read(tmp_path, columns)
    assert [record.messages for record in records] == [(Message("assistant", "one"),)]
    assert [item.reason for item in bad] == [Reason.NO_TEXT] * 2
    records, _ = read(tmp_path, columns, text_column="body")
    assert [record.messages[0].text for record in records] == ["two", "three", "four"]
    with pytest.raises(UserError, match=r"^--text_column=nope: train-00000\.parquet has no such column, only"):
        read(tmp_path, columns, text_column="nope")
    with pytest.raises(UserError, match=r"^train-00000\.parquet: .*\['number'\]"):
        read(tmp_path, {"number": (pa.int64(), [1])})


def test_wrong_types_are_counted(tmp_path):
    assert [item.reason for item in read(tmp_path, {"text": (pa.int64(), [1, 2])})[1]] == [Reason.BAD_FIELD] * 2
    columns = {"image": (pa.int64(), [1]), "caption": (pa.string(), ["c"])}
    assert [item.reason for item in read(tmp_path, columns)[1]] == [Reason.BAD_FIELD]
    columns = {"messages": (pa.string(), ["hello"])}
    assert [item.reason for item in read(tmp_path, columns)[1]] == [Reason.BAD_FIELD]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "flipped"])
def test_damaged_parquet_is_counted(tmp_path, damage):
    read(tmp_path, {"text": (pa.string(), [f"text number {i}" for i in range(100)])}, row_group_size=50)
    path = tmp_path / "train-00000.parquet"
    data = path.read_bytes()
    flipped = data[:20] + bytes(byte ^ 0xFF for byte in data[20:200]) + data[200:]
    path.write_bytes({"truncated": data[:-30], "empty": b"", "foreign": b"x" * 999, "flipped": flipped}[damage])
    records, bad = read_all(open_dataset("parquet", str(tmp_path), {}))
    assert [item.reason for item in bad] == [Reason.CORRUPT]
    assert len(records) == (50 if damage == "flipped" else 0)  # the other row group is whole


def test_a_row_that_is_not_utf8_is_lost_alone(tmp_path):
    buffers = [None, pa.py_buffer(np.array([0, 2, 4, 7], np.int32).tobytes()), pa.py_buffer(b"ab\xff\xfeend")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, buffers)})
    pq.write_table(table, tmp_path / "a.parquet")
    records, bad = read_all(open_dataset("parquet", str(tmp_path), {}))
    assert [(record.key, record.messages[0].text) for record in records] == [
        ("a.parquet/0/0", "ab"),
        ("a.parquet/0/2", "end"),
    ]
    assert [(item.key, item.reason) for item in bad] == [("a.parquet/0/1", Reason.BAD_FIELD)]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "body"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: 2 columns are named 'text', expected one"):
        open_dataset("parquet", str(tmp_path), {}).units()
    records, _ = read_all(open_dataset("parquet", str(tmp_path), {"text_column": "body"}))
    assert [record.messages[0].text for record in records] == ["c"]


# ImageNet folders


@pytest.fixture
def image_net(tmp_path):
    for synset, names in {"n02": ("n02_1.JPEG", "n02_2.JPEG"), "n01": ("n01_9.JPEG", "notes.txt")}.items():
        (tmp_path / "train" / synset).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / synset / name).write_bytes(PNG)  # a PNG named .JPEG, as n02105855_2933.JPEG is
    (tmp_path / "names.txt").write_text("n01 tench, Tinca tinca\nn02 crane\n\n")
    return tmp_path


def test_folders_of_classes(image_net):
    source = open_dataset("imagenet", str(image_net / "train"), {"class_names": str(image_net / "names.txt")})
    (image_net / "train" / "n02" / "nested").mkdir()
    (image_net / "train" / "beside.JPEG").write_bytes(PNG)
    records, bad = read_all(source)
    assert [(item.key, item.reason) for item in bad] == [
        ("train/beside.JPEG", Reason.UNREAD_FILE),
        ("n01/notes.txt", Reason.UNREAD_FILE),
        ("n02/nested", Reason.UNREAD_FILE),
    ]
    assert [(record.key, record.messages[0].text) for record in records] == [
        ("n01/n01_9.JPEG", "tench"),
        ("n02/n02_1.JPEG", "crane"),
        ("n02/n02_2.JPEG", "crane"),
    ]
    assert {record.task for record in records} == {"generate"} and records[0].images == (PNG,)


@pytest.mark.parametrize(
    "table", ["n01_9.JPEG n01\nx.JPEG n02\n", "ImageId,PredictionString\nn01_9,n01 85 1 499 272\n"]
)
def test_flat_folder_with_labels(image_net, table):
    (image_net / "labels.txt").write_text(table)
    (image_net / "train" / "n01" / "unknown.JPEG").write_bytes(PNG)
    options = {"class_names": str(image_net / "names.txt"), "labels": str(image_net / "labels.txt")}
    records, bad = read_all(open_dataset("imagenet", str(image_net / "train" / "n01"), options))
    assert [(record.key, record.messages[0].text) for record in records] == [("n01/n01_9.JPEG", "tench")]
    assert [item.reason for item in bad] == [Reason.UNREAD_FILE, Reason.NO_TEXT]


def test_links_and_missing_names(image_net):
    (image_net / "secret.png").write_bytes(PNG)
    (image_net / "train" / "n01" / "link.JPEG").symlink_to(image_net / "secret.png")
    options = {"class_names": str(image_net / "names.txt")}
    assert [item.reason for item in read_all(open_dataset("imagenet", str(image_net / "train"), options))[1]] == [
        Reason.PATH_ESCAPE,
        Reason.UNREAD_FILE,
    ]
    (image_net / "names.txt").write_text("n01 tench\n")
    with pytest.raises(UserError, match=r"^--class_names=.*names\.txt: has no line for the folder .*n02"):
        open_dataset("imagenet", str(image_net / "train"), options).units()
    (image_net / "names.txt").write_text("n01\n")
    with pytest.raises(UserError, match=r"names\.txt: line 1 is 'n01', expected two columns"):
        open_dataset("imagenet", str(image_net / "train"), options).units()
    with pytest.raises(UserError, match=r"^--class_names is required"):
        open_dataset("imagenet", str(image_net / "train"), {})
    (image_net / "names.txt").write_text("n01 tench\nn02 crane\n")
    with pytest.raises(UserError, match=r"^--input=/nope: not a folder"):
        open_dataset("imagenet", "/nope", options).units()


# TFDS


@pytest.fixture(scope="module")
def tfds_dataset(tmp_path_factory):
    """A prepared data set with encoded images and labels, and one of text."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        features: dict
        examples: list

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

        def _split_generators(self, dl_manager):
            return {"train": iter(enumerate(self.examples))}

        def _generate_examples(self):
            raise NotImplementedError

    class Pictures(Tiny):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["n01", "n02"])}
        examples = [{"image": io.BytesIO(PNG), "label": i % 2} for i in range(5)]

    class Texts(Tiny):
        features = {"text": tfds.features.Text()}
        examples = [{"text": f"text {i} é" if i else ""} for i in range(3)]

    for builder in (Pictures, Texts):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_pictures_and_texts_without_tensorflow(tfds_dataset, monkeypatch):
    monkeypatch.setattr(tfds_folder, "UNIT_ROWS", 2)
    path = str(tfds_dataset / "pictures" / "1.0.0")
    source = open_dataset("tfds", path, {"split": "train[1:]"})
    assert len(source.units()) == 2
    records, bad = read_all(source)
    assert bad == [] and all(record.images == (PNG,) for record in records)
    assert len(records) == 4 and {record.messages[0].text for record in records} == {"n01", "n02"}
    names = tfds_dataset / "names.txt"
    names.write_text("n01 tench, Tinca\nn02 crane\n")
    records, _ = read_all(open_dataset("tfds", path, {"class_names": str(names)}))
    assert sorted(record.messages[0].text for record in records) == ["crane"] * 2 + ["tench"] * 3
    records, bad = read_all(open_dataset("tfds", str(tfds_dataset / "texts" / "1.0.0"), {}))
    assert sorted(record.messages[0].text for record in records) == ["text 1 é", "text 2 é"]
    assert [item.reason for item in bad] == [Reason.NO_TEXT] and records[0].task == "text"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        ([b"\xff\xffgarbage"] * 3, "DecodeError"),
        ([b""] * 3, "an empty example, of 5"),
        ([], "out of bound 2; dataset_info.json promises 5 examples"),
    ],
    ids=["garbage", "empty", "too short"],
)
def test_damaged_tfds_examples_are_counted(tfds_dataset, tmp_path, damage, detail):
    folder = tmp_path / "pictures" / "1.0.0"
    shutil.copytree(tfds_dataset / "pictures" / "1.0.0", folder)
    (shard,) = folder.glob("*.array_record*")
    stored = ArrayRecordDataSource([str(shard)])
    whole = [stored[i] for i in range(2)]
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for payload in (*whole, *damage):
        writer.write(payload)
    writer.close()
    records, bad = read_all(open_dataset("tfds", str(folder), {}))
    assert len(records) == 2 and [item.reason for item in bad] == [Reason.CORRUPT] * 3
    assert all(detail in item.detail for item in bad)


def test_tfds_errors(tfds_dataset):
    with pytest.raises(UserError, match=r"^--input=/nope: not a prepared TFDS folder"):
        open_dataset("tfds", "/nope", {}).units()
    with pytest.raises(UserError, match=r"^--input=.*: cannot be read as TFDS"):
        open_dataset("tfds", str(tfds_dataset / "texts" / "1.0.0"), {"split": "nope"}).units()


# Our own shards


def text(i):
    return Record(task="text", messages=(Message("assistant", f"text {i}"),), key=f"k/{i}")


def test_shards_give_their_records_back(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record_files, "UNIT_RECORDS", 3)
    write_records(tmp_path / "a.array_record", [text(i) for i in range(7)])
    source = open_dataset("array_record", str(tmp_path), {})
    assert len(source.units()) == 3
    assert read_all(source) == ([text(i) for i in range(7)], [])


def test_damaged_shards_and_records_are_counted(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for payload in (text(0).serialize(), b"garbage", text(1).serialize()):
        writer.write(payload)
    writer.close()
    write_records(tmp_path / "b.array_record", [text(i) for i in range(5)])
    data = bytearray((tmp_path / "b.array_record").read_bytes())
    position = data.index(b"text 2") if b"text 2" in data else len(data) // 3
    data[position] ^= 0xFF
    (tmp_path / "b.array_record").write_bytes(data)
    (tmp_path / "c.array_record").write_bytes(b"x" * 5000)
    records, bad = read_all(open_dataset("array_record", str(tmp_path), {}))
    assert [item.reason for item in bad][0] is Reason.BAD_RECORD and bad[-1].key == "c.array_record"
    assert {item.reason for item in bad[1:]} == {Reason.CORRUPT} and 4 <= len(records) <= 6


# What all formats share


def test_unknown_format_and_foreign_option_are_errors():
    with pytest.raises(UserError, match=r"^--format=csv: expected one of llava, webdataset"):
        open_dataset("csv", "x", {})
    with pytest.raises(UserError, match=r"^--question=Why\? .*--format=text"):
        open_dataset("text", "x", {"question": "Why?", "text_field": None})
    with pytest.raises(UserError, match=r"^--input is empty"):
        open_dataset("text", (), {})


def test_numbers_of_other_libraries_are_plain(tmp_path):
    assert type(tfds_folder._plain(np.int64(3))) is int
